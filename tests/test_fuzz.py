"""Ten thousand random argument sets, most of them spoilt: refused, or answered rightly.

An oracle in plain Python says which of the two it must be. Under AddressSanitizer
(PA_HP_SANITIZE=1) the same test shows that no argument set makes the kernel leave its memory.
"""

import collections
import itertools
import math
import random

import pa_hp
import torch
from pa_hp.bench.cases import DTYPES, DecodeCase, Inputs, lay_out, make
from pa_hp.bench.checks import bits, check_lse, check_out
from torch import Tensor

COUNT = 10_000
SEED = 20260917
NAMES = ("query", "key_cache", "value_cache", "block_table", "seq_lens")
RANKS = dict(zip(NAMES, (3, 4, 4, 2, 1), strict=True))
WRONG_DTYPES = (*DTYPES, torch.float64, torch.int32, torch.int64, torch.int8, torch.complex64)


def random_case(rng: random.Random) -> DecodeCase:
    kv_heads = rng.randint(1, 3)
    size = rng.choice((1, 2, 3, 4, 7, 16, 64))
    longest = rng.choice((1, size, 4 * size, 300 if size == 64 else 5 * size))
    return DecodeCase(
        f"fuzz{rng.random()}",
        tuple(rng.randint(0, longest) for _ in range(rng.choice((0, 1, 1, 2, 3)))),
        dtype=rng.choice(DTYPES),
        heads=kv_heads * rng.choice((1, 2, 3, 4, 5, 18)),
        kv_heads=kv_heads,
        head_dim=rng.choice((8, 16, 24, 32, 48, 64)),
        head_dim_v=rng.choice((8, 16, 40, 64)),
        block_size=size,
        query_layout=rng.choice(("plain", "wide", "heads_first", "fused")),
        cache_layout=rng.choice(("plain", "stacked", "interleaved", "wide", "heads_first")),
    )


# Ways to spoil (or merely to vary) the arguments; each takes the generator and the arguments.


def change_dtype(rng, arguments):
    name = rng.choice(NAMES)
    if not arguments[name].is_complex():
        arguments[name] = arguments[name].to(rng.choice(WRONG_DTYPES))


def change_rank(rng, arguments):
    name = rng.choice(NAMES)
    tensor = arguments[name]
    choices = [lambda: tensor.unsqueeze(rng.randint(0, tensor.dim()))]
    if tensor.dim() > 0 and tensor.size(0) > 0:
        choices.append(lambda: tensor[0])
    if tensor.dim() > 1:
        choices.append(lambda: tensor.flatten(0, 1))
    arguments[name] = rng.choice(choices)()


def narrow(rng, arguments):
    name = rng.choice(NAMES)
    tensor = arguments[name]
    if tensor.dim() > 0:
        dim = rng.randrange(tensor.dim())
        arguments[name] = tensor.narrow(dim, 0, rng.randint(0, tensor.size(dim)))


def narrow_together(rng, arguments):
    """Sizes that agree with each other and may still be out of range."""
    kind = rng.choice(("batch", "head_dim", "head_dim_v", "kv_heads", "num_blocks", "block_size"))
    dims = {
        "batch": {"query": 0, "block_table": 0, "seq_lens": 0},
        "head_dim": {"query": 2, "key_cache": 3},
        "head_dim_v": {"value_cache": 3},
        "kv_heads": {"key_cache": 2, "value_cache": 2},
        "num_blocks": {"key_cache": 0, "value_cache": 0},
        "block_size": {"key_cache": 1, "value_cache": 1},
    }[kind]
    sizes = [arguments[n].size(d) for n, d in dims.items() if arguments[n].dim() > d]
    if len(sizes) == len(dims):
        size = rng.randint(0, min(sizes))
        for name, dim in dims.items():
            arguments[name] = arguments[name].narrow(dim, 0, size)


def change_strides(rng, arguments):
    name = rng.choice(NAMES)
    tensor = arguments[name]
    if tensor.dim() == 0:
        return
    dim = rng.randrange(tensor.dim())
    kind = rng.choice(("gaps", "swap", "repeat"))
    if kind == "gaps":
        arguments[name] = tensor.repeat_interleave(2, dim)[
            (slice(None),) * dim + (slice(None, None, 2),)
        ]
    elif kind == "swap":
        arguments[name] = tensor.transpose(dim, -1)
    elif tensor.size(dim) > 0:
        arguments[name] = tensor.narrow(dim, 0, 1).expand(tensor.shape)


def put(rng, arguments, name, values):
    """One element of an int32 tensor becomes one of `values`."""
    tensor = arguments[name] = arguments[name].clone()
    if tensor.numel() and tensor.dtype == torch.int32:
        value = rng.choice(values)
        tensor[tuple(rng.randrange(n) for n in tensor.shape)] = min(value, 2**31 - 1)


