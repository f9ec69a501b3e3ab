"""The drop-ins on NPU tensors: the wheel's signatures, its shapes, and its documented answers."""

import contextlib
import inspect
import math

import pa_hp
import pytest
import torch
from pa_hp.bench.checks import assert_near
from pa_hp.bench.tolerance import bound, out_limits
from pa_hp.ops import compat
from torch._subclasses import FakeTensorMode

torch_npu = pytest.importorskip("torch_npu", reason="needs the virtual NPU: make test-npu")

BATCH, HEADS, KV_HEADS, DIM, BLOCK, MAX_BLOCKS = 3, 6, 2, 32, 16, 3
SEQ = BLOCK * MAX_BLOCKS
NUM_BLOCKS = BATCH * MAX_BLOCKS + 1
SHAPES = {  # layout of query and, if paged, dimensions of the cache
    "BSH": ("BSH", None),
    "BSND": ("BSND", None),
    "BNSD": ("BNSD", None),
    "BSH-paged": ("BSH", 3),
    "BSND-paged": ("BSND", 3),
    "BNSD-paged-3D": ("BNSD", 3),
    "BNSD-paged-4D": ("BNSD", 4),
}


def model(
    query,
    key,
    value,
    *,
    actual_seq_lengths=None,
    block_table=None,
    num_heads=1,
    scale_value=1.0,
    input_layout="BSH",
    num_key_value_heads=0,
    block_size=0,
):
    """torch_npu's incremental attention as its documentation has it, in float64, a head a time."""
    kv_heads = num_key_value_heads or num_heads
    batch = query.size(0)
    out = torch.zeros(query.shape, dtype=torch.float64)
    heads_of_query = query.double().reshape(batch, num_heads, -1)  # one token: any layout
    heads_of_out = out.view(heads_of_query.shape)

    def vector(cache, row, position, head):
        """Of one token and one head."""
        if block_table is not None:
            row, position = block_table[row, position // block_size], position % block_size
        if cache.dim() == 4 and input_layout == "BNSD":
            return cache[row, head, position].double()
        return cache[row, position].reshape(kv_heads, -1)[head].double()

    for row in range(batch):
        if not actual_seq_lengths:
            length = key.size(2 if input_layout == "BNSD" else 1)
        else:
            length = actual_seq_lengths[row if len(actual_seq_lengths) > 1 else 0]
        for head in range(num_heads if length else 0):
            of = head // (num_heads // kv_heads)
            keys = torch.stack([vector(key, row, at, of) for at in range(length)])
            values = torch.stack([vector(value, row, at, of) for at in range(length)])
            weights = (keys @ heads_of_query[row, head] * scale_value).softmax(0)
            heads_of_out[row, head] = weights @ values
    return out


def operands(shape, dtype=torch.float16, heads=HEADS, kv_heads=KV_HEADS, dim=DIM, lengths=None):
    """Query, key and value on the CPU, and the keywords that say how they lie.

    What no token of a sequence uses is NaN, and the ids of blocks that no one uses point nowhere.
    """
    generator = torch.Generator().manual_seed(3)
    layout, paged = SHAPES[shape]
    sizes = {"BSH": (1, heads * dim), "BSND": (1, heads, dim), "BNSD": (heads, 1, dim)}
    query = torch.randn(BATCH, *sizes[layout], generator=generator)
    options = {"num_heads": heads, "num_key_value_heads": kv_heads, "input_layout": layout}
    rows = range(BATCH)
    used = [SEQ] * BATCH if not lengths else [lengths[row % len(lengths)] for row in rows]
    key, value = torch.randn(2, BATCH, SEQ, kv_heads, dim, generator=generator)
    for row in rows:
        key[row, used[row] :] = value[row, used[row] :] = torch.nan
    if paged:
        ids = torch.randperm(NUM_BLOCKS, generator=generator)[: BATCH * MAX_BLOCKS]
        table = ids.view(BATCH, MAX_BLOCKS).int()
        caches = torch.full((2, NUM_BLOCKS, BLOCK, kv_heads, dim), torch.nan)
        caches[:, ids] = torch.stack([key, value]).view(2, -1, BLOCK, kv_heads, dim)
        key, value = caches
        for row in rows:
            table[row, math.ceil(used[row] / BLOCK) :] = 2**31 - 1
        options |= {"block_table": table, "block_size": BLOCK}
    if layout == "BNSD" and paged != 3:
        key, value = (cache.transpose(1, 2).contiguous() for cache in (key, value))
    elif layout == "BSH" or paged:
        key, value = (cache.flatten(2) for cache in (key, value))
    return [tensor.to(dtype) for tensor in (query, key, value)], options


def on_npu(tensors, options, device="npu"):
    moved = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }
    return [tensor.to(device) for tensor in tensors], moved


