"""The drop-ins: torch_npu's arguments and their meaning, on CPU tensors."""

import inspect
import re
import sys
import types

import pa_hp
import pytest
import torch
from pa_hp.bench.checks import assert_near
from pa_hp.bench.tolerance import bound, out_limits
from pa_hp.ops import compat, patch

BATCH, HEADS, KV_HEADS, DIM, BLOCK, MAX_BLOCKS = 3, 6, 2, 16, 16, 4
SEQ = BLOCK * MAX_BLOCKS

LENGTHS = "actual_seq_lengths"

IFA_SCHEMA = """Tensor query, Tensor key, Tensor value, *,
  Tensor? padding_mask=None, Tensor? atten_mask=None, Tensor? pse_shift=None,
  SymInt[]? actual_seq_lengths=None, Tensor? antiquant_scale=None, Tensor? antiquant_offset=None,
  Tensor? block_table=None, Tensor? dequant_scale1=None, Tensor? quant_scale1=None,
  Tensor? dequant_scale2=None, Tensor? quant_scale2=None, Tensor? quant_offset2=None,
  Tensor? kv_padding_size=None, int num_heads=1, float scale_value=1.0, str input_layout="BSH",
  int num_key_value_heads=0, int block_size=0, int inner_precise=1"""
ATB_SCHEMA = """Tensor query, Tensor key_cache, Tensor value_cache, int num_kv_heads, int num_heads,
  float scale_value, Tensor block_table, Tensor context_lens, Tensor(a!) out, *,
  Tensor? workspace=None"""


