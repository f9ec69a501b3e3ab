"""torch.ops.pa_hp on NPU tensors: answers, registration, refusals, and what comes back as NaN."""

import ctypes
import dataclasses
import re
from collections.abc import Callable

import pa_hp
import pytest
import torch
from pa_hp import build
from pa_hp.bench.cases import Inputs, make, named
from pa_hp.bench.checks import check_lse, check_out
from pa_hp.ops import npu
from pa_hp.tiling.plan import plan
from test_registration import OPCHECK_UTILS, keyword
from torch._subclasses import FakeTensorMode
from virtual import on_device

pa_hp.load()
HALF, BF16 = torch.float16, torch.bfloat16
OPS = {name: getattr(torch.ops.pa_hp, name) for name in ("decode", "decode_out", "decode_lse")}
CLASSES = [
    named("block_edges", HALF),
    named("group_1", BF16),
    named("group_8", HALF),
    named("query_heads_first", HALF),
    named("everything_strided", BF16),
    named("one_token", BF16),
    named("only_empty_rows", HALF),
    named("no_rows", HALF),
    named("head_dim_192_v_128", BF16),
    named("scale_given", HALF),
]


def ids(case) -> str:
    return case.id


@pytest.mark.parametrize("case", CLASSES, ids=ids)
def test_answers(case):
    inputs = make(case)
    moved = Inputs(*map(on_device, inputs))
    want, want_lse = pa_hp.reference(*inputs, scale=case.scale)
    out, lse = OPS["decode_lse"](*moved, scale=case.scale)
    check_out(case, inputs, out.cpu(), want, weights_dtype=case.dtype)
    check_lse(case, inputs, lse.cpu(), want_lse)
    arguments = keyword("decode_out", case, moved)
    OPS["decode_out"](*moved, **arguments)
    for same in (arguments["out"], OPS["decode"](*moved, scale=case.scale)):
        assert torch.equal(same.cpu(), out.cpu())


@pytest.mark.parametrize("case", CLASSES, ids=ids)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, case):
    inputs = Inputs(*map(on_device, make(case)))
    arguments = keyword(op, case, inputs)
    done = torch.library.opcheck(OPS[op], tuple(inputs), arguments, test_utils=OPCHECK_UTILS)
    assert done == dict.fromkeys(OPCHECK_UTILS, "SUCCESS")


@pytest.mark.parametrize("case", CLASSES, ids=ids)
def test_fake_output_is_like_the_real_one(case):
    inputs = Inputs(*map(on_device, make(case)))
    mode = FakeTensorMode()
    faked = [mode.from_tensor(tensor) for tensor in inputs]
    with mode:
        dry = (OPS["decode"](*faked), *OPS["decode_lse"](*faked))
    real = (OPS["decode"](*inputs), *OPS["decode_lse"](*inputs))
    for want, got in zip(real, dry, strict=True):
        assert got.device == want.device
        assert (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype)


BATCH, HEADS, KV_HEADS, DIM, BLOCKS, BLOCK = 2, 6, 3, 16, 5, 16


def good(heads=HEADS, kv_heads=KV_HEADS, dim=DIM, dim_v=DIM, block=BLOCK, dtype=HALF) -> dict:
    """Arguments on the NPU; every value is 1, and so is every answer."""

    def ones(*shape):
        return torch.ones(shape, dtype=dtype, device="npu")

    return {
        "query": ones(BATCH, heads, dim),
        "key_cache": ones(BLOCKS, block, kv_heads, dim),
        "value_cache": ones(BLOCKS, block, kv_heads, dim_v),
        "block_table": torch.tensor([[4, 0], [1, 2]], dtype=torch.int32, device="npu"),
        "seq_lens": torch.tensor([20, 5], dtype=torch.int32, device="npu"),
        "out": torch.full((BATCH, heads, dim_v), 7.0, dtype=dtype, device="npu"),
    }