def check(tensors, options, lengths=None, *, got, dim=DIM):
    """`got` is the model's answer, as near as numerics.md says."""
    want = model(*tensors, actual_seq_lengths=lengths, **options)
    std = options.get("scale_value", 1.0) * dim**0.5
    rows = [SEQ] * BATCH if not lengths else (list(lengths) * BATCH)[:BATCH]
    dtype = tensors[0].dtype
    limits = [out_limits(dtype, dim, n, std, weights_dtype=dtype) for n in rows]
    assert got.dtype == dtype
    assert_near("out", got.cpu(), want, bound(want, limits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "lengths"),
    [(shape, lengths) for shape in SHAPES for lengths in ([SEQ, 0, BLOCK + 1], [7])]
    + [(shape, lengths) for shape in ("BSH", "BSND", "BNSD") for lengths in (None, [])],
    ids=str,
)
def test_values(shape, lengths, dtype):
    """The drop-in and the wheel's own operator answer the same call as the model does."""
    tensors, options = operands(shape, dtype, lengths=lengths)
    options["scale_value"] = DIM**-0.5
    arguments, keywords = on_npu(tensors, options)
    for function in (pa_hp.npu_incre_flash_attention, torch_npu.npu_incre_flash_attention):
        got = function(*arguments, actual_seq_lengths=lengths, **keywords)
        check(tensors, options, lengths, got=got)
    if lengths:
        given = torch.tensor(lengths, dtype=torch.int32)
        for tensor in (given, given.long(), given.npu()):
            again = pa_hp.npu_incre_flash_attention(
                *arguments, actual_seq_lengths=tensor, **keywords
            )
            assert torch.equal(again, pa_hp.npu_incre_flash_attention(
                *arguments, actual_seq_lengths=lengths, **keywords
            ))  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(1, 1, 16), (4, 4, 64), (5, 1, 48), (12, 4, 128), (2, 1, 256)]
)
@pytest.mark.parametrize("shape", ["BSH-paged", "BNSD-paged-4D", "BNSD"])
def test_sizes(shape, heads, kv_heads, dim):
    lengths = [33, 1, 16]
    tensors, options = operands(shape, torch.float16, heads, kv_heads, dim, lengths)
    options["scale_value"] = dim**-0.5
    arguments, keywords = on_npu(tensors, options)
    got = pa_hp.npu_incre_flash_attention(*arguments, actual_seq_lengths=lengths, **keywords)
    check(tensors, options, lengths, got=got, dim=dim)


def test_defaults():
    """BSH, one head, as many of keys, a scale of 1."""
    tensors, _ = operands("BSH", heads=1, kv_heads=1)
    tensors[0] /= DIM**0.5
    arguments, _ = on_npu(tensors, {})
    got = pa_hp.npu_incre_flash_attention(*arguments)
    want = model(*tensors)
    limit = out_limits(torch.float16, DIM, SEQ, weights_dtype=torch.float16)
    assert_near("out", got.cpu(), want, bound(want, [limit] * BATCH))


@pytest.mark.parametrize("lengths", ["cpu", "npu"])
def test_paged_attention(lengths):
    """ATB's; there the lengths are on the CPU."""
    tensors, options = operands("BSH-paged", lengths=[SEQ, 0, 17])
    (query, key, value), keywords = on_npu(tensors, options)
    out = torch.full((BATCH, HEADS, DIM), torch.nan, dtype=torch.float16, device="npu")
    context = torch.tensor([SEQ, 0, 17], dtype=torch.int32, device=lengths)
    caches = [cache.unflatten(2, (KV_HEADS, DIM)) for cache in (key, value)]
    pa_hp.npu_paged_attention(
        query.view_as(out), *caches, KV_HEADS, HEADS, DIM**-0.5, keywords["block_table"], context,
        out,
    )  # fmt: skip
    options["scale_value"] = DIM**-0.5
    check(tensors, options, [SEQ, 0, 17], got=out.view_as(query))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pa_hp.npu_incre_flash_attention, torch.ops.npu.npu_incre_flash_attention),
        (pa_hp.npu_paged_attention, torch.ops.atb._npu_paged_attention),
    ],
)
def test_signature_is_the_wheels(ours, theirs):
    signature = inspect.signature(ours).parameters.values()
    schema = theirs.default._schema.arguments
    kinds = {False: inspect.Parameter.POSITIONAL_OR_KEYWORD, True: inspect.Parameter.KEYWORD_ONLY}
    for mine, argument in zip(signature, schema, strict=True):
        assert (mine.name, mine.kind) == (argument.name, kinds[argument.kwarg_only])
        default = argument.default_value if argument.has_default_value() else mine.empty
        assert mine.default == default and type(mine.default) is type(default)
        words = {"Optional[Tensor]": "Tensor | None", "Tensor": "Tensor", "int": "int",
                 "Optional[List[int]]": "Sequence[int] | Tensor | None", "float": "float",
                 "str": "str"}  # fmt: skip
        assert mine.annotation == words[str(argument.type)]