def change_lengths(rng, arguments):
    tensor = arguments["seq_lens"]
    old = int(tensor.flatten()[0].real) if tensor.numel() else 0
    put(rng, arguments, "seq_lens", (-1, 2**31 - 1, -(2**31), 100_000, old + 1, abs(old - 1), 0))


def change_ids(rng, arguments):
    blocks = arguments["key_cache"].size(0)
    put(rng, arguments, "block_table", (-1, -(2**31), 2**31 - 1, blocks, max(blocks - 1, 0), 0))


def change_scale(rng, arguments):
    arguments["scale"] = rng.choice(
        (0.0, 0.5, -0.25, 1, 1e-30, torch.nan, torch.inf, -torch.inf, "1")
    )


def change_kind(rng, arguments):
    """Things that are no plain dense CPU tensor."""
    name = rng.choice(NAMES)
    tensor = arguments[name]
    kind = rng.choice(("none", "list", "sparse", "meta", "negated", "grad"))
    if kind == "none":
        arguments[name] = None
    elif kind == "list":
        arguments[name] = tensor.tolist()
    elif kind == "sparse":
        arguments[name] = tensor.to_sparse() if tensor.dim() else tensor
    elif kind == "meta":
        arguments[name] = tensor.to("meta")
    elif kind == "negated" and tensor.dtype.is_floating_point:
        arguments[name] = torch._neg_view(
            tensor
        )  # the sign is a bit of the tensor, not of its data
    elif kind == "grad" and tensor.dtype.is_floating_point:
        arguments[name] = tensor.detach().requires_grad_()


def change_out(rng, arguments):
    out = arguments["out"]
    kind = rng.choice(
        ("dtype", "narrow", "wide", "heads_first", "gaps", "rows", "input", "grad", "rank")
    )
    if kind == "dtype":
        arguments["out"] = out.to(rng.choice(WRONG_DTYPES))
    elif kind == "narrow":
        dim = rng.randrange(3)
        arguments["out"] = out.narrow(dim, 0, rng.randint(0, out.size(dim)))
    elif kind in ("wide", "heads_first"):
        arguments["out"] = lay_out(out, kind)
    elif kind == "gaps":
        arguments["out"] = out.repeat_interleave(2, 2)[..., ::2]
    elif kind == "rows":
        stride = rng.choice(((0, out.size(2), 1), (out.stride(0), 0, 1), (8, 8, 1), (4, 64, 1)))
        if out.numel():
            arguments["out"] = out.new_zeros(4096).as_strided(out.shape, stride)
    elif kind == "input":
        source = arguments[rng.choice(NAMES[:3])]
        if source.dtype == out.dtype and source.is_contiguous() and source.numel() >= out.numel():
            start = rng.randint(0, source.numel() - out.numel())
            arguments["out"] = source.view(-1)[start : start + out.numel()].view(out.shape)
    elif kind == "grad":
        arguments["out"] = out.requires_grad_()
    else:
        arguments["out"] = out.flatten(1)


CHANGES = (
    change_dtype, change_rank, narrow, narrow_together, change_strides, change_lengths, change_ids,
    change_scale,
)  # fmt: skip


# The oracle: the rules of docs and docstrings, said once more.