def model(query, key, value, lengths, scale):
    """IFA on BNSD operands in float64: every head by itself, no pages, no groups."""
    out = torch.zeros(*query.shape[:2], 1, value.size(3), dtype=torch.float64)
    group = query.size(1) // key.size(1)
    for row, length in enumerate(lengths):
        for head in range(query.size(1) if length else 0):
            keys = key[row, head // group, :length].double()
            weights = torch.exp(keys @ query[row, head, 0].double() * scale)
            values = value[row, head // group, :length].double()
            out[row, head, 0] = weights @ values / weights.sum()
    return out


@pytest.fixture
def bnsd():
    """Query, key and value as BNSD, and a shuffled block table for paged caches of them."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(BATCH, HEADS, 1, DIM, generator=generator)
    key, value = torch.randn(2, BATCH, KV_HEADS, SEQ, DIM, generator=generator) / 2
    table = torch.randperm(BATCH * MAX_BLOCKS, generator=generator).view(BATCH, MAX_BLOCKS)
    return query, key, value, table.int()


def to_layout(tensor, layout):
    """A BNSD tensor, laid out anew."""
    if layout == "BNSD":
        return tensor
    bsnd = tensor.transpose(1, 2).contiguous()
    return bsnd if layout == "BSND" else bsnd.flatten(2)


def to_pages(tensor, table, layout):
    """A dense BNSD key or value as a paged cache, 3-D or (BNSD) 4-D."""
    pages = tensor.unflatten(2, (MAX_BLOCKS, BLOCK)).transpose(1, 2)  # [batch, page, heads, ...]
    cache = tensor.new_empty(table.numel(), *pages.shape[2:])
    cache[table.flatten().long()] = pages.flatten(0, 1)
    return cache if layout == "BNSD" else to_layout(cache, "BSH")


def call(operands, layout, *, cache=None, **changes):
    """npu_incre_flash_attention on the operands, dense or in a paged cache of layout `cache`."""
    query, key, value, table = operands
    arguments = {
        "num_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "scale_value": 0.25,
        "input_layout": layout,
    }
    if cache is None:
        key, value = to_layout(key, layout), to_layout(value, layout)
    else:
        key, value = to_pages(key, table, cache), to_pages(value, table, cache)
        arguments |= {"block_table": table, "block_size": BLOCK}
    arguments |= changes
    return pa_hp.npu_incre_flash_attention(to_layout(query, layout), key, value, **arguments)


def check(operands, layout, got, lengths, scale=0.25):
    query, key, value, _ = operands
    want = model(query, key, value, lengths, scale)
    score_std = scale * DIM**0.5 / 2  # the keys are half as large as normal ones
    limit = bound(want, [out_limits(got.dtype, DIM, n, score_std) for n in lengths])
    assert_near("out", got, to_layout(want, layout), to_layout(limit, layout))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("layout", "cache"),
    [("BSH", "BSH"), ("BSND", "BSH"), ("BNSD", "BSH"), ("BNSD", "BNSD")],
    ids=["BSH", "BSND", "BNSD-3D", "BNSD-4D"],
)
def test_paged(bnsd, layout, cache, dtype):
    query, key, value, table = bnsd
    operands = query.to(dtype), key.to(dtype), value.to(dtype), table
    lengths = [SEQ, 0, BLOCK + 1]
    got = call(operands, layout, cache=cache, actual_seq_lengths=lengths)
    assert got.dtype == dtype
    check(operands, layout, got, lengths)


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
@pytest.mark.parametrize("lengths", [None, [], [5, 0, SEQ]], ids=["none", "empty", "given"])
def test_dense(bnsd, layout, lengths):
    got = call(bnsd, layout, actual_seq_lengths=lengths)
    check(bnsd, layout, got, lengths or [SEQ] * BATCH)


@pytest.mark.parametrize("kind", [list, tuple, torch.IntTensor], ids=["list", "tuple", "tensor"])
@pytest.mark.parametrize("lengths", [[7], [0], [9, 1, 0, 999, -5]], ids=["one", "zero", "longer"])
@pytest.mark.parametrize("cache", [None, "BSH"], ids=["dense", "paged"])
def test_one_length_is_for_all_and_surplus_ones_are_ignored(bnsd, cache, lengths, kind):
    got = call(bnsd, "BSH", cache=cache, actual_seq_lengths=kind(lengths))
    check(bnsd, "BSH", got, lengths[:BATCH] if len(lengths) > 1 else lengths * BATCH)


def test_lengths_may_be_a_slice_with_gaps(bnsd):
    lengths = torch.tensor([[9, 50], [3, 50], [0, 50]], dtype=torch.int32)
    got = call(bnsd, "BSH", cache="BSH", actual_seq_lengths=lengths[:, 0])
    check(bnsd, "BSH", got, [9, 3, 0])
    one = lengths[:, 0][:1]
    check(bnsd, "BSH", call(bnsd, "BSH", cache="BSH", actual_seq_lengths=one), [9] * BATCH)


def test_defaults_are_torch_npus(bnsd):
    """BSH, one query head, as many key heads, a scale of 1 and not head_dim ** -0.5."""
    query, key, value, table = bnsd
    operands = query[:, :1], key[:, :1], value[:, :1], table
    got = pa_hp.npu_incre_flash_attention(*(to_layout(t, "BSH") for t in operands[:3]))
    check(operands, "BSH", got, [SEQ] * BATCH, scale=1.0)
    every_head = query[:, :KV_HEADS], key, value, table
    got = call(every_head, "BSH", num_heads=KV_HEADS, num_key_value_heads=0)
    check(every_head, "BSH", got, [SEQ] * BATCH)


def test_empty_batch(bnsd):
    operands = tuple(tensor[:0] for tensor in bnsd)
    for layout in ("BSH", "BSND", "BNSD"):
        assert call(operands, layout).shape == to_layout(operands[0], layout).shape


@pytest.mark.parametrize(
    ("layout", "cache"),
    [
        ("BSH", None),
        ("BSND", None),
        ("BNSD", None),
        ("BSH", "BSH"),
        ("BNSD", "BSH"),
        ("BNSD", "BNSD"),
    ],
)
def test_no_cache_is_copied(bnsd, layout, cache, monkeypatch):
    query, key, value, table = bnsd
    arguments = {"num_heads": HEADS, "num_key_value_heads": KV_HEADS, "input_layout": layout}
    if cache is None:
        key, value = to_layout(key, layout), to_layout(value, layout)
    else:
        key, value = to_pages(key, table, cache), to_pages(value, table, cache)
        arguments |= {"block_table": table, "block_size": BLOCK, "actual_seq_lengths": [7]}
    seen = []

    def spy(query, key_cache, value_cache, *rest, **kwargs):
        seen.extend([key_cache, value_cache])
        return pa_hp.decode(query, key_cache, value_cache, *rest, **kwargs)

    monkeypatch.setattr(compat, "decode", spy)
    pa_hp.npu_incre_flash_attention(to_layout(query, layout), key, value, **arguments)
    for given, passed in zip((key, value), seen, strict=True):
        assert passed.data_ptr() == given.data_ptr()
        assert passed.untyped_storage().nbytes() == given.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("cache", "changes", "message"),
    [
        (None, {LENGTHS: [1, 2]}, f"{LENGTHS} to be 1 or at least 3 lengths, got 2"),
        (None, {LENGTHS: [1, -2, 3]}, f"{LENGTHS}[1] to be in [0, 64], got -2"),
        (None, {LENGTHS: [65]}, f"{LENGTHS}[0] to be in [0, 64], got 65"),
        ("BSH", {LENGTHS: [1, -2, 3]}, f"{LENGTHS}[1] to be in [0, 64], got -2"),
        ("BSH", {LENGTHS: [65]}, f"{LENGTHS}[0] to be in [0, 64], got 65"),
        ("BSH", {LENGTHS: None}, f"{LENGTHS} to be given with a block_table, got None"),
        ("BSH", {LENGTHS: []}, f"{LENGTHS} to be given with a block_table, got []"),
        (
            "BSH",
            {LENGTHS: [7], "block_size": 0},
            "block_size to be at least 1 with a block_table, got 0",
        ),
        (
            "BSH",
            {LENGTHS: [7], "block_size": 32},
            "key to be [num_blocks, 32, 2 * head_dim], got [12, 16, 32]",
        ),
        ("BNSD", {LENGTHS: [7]}, "key to be [num_blocks, 16, 2 * head_dim], got [12, 2, 16, 16]"),
        ("BSH", {LENGTHS: [2**40, 1, 1]}, f"{LENGTHS}[0] to be in [0, 64], got {2**40}"),
        ("BSH", {LENGTHS: [4.5, 1, 1]}, f"{LENGTHS}[0] to be in [0, 64], got 4.5"),
        ("BSH", {LENGTHS: ["1", 1, 1]}, f"{LENGTHS}[0] to be in [0, 64], got 1"),
        ("BSH", {LENGTHS: torch.ones(3, 1)}, f"{LENGTHS} to be 1-D, got [3, 1]"),
        ("BSH", {LENGTHS: torch.tensor(5)}, f"{LENGTHS} to be 1-D, got []"),
        (None, {"num_heads": 0}, "num_heads to be at least 1, got 0"),
        (None, {"num_heads": 5}, "num_key_value_heads to be 0 or a divisor of num_heads 5, got 2"),
        (
            None,
            {"num_key_value_heads": -1},
            "num_key_value_heads to be 0 or a divisor of num_heads 6, got -1",
        ),
        (None, {"num_key_value_heads": 3}, "key to be [3, seq, 3 * head_dim], got [3, 64, 32]"),
        (None, {"inner_precise": 2}, "inner_precise to be 0 or 1, got 2"),
    ],
)
def test_errors(bnsd, cache, changes, message):
    with pytest.raises(ValueError, match=re.escape(f"expected {message}")):
        call(bnsd, "BSH", cache=cache, **changes)


def test_other_layouts_are_refused_by_name(bnsd):
    message = "input_layout 'TND' is not supported; pass BSH, BSND or BNSD"
    with pytest.raises(NotImplementedError, match=message):
        call(bnsd, "BSH", cache=None, input_layout="TND")


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("BSH", [BATCH, 2, HEADS * DIM]),
        ("BSH", [BATCH, 1, HEADS * DIM + 1]),
        ("BSH", [BATCH, HEADS * DIM]),
        ("BSND", [BATCH, 2, HEADS, DIM]),
        ("BSND", [BATCH, HEADS, 1, DIM]),
        ("BNSD", [BATCH, HEADS, 2, DIM]),
        ("BNSD", [BATCH, 1, HEADS, DIM]),
    ],
)
def test_query_shapes_are_checked(bnsd, layout, shape):
    _, key, value, _ = bnsd
    with pytest.raises(ValueError, match=r"expected query to be \[.*\], got \[3, "):
        pa_hp.npu_incre_flash_attention(
            torch.zeros(shape),
            to_layout(key, layout),
            to_layout(value, layout),
            num_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            input_layout=layout,
        )


UNSUPPORTED = [
    "padding_mask", "atten_mask", "pse_shift", "antiquant_scale", "antiquant_offset",
    "dequant_scale1", "quant_scale1", "dequant_scale2", "quant_scale2", "quant_offset2",
    "kv_padding_size",
]  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_the_unsupported_is_refused_by_name(bnsd, name):
    with pytest.raises(NotImplementedError, match=rf"{name} is not supported; pass None"):
        call(bnsd, "BSH", **{name: torch.zeros(1)})


def schema_of(function):
    """The signature of `function`, one line per argument, in the words of a dispatcher schema."""
    types = {"Tensor": "Tensor", "Tensor | None": "Tensor?", "int": "int", "float": "float",
             "str": "str", "Sequence[int] | Tensor | None": "SymInt[]?"}  # fmt: skip
    words, keyword_only = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keyword_only:
            words.append("*")
            keyword_only = True
        word = f"{types[parameter.annotation]} {parameter.name}"
        if parameter.default is not inspect.Parameter.empty:
            default = parameter.default
            word += "=" + (f'"{default}"' if isinstance(default, str) else str(default))
        words.append(word)
    return words


def test_signatures_are_torch_npus():
    def split(text):
        return re.split(r",\s*", text.replace("Tensor(a!)", "Tensor"))

    assert schema_of(pa_hp.npu_incre_flash_attention) == split(IFA_SCHEMA)
    assert schema_of(pa_hp.npu_paged_attention) == split(ATB_SCHEMA)


@pytest.fixture
def atb(bnsd):
    """Operands of npu_paged_attention, in its order up to `out`."""
    query, key, value, table = bnsd
    caches = [to_pages(t, table, "BNSD").transpose(1, 2).contiguous() for t in (key, value)]
    lengths = torch.tensor([SEQ, 0, BLOCK + 1], dtype=torch.int32)
    return [query.squeeze(2), *caches, KV_HEADS, HEADS, 0.25, table, lengths]


@pytest.mark.parametrize("kv_heads_given", [True, False])
def test_atb(bnsd, atb, kv_heads_given):
    operands = bnsd
    if not kv_heads_given:  # 0 means num_heads
        operands = bnsd[0][:, :KV_HEADS], *bnsd[1:]
        atb[0], atb[3], atb[4] = atb[0][:, :KV_HEADS], 0, KV_HEADS
    out = torch.full(atb[0].shape, torch.nan)
    workspace = torch.zeros(3)
    assert pa_hp.npu_paged_attention(*atb, out, workspace=workspace) is None
    check(operands, "BNSD", out.unsqueeze(2), atb[7].tolist())
    assert workspace.eq(0).all()


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (3, 3, "num_kv_heads to be 2 (kv_heads of key_cache), got 3"),
        (3, 0, "num_kv_heads to be 2 (kv_heads of key_cache), got 0"),
        (4, 5, "num_heads to be 6 (heads of query), got 5"),
    ],
)
def test_atb_errors(atb, at, value, message):
    atb[at] = value
    with pytest.raises(ValueError, match=re.escape(f"npu_paged_attention: expected {message}")):
        pa_hp.npu_paged_attention(*atb, torch.zeros_like(atb[0]))


def test_atb_lengths_are_a_tensor(atb):
    atb[7] = [1, 2, 3]
    with pytest.raises(TypeError, match="expected context_lens to be a Tensor, got list"):
        pa_hp.npu_paged_attention(*atb, torch.zeros_like(atb[0]))


def compiled(function):
    """`function` compiled in one graph, and the list of its graphs."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    return torch.compile(function, backend=backend, fullgraph=True, dynamic=True), graphs


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
@pytest.mark.parametrize("cache", [None, "BSH"], ids=["dense", "paged"])
def test_ifa_traces_with_a_list(bnsd, layout, cache):
    function, _ = compiled(lambda *operands: call(operands, layout, **arguments))
    arguments = {"cache": cache, "actual_seq_lengths": [5, 0, 64]}
    check(bnsd, layout, function(*bnsd), [5, 0, 64])


def test_ifa_traces_with_a_tensor_and_compiles_once(bnsd):
    query, key, value, table = bnsd
    query, key, value = (to_layout(query, "BSH"), to_pages(key, table, "BSH"),
                         to_pages(value, table, "BSH"))  # fmt: skip

    def step(query, table, lengths):
        return pa_hp.npu_incre_flash_attention(
            query, key, value, num_heads=HEADS, num_key_value_heads=KV_HEADS, scale_value=0.25,
            block_table=table, block_size=BLOCK, actual_seq_lengths=lengths,
        )  # fmt: skip

    function, graphs = compiled(step)
    for lengths in ([5, 0, 64], [1, 2, 3], [64, 64]):
        rows = len(lengths)
        got = function(query[:rows], table[:rows], torch.tensor(lengths, dtype=torch.int32))
        check(tuple(t[:rows] for t in bnsd), "BSH", got, lengths)
    assert len(graphs) <= 2


def test_atb_traces(bnsd, atb):
    function, graphs = compiled(pa_hp.npu_paged_attention)
    for lengths in ([SEQ, 0, BLOCK + 1], [1, 2, 3]):
        atb[7] = torch.tensor(lengths, dtype=torch.int32)
        out = torch.full(atb[0].shape, torch.nan)
        assert function(*atb, out) is None
        check(bnsd, "BNSD", out.unsqueeze(2), lengths)
    assert len(graphs) == 1


@pytest.fixture
def torch_npu(monkeypatch):
    """A module like torch_npu; its functions return their name."""
    module = types.ModuleType("torch_npu")
    module.npu_incre_flash_attention = lambda *args, **kwargs: "ifa"
    module._npu_paged_attention = lambda *args, **kwargs: "atb"
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    npu = types.SimpleNamespace(is_current_stream_capturing=lambda: False)
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    monkeypatch.setattr(patch, "_said", set())
    return module


def swapped(module, before):
    """Whether each function of the module is another one than before."""
    return {getattr(module, name) is not function for name, function in before.items()}


@pytest.fixture
def before(torch_npu):
    names = "npu_incre_flash_attention", "_npu_paged_attention"
    return {name: getattr(torch_npu, name) for name in names}


def test_patch_and_unpatch(torch_npu, before):
    for _ in range(2):
        pa_hp.patch()
        pa_hp.patch()
        assert swapped(torch_npu, before) == {True}
        for name, function in before.items():
            assert inspect.signature(getattr(torch_npu, name)) != inspect.signature(function)
        pa_hp.unpatch()
        pa_hp.unpatch()
        assert swapped(torch_npu, before) == {False}


def test_patched_blocks_nest(torch_npu, before):
    with pytest.raises(KeyError), pa_hp.patched():
        with pa_hp.patched():
            pass
        assert swapped(torch_npu, before) == {True}
        raise KeyError
    assert swapped(torch_npu, before) == {False}


def test_patched_blocks_overlap(torch_npu, before):
    """As they do in threads, and with patch() in one of them."""
    first, second = pa_hp.patched(), pa_hp.patched()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert swapped(torch_npu, before) == {True}
    pa_hp.patch()
    second.__exit__(None, None, None)
    assert swapped(torch_npu, before) == {True}
    pa_hp.unpatch()
    assert swapped(torch_npu, before) == {False}


def test_patched_calls(torch_npu, bnsd, caplog):
    """What is supported is answered here, the rest there, with one line in the log for each why."""
    query, key, value, table = bnsd
    cache = [to_pages(t, table, "BSH") for t in (key, value)]
    options = {"num_heads": HEADS, "num_key_value_heads": KV_HEADS, "scale_value": 0.25,
               "block_table": table, "block_size": BLOCK, LENGTHS: [9, 0, 5]}  # fmt: skip
    with pa_hp.patched():
        function = torch_npu.npu_incre_flash_attention
        check(bnsd, "BSH", function(to_layout(query, "BSH"), *cache, **options), [9, 0, 5])
        assert not caplog.records
        for lengths in ([65], [66]):
            wrong = options | {LENGTHS: lengths}
            assert function(to_layout(query, "BSH"), *cache, **wrong) == "ifa"
        assert function(to_layout(query, "BSH"), *cache, pse_shift=query, **options) == "ifa"
        assert torch_npu._npu_paged_attention(query) == "atb"
    said = [record.getMessage() for record in caplog.records]
    for line, name, reason in zip(
        said,
        ("npu_incre_flash_attention", "npu_incre_flash_attention", "_npu_paged_attention"),
        (f"{LENGTHS}[0] to be in [0, 64], got 65", "pse_shift is not supported", "8 required"),
        strict=True,
    ):
        assert line.startswith(f"torch_npu.{name} is left to torch_npu: ") and reason in line


def test_without_torch_npu(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    for where, function in (("patch", pa_hp.patch), ("patched", pa_hp.patched().__enter__)):
        message = rf"^pa_hp\.{where}: expected torch_npu to be importable, got: .*; install it"
        with pytest.raises(ImportError, match=message):
            function()
    pa_hp.unpatch()