@pytest.mark.parametrize("device", ["meta", "npu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_fake_output_is_the_wheels(shape, dtype, device):
    tensors, options = operands(shape, dtype)
    with FakeTensorMode() if device == "npu" else contextlib.nullcontext():
        tensors = [torch.empty(t.shape, dtype=dtype, device=device) for t in tensors]
        if "block_table" in options:
            size = options["block_table"].shape
            options["block_table"] = torch.empty(size, dtype=torch.int32, device=device)
        options["actual_seq_lengths"] = [5, 0, 9]
        ours = pa_hp.npu_incre_flash_attention(*tensors, **options)
        theirs = torch.ops.npu.npu_incre_flash_attention(*tensors, **options)
    assert (ours.shape, ours.stride()) == (theirs.shape, theirs.stride())
    assert (ours.dtype, ours.device) == (theirs.dtype, theirs.device)


WAITS = ("synchronise", "device_to_host", "host_to_device", "malloc")


def counted(runtime, call, *names):
    """What the runtime was asked to do during a call."""
    names = names or WAITS
    before = {name: runtime.counter(name) for name in names}
    call()
    return {name: runtime.counter(name) - before[name] for name in names}


@pytest.fixture
def call():
    """Puts a paged call's tensors on a device; what it returns takes the lengths."""
    tensors, options = operands("BSH-paged")
    options["scale_value"] = DIM**-0.5

    def build(device="npu"):
        arguments, keywords = on_npu(tensors, options, device)
        return lambda lengths: pa_hp.npu_incre_flash_attention(
            *arguments, actual_seq_lengths=lengths, **keywords
        )

    build.check = lambda got, lengths: check(tensors, options, lengths, got=got)
    return build


def test_a_list_is_uploaded_once_and_nothing_waits(runtime, call):
    run = call()
    run([5, 6, 7])
    quiet = {"synchronise": 0, "device_to_host": 0, "host_to_device": 0, "malloc": 0}
    assert counted(runtime, lambda: run([8, 9, 10])) == quiet | {"host_to_device": 1}
    assert counted(runtime, lambda: run((8, 9, 10))) == quiet
    assert counted(runtime, lambda: run(torch.tensor([8, 9, 10]))) == quiet
    run([8])  # for all rows: no task more than the kernel
    assert counted(runtime, lambda: run([8]), "tasks") == counted(
        runtime, lambda: run([8, 9, 10]), "tasks"
    )
    call.check(run([8, 9, 10]), [8, 9, 10])


def test_a_tensor_on_the_device_is_not_read(runtime, call):
    run = call()
    lengths = torch.tensor([5, 0, SEQ + 1], dtype=torch.int32, device="npu")
    run(lengths)
    quiet = {"synchronise": 0, "device_to_host": 0, "host_to_device": 0, "malloc": 0}
    assert counted(runtime, lambda: run(lengths)) == quiet
    assert run(lengths)[2].isnan().all()


def test_lists_that_change_while_the_device_is_busy(runtime, call):
    """The host's copy of one step must not become the next one's before it has been read."""
    run = call()
    steps = [[step, 0, step + 20] for step in range(20)]
    runtime.delay(torch.npu.current_stream(), 100)
    results = [run(lengths) for lengths in steps]
    for got, lengths in zip(results, steps, strict=True):
        call.check(got, lengths)


def test_the_same_list_on_two_streams(runtime, call):
    """The upload of a stream that is behind is not what another one reads."""
    run, lengths = call(), [11, 12, 13]
    run([1, 1, 1])  # loads and plans, which takes longer than the delay
    side = torch.npu.Stream()
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        runtime.delay(side, 200)
        late = run(lengths)
    early = run(lengths)
    call.check(early, lengths)
    torch.npu.synchronize()
    call.check(late, lengths)


def test_the_same_list_on_two_devices(call):
    for device in ("npu:0", "npu:1"):
        got = call(device)([21, 0, 22])
        assert str(got.device) == device
        call.check(got, [21, 0, 22])


def test_a_list_in_a_captured_graph_is_a_constant_of_it(call):
    """Nothing of it is shared with calls outside, which keep and drop tensors of their own."""
    run, stream = call(), torch.npu.Stream()
    graph = torch.npu.NPUGraph()
    stream.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(stream):
        run([31, 31, 4])
        with torch.npu.graph(graph, stream=stream):
            got = run([31, 31, 4])
        for step in range(40):
            run([step, step, step])
        graph.replay()
        call.check(got, [31, 31, 4])
        call.check(run([31, 31, 4]), [31, 31, 4])


def test_a_tensor_in_a_captured_graph_may_change(call):
    run = call()
    lengths = torch.tensor([5, 6, 7], dtype=torch.int32, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        got = run(lengths)
    for new in ([1, 0, SEQ], [9, 9, 9]):
        lengths.copy_(torch.tensor(new, dtype=torch.int32))
        graph.replay()
        call.check(got, new)


def test_a_fake_call_leaves_nothing_behind(call):
    compat._cached_upload.cache_clear()
    tensors, options = operands("BSH-paged")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        arguments, keywords = on_npu([mode.from_tensor(t) for t in tensors], options)
        keywords["block_table"] = mode.from_tensor(options["block_table"]).npu()
        pa_hp.npu_incre_flash_attention(*arguments, actual_seq_lengths=[1, 2, 3], **keywords)
    call.check(call()([1, 2, 3]), [1, 2, 3])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 49, 2], r"actual_seq_lengths\[1\] to be in \[0, 48\], got 49"),
        (torch.tensor([1, -1, 2]), r"actual_seq_lengths\[1\] to be in \[0, 48\], got -1"),
        ([1, 2], "1 or at least 3 lengths, got 2"),
    ],
)
def test_lengths_on_the_host_are_checked(call, lengths, message):
    with pytest.raises(ValueError, match=message):
        call()(lengths)