def fault(op: str, arguments: dict) -> str | None:
    """Why the arguments must be refused, or None."""
    tensors = [arguments[name] for name in NAMES] + (
        [arguments["out"]] if op == "decode_out" else []
    )
    if not all(isinstance(t, Tensor) and t.layout == torch.strided for t in tensors):
        return "kind"
    if any(t.device.type != "cpu" for t in tensors):
        return "device"
    if isinstance(arguments["scale"], str):
        return "kind"
    query, key_cache, value_cache, block_table, seq_lens = tensors[:5]
    if query.dtype not in DTYPES or any(t.dtype != query.dtype for t in (key_cache, value_cache)):
        return "dtype"
    if block_table.dtype != torch.int32 or seq_lens.dtype != torch.int32:
        return "dtype"
    if any(arguments[name].dim() != rank for name, rank in RANKS.items()):
        return "rank"
    batch, heads, head_dim = query.shape
    num_blocks, size, kv_heads, head_dim_v = value_cache.shape
    if key_cache.shape != (num_blocks, size, kv_heads, head_dim):
        return "size"
    if block_table.size(0) != batch or seq_lens.size(0) != batch:
        return "size"
    if size == 0 or kv_heads == 0 or heads == 0 or heads % kv_heads:
        return "size"
    if any(dim not in range(8, 577, 8) for dim in (head_dim, head_dim_v)):
        return "head_dim"
    if any(t.size(-1) > 1 and t.stride(-1) != 1 for t in tensors[:5]):
        return "stride"
    if arguments["scale"] is not None and not math.isfinite(arguments["scale"]):
        return "scale"
    if op == "decode_out":
        bad = fault_of_out(arguments["out"], tensors[:5])
        if bad:
            return bad
    for length, ids in zip(seq_lens.tolist(), block_table.tolist(), strict=True):
        if not 0 <= length <= len(ids) * size:
            return "length"
        if any(not 0 <= i < num_blocks for i in ids[: -(-length // size)]):
            return "id"
    return None


def fault_of_out(out: Tensor, inputs: list[Tensor]) -> str | None:
    query, value_cache = inputs[0], inputs[2]
    if out.dtype != query.dtype:
        return "out dtype"
    if out.shape != (*query.shape[:2], value_cache.size(3)):
        return "out shape"
    if out.size(-1) > 1 and out.stride(-1) != 1:
        return "out stride"
    if any(t.requires_grad for t in (*inputs, out)):
        return "grad"
    batch, heads, dim = out.shape
    starts = sorted(
        b * out.stride(0) + h * out.stride(1) for b in range(batch) for h in range(heads)
    )
    if any(b - a < dim for a, b in itertools.pairwise(starts)):
        return "out rows"
    (first, last), *others = (span(t) for t in (out, *inputs))
    if any(first < end and start < last for start, end in others):
        return "out overlap"
    return None


def span(tensor: Tensor) -> tuple[int, int]:
    """First address of the tensor's elements and the one behind the last."""
    if tensor.numel() == 0:
        return 0, 0
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (reach + 1) * tensor.element_size()


def check_answer(arguments: dict, out: Tensor, lse: Tensor | None) -> None:
    inputs = [arguments[name].detach() for name in NAMES]
    scale = arguments["scale"]
    want, want_lse = pa_hp.reference(*inputs, scale=scale)
    case = DecodeCase(
        "fuzz",
        tuple(inputs[4].tolist()),
        dtype=inputs[0].dtype,
        head_dim=inputs[0].size(2),
        head_dim_v=inputs[2].size(3),
        scale=scale,
    )
    made = Inputs(*inputs)
    check_out(case, made, out.detach(), want)
    if lse is not None:
        check_lse(case, made, lse.detach(), want_lse)


def one_round(rng: random.Random) -> str | None:
    arguments = {**make(random_case(rng))._asdict(), "scale": None}
    query, value_cache = arguments["query"], arguments["value_cache"]
    op = rng.choice(("decode", "decode_out", "decode_lse"))
    arguments["out"] = query.new_full((*query.shape[:2], value_cache.size(3)), 7.0)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        rng.choice(CHANGES)(rng, arguments)
    if op == "decode_out" and rng.random() < 0.5:
        change_out(rng, arguments)
    if rng.random() < 0.1:
        change_kind(rng, arguments)
    reason = fault(op, arguments)
    out = arguments["out"]
    before = bits(out)
    if op != "decode_out":
        del arguments["out"]
    try:
        result = getattr(torch.ops.pa_hp, op)(**arguments)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        assert reason is not None, f"{op} refused good arguments: {error}"
        assert bits(out) == before, "a refused call wrote to out"
        ours = str(error).startswith((f"pa_hp.{op}: expected ", f"pa_hp.{op} is inference-only"))
        assert ours or reason in ("kind", "device"), f"{reason}: not our message: {error}"
        return reason
    assert reason is None, f"{op} took bad arguments ({reason})"
    if op == "decode_out":
        check_answer(arguments, out, None)
    elif op == "decode_lse":
        check_answer(arguments, *result)
    else:
        check_answer(arguments, result, None)
    return None


def test_ten_thousand_argument_sets(set_threads):
    set_threads(1)  # the shapes are small: a second thread would only wait
    seen = collections.Counter()
    for index in range(COUNT):
        try:
            # A generator of its own, so that one set can be run alone.
            seen[one_round(random.Random(SEED + index))] += 1
        except Exception as error:
            raise AssertionError(
                f"argument set {index}: one_round(random.Random({SEED + index}))"
            ) from error
    print(dict(seen))
    # Every rule was broken often enough, and often enough none was.
    assert seen[None] >= COUNT // 4
    reasons = (
        "kind", "device", "dtype", "rank", "size", "head_dim", "stride", "scale", "length", "id",
        "grad", "out dtype", "out shape", "out stride", "out rows", "out overlap",
    )  # fmt: skip
    assert set(seen) == {None, *reasons}
    assert all(seen[reason] >= 10 for reason in reasons), seen