@dataclasses.dataclass(frozen=True)
class Refusal:
    """`message` follows "pa_hp.<op>: expected "."""

    id: str
    error: type[Exception]
    message: str
    make: Callable[[], dict]
    ops: tuple[str, ...] = tuple(OPS)
    fake: bool = True  # shapes, strides, dtypes and devices tell


def swapped(**replacements) -> Callable[[], dict]:
    """Good arguments, some of which a function has changed."""
    return lambda: {
        name: replacements.get(name, lambda same: same)(tensor) for name, tensor in good().items()
    }


def into_the_query() -> dict:
    arguments = good()
    return arguments | {"out": arguments["query"]}


DIMS = "to be a multiple of 16 up to 256, got"
BLOCKS_OF = "key_cache.size(1) to be a multiple of 16 up to 512 (block_size), got"
ELSEWHERE = "it must be on the device of query"
REFUSALS = [
    Refusal(
        "float32",
        TypeError,
        "query to be float16 or bfloat16, got float32",
        lambda: good(dtype=torch.float32),
    ),
    Refusal("head_dim", ValueError, f"query.size(2) {DIMS} 24", lambda: good(dim=24)),
    Refusal("long_head", ValueError, f"query.size(2) {DIMS} 272", lambda: good(dim=272)),
    Refusal("head_dim_v", ValueError, f"value_cache.size(3) {DIMS} 24", lambda: good(dim_v=24)),
    Refusal("block_size", ValueError, f"{BLOCKS_OF} 24", lambda: good(block=24)),
    Refusal("large_block", ValueError, f"{BLOCKS_OF} 528", lambda: good(block=528)),
    Refusal(
        "group",
        ValueError,
        "query.size(1) to be at most 64 times 1 (kv_heads of key_cache), got 65",
        lambda: good(heads=65, kv_heads=1),
    ),
    Refusal(
        "lengths_of_64_bits",
        TypeError,
        "seq_lens to be int32, got int64; call .to(torch.int32)",
        swapped(seq_lens=torch.Tensor.long),
    ),
    *(
        Refusal(
            f"{name}_on_{device}",
            ValueError,
            f"{name} to be on npu:0, got {device}; {ELSEWHERE}",
            swapped(**{name: lambda tensor, device=device: tensor.to(device)}),
            ops=("decode_out",) if name == "out" else tuple(OPS),
        )
        for name in ("key_cache", "value_cache", "block_table", "seq_lens", "out")
        for device in ("npu:1", "cpu")
    ),
    Refusal(
        "out_over_query",
        ValueError,
        "out to be apart from query, got overlapping memory; pass a tensor of its own",
        into_the_query,
        ops=("decode_out",),
        fake=False,
    ),
]


def call(op: str, arguments: dict):
    given = dict(arguments)
    if op != "decode_out":
        del given["out"]
    return OPS[op](**given)


@pytest.mark.parametrize(
    ("op", "refusal"),
    [
        pytest.param(op, refusal, id=f"{op}-{refusal.id}")
        for refusal in REFUSALS
        for op in refusal.ops
    ],
)
def test_refused(op, refusal):
    """Nothing is written, and the fake says the same."""
    arguments = refusal.make()
    message = rf"\A{re.escape(f'pa_hp.{op}: expected {refusal.message}')}\Z"
    with pytest.raises(refusal.error, match=message) as caught:
        call(op, arguments)
    assert caught.type is refusal.error
    if refusal.id != "out_over_query":
        assert (arguments["out"].cpu() == 7).all()
    if refusal.fake:
        mode = FakeTensorMode()
        faked = {name: mode.from_tensor(tensor) for name, tensor in arguments.items()}
        with mode, pytest.raises(refusal.error, match=message) as caught:
            call(op, faked)
        assert caught.type is refusal.error