def dense(seq, dtype=torch.float16, heads=2, kv_heads=2, dim=32):
    query = torch.zeros(1, 1, heads * dim, dtype=dtype, device="npu")
    cache = torch.zeros(1, seq, kv_heads * dim, dtype=dtype, device="npu")
    return query, cache, {"num_heads": heads, "num_key_value_heads": kv_heads}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"seq": 100}, "a dense key of 100 tokens.*make both a multiple of 16 tokens"),
        ({"seq": 32, "dtype": torch.float32}, "float32.*it takes float16 and bfloat16"),
        ({"seq": 32, "dim": 24}, "head_dim 24 and 24.*a multiple of 16 up to 256"),
        ({"seq": 32, "dim": 272}, "head_dim 272 and 272"),
        ({"seq": 32, "heads": 65, "kv_heads": 1}, "65 heads and 1 kv_heads.*up to 64 heads"),
    ],
)
def test_what_the_kernel_does_not_take(sizes, message):
    query, cache, options = dense(**sizes)
    with pytest.raises(NotImplementedError, match=message):
        pa_hp.npu_incre_flash_attention(query, cache, cache, **options)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("seq", "room"), [(1040, 1040), (32, 48)], ids=str)
@pytest.mark.parametrize("layout", ["BSH", "BNSD"])
def test_a_dense_cache_is_cut_into_blocks(layout, seq, room, batch):
    """Longer than a block of the NPU's may be, and a part of a larger one."""
    generator = torch.Generator().manual_seed(4)
    heads, dim = 2, 16
    query = torch.randn(batch, heads, 1, dim, generator=generator).half()
    query = query if layout == "BNSD" else query.view(batch, 1, -1)
    options = {"num_heads": heads, "input_layout": layout, "scale_value": dim**-0.5}
    shape = (heads, room, dim) if layout == "BNSD" else (room, heads * dim)
    whole = torch.randn(2, 3, *shape, generator=generator).half()

    def part(caches):
        return caches[:, :batch, ..., :seq, :]

    lengths = [seq, seq // 2 + 3][:batch]
    got = pa_hp.npu_incre_flash_attention(
        query.npu(), *part(whole.npu()), actual_seq_lengths=lengths, **options
    )
    want = model(query, *part(whole), actual_seq_lengths=lengths, **options)
    limits = [out_limits(torch.float16, dim, n, weights_dtype=torch.float16) for n in lengths]
    assert_near("out", got.cpu(), want, bound(want, limits))


def test_a_dense_cache_that_cannot_be_cut():
    """Its second row does not begin where a block does."""
    cache = torch.zeros(2, 40, 32, dtype=torch.float16, device="npu")[:, :32]
    query = torch.zeros(2, 1, 32, dtype=torch.float16, device="npu")
    with pytest.raises(NotImplementedError, match="32 tokens, 32 elements apart in rows 1280"):
        pa_hp.npu_incre_flash_attention(query, cache, cache)
    long = torch.zeros(2, 64, 32, dtype=torch.float16, device="npu")[:, :32]
    short = torch.zeros(2, 32, 32, dtype=torch.float16, device="npu")
    with pytest.raises(NotImplementedError, match="dense key and value whose rows lie differently"):
        pa_hp.npu_incre_flash_attention(query, long, short)


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
def test_empty_batch(layout):
    tensors, options = operands(layout)
    arguments, keywords = on_npu([tensor[:0] for tensor in tensors], options)
    got = pa_hp.npu_incre_flash_attention(*arguments, **keywords)
    assert got.shape == arguments[0].shape