def test_bad_lengths_and_ids_give_nan_and_nothing_waits(runtime):
    """The host does not look: counted from the first call, whose plan is new, to the last."""
    arguments = good()
    wrong = torch.tensor([[4, 0], [BLOCKS, 2]], dtype=torch.int32, device="npu")
    negative = torch.tensor([20, -1], dtype=torch.int32, device="npu")
    long = torch.tensor([20, 2 * BLOCK + 1], dtype=torch.int32, device="npu")
    names = ("synchronise", "device_to_host", "host_to_device")
    before = [runtime.counter(name) for name in names]
    got = [
        call("decode", arguments | change)
        for change in ({"block_table": wrong}, {"seq_lens": negative}, {"seq_lens": long})
    ]
    empty = {name: arguments[name][:0] for name in ("query", "block_table", "seq_lens", "out")}
    none = call("decode_lse", arguments | empty)
    call("decode_out", arguments | empty)
    assert [runtime.counter(name) for name in names] == before
    assert [list(tensor.shape) for tensor in none] == [[0, HEADS, DIM], [0, HEADS]]
    for out in got:
        out = out.cpu()
        assert (out[0] == 1).all() and out[1].isnan().all()


def test_internal_format(script):
    """FRACTAL_NZ keeps no strides: refused by name, with what to do."""
    done = script(
        """
        import torch, torch_npu
        torch.npu.config.allow_internal_format = True
        from test_op import call, good
        for name in ("query", "key_cache", "value_cache"):
            arguments = good()
            old = arguments[name]
            arguments[name] = torch_npu.empty_with_format(
                old.shape, dtype=old.dtype, device=old.device, acl_format=29
            )
            assert torch_npu.get_npu_format(arguments[name]) == 29, name
            try:
                call("decode", arguments)
            except ValueError as error:
                print(str(error).splitlines()[0])
        """
    )
    for name in ("query", "key_cache", "value_cache"):
        assert (
            f"pa_hp.decode: expected {name} to be in a plain format, got internal format 29; "
            "call torch_npu.npu_format_cast(tensor, 2)"
        ) in done.stdout


ON_THE_CPU = """
cache = torch.ones(1, 16, 1, 16, dtype=torch.half)
table, length = torch.zeros(1, 1, dtype=torch.int32), torch.full((1,), 3, dtype=torch.int32)
arguments = cache[:, 0], cache, cache, table, length
print("cpu", torch.ops.pa_hp.decode(*arguments).unique().tolist())
"""


def test_torch_npu_after_the_first_use(script):
    done = script(
        f"import sys, torch, pa_hp\n{ON_THE_CPU}"
        "assert 'torch_npu' not in sys.modules\n"
        "import torch_npu\n"
        "moved = [tensor.npu() for tensor in arguments]\n"
        "print('npu', torch.ops.pa_hp.decode(*moved).cpu().unique().tolist())\n",
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert "cpu [1.0]" in done.stdout and "npu [1.0]" in done.stdout


def test_a_library_that_cannot_be_built(script):
    """The first NPU tensor says why, in BuildError's words; the CPU goes on."""
    done = script(
        "import torch, pa_hp\n"
        "def refuse(target='cpu'): raise pa_hp.BuildError('pa_hp: no compiler today')\n"
        f"{ON_THE_CPU}"
        "pa_hp.build.load = refuse\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        torch.ops.pa_hp.decode(*(tensor.npu() for tensor in arguments))\n"
        "    except RuntimeError as error:\n"
        "        print(type(error).__name__, str(error).splitlines()[0])\n"
        f"{ON_THE_CPU}",
    )
    assert done.stdout.count("RuntimeError pa_hp: no compiler today") == 2
    assert done.stdout.count("cpu [1.0]") == 2


def test_plans_may_be_forgotten_at_any_time(monkeypatch):
    inputs = [on_device(tensor) for tensor in make(named("block_edges", HALF))]
    want = pa_hp.decode(*inputs)
    library = ctypes.CDLL(str(build.loaded["npu"]))
    planned = []
    monkeypatch.setattr(npu, "plan", lambda desc: planned.append(desc) or plan(desc))
    for _ in range(20):
        pending = [pa_hp.decode(*inputs) for _ in range(3)]
        library.pa_hp_npu_forget_plans()
        for got in pending:
            assert torch.equal(got, want)
    assert len(planned) == 19  # once after every time but the last
