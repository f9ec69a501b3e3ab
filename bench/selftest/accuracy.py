"""Answers: against float64 and the vendor's operator, again and again, and from a graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ...ops.fake import NPU_LIMITS
from ...ops.reference import reference
from .. import cases, checks
from ..cases import DecodeCase, Inputs
from ..tolerance import bound, out_limits
from .device import (
    DEVICE,
    Figures,
    Skipped,
    first_line,
    for_peers,
    ifa_call,
    on_device,
    torch_npu,
    virtual,
)

FEW = 64  # elements of `out`: the largest of fewer errors, ours or PyTorch's, is luck


def accuracy_cases() -> list[DecodeCase]:
    """The test suite's cases that the NPU takes, and the edges of the kernel's own tiles."""
    few = (1, 127, 128, 129, 0, 1023, 1024, 1025)
    edges = DecodeCase("tile_edges", few, heads=32, kv_heads=8, head_dim=128, block_size=128)
    group = DecodeCase("group_3", (33, 300, 1), heads=12, kv_heads=4, head_dim=128)
    extra = [dataclasses.replace(case, dtype=dtype) for case in (edges, group) for dtype in HALVES]
    return [case for case in [*cases.CASES, *extra] if _npu_takes(case)]


HALVES = (torch.float16, torch.bfloat16)


def _npu_takes(case: DecodeCase) -> bool:
    limits = NPU_LIMITS
    dims = (case.head_dim, case.value_dim)
    return (
        case.dtype in HALVES
        and all(dim % limits.head_dim_step == 0 and dim <= limits.head_dim_max for dim in dims)
        and case.block_size % limits.block_size_step == 0
        and case.block_size <= limits.block_size_max
        and case.heads // case.kv_heads <= limits.group_max
    )


def run(inputs: Sequence[Tensor], scale: float | None = None) -> tuple[Tensor, Tensor]:
    """`out` and `lse` of inputs on the CPU, computed on the NPU."""
    out, lse = torch.ops.pa_hp.decode_lse(*map(on_device, inputs), scale=scale)
    return out.cpu(), lse.cpu()


def accuracy(case: DecodeCase) -> Figures:
    """Against float64: `out`, `lse`, and PyTorch's error in the same dtype."""
    inputs = cases.make(case)
    want, want_lse = reference(*inputs, scale=case.scale)
    out, lse = run(inputs, case.scale)
    checks.check_out(case, inputs, out, want, case.dtype)
    checks.check_lse(case, inputs, lse, want_lse)
    if out.numel() >= FEW:
        checks.check_against_peer(case, inputs, out, want)
    alone = torch.ops.pa_hp.decode(*map(on_device, inputs), scale=case.scale).cpu()
    expect_bits("decode and decode_lse", alone, out)
    return _errors(out, want, _limit(case, inputs, want))


def _limit(case: DecodeCase, inputs: Inputs, want: Tensor) -> Tensor:
    limits = [
        out_limits(case.dtype, case.head_dim, length, case.score_std, case.dtype)
        for length in inputs.seq_lens.tolist()
    ]
    return bound(want, limits)


def _errors(got: Tensor, want: Tensor, limit: Tensor) -> Figures:
    if got.numel() == 0:
        return {"max_error": 0.0, "of_tolerance": 0.0}
    error = (got.double() - want).abs()
    return {"max_error": float(error.max()), "of_tolerance": float((error / limit).max())}


def expect_bits(what: str, got: Tensor, want: Tensor) -> None:
    if checks.bits(got) != checks.bits(want):
        raise AssertionError(f"{what}: expected the same bits, got others")


def bad_rows() -> Figures:
    """NaN where a length or a block id is out of range; the other rows keep their bits."""
    lengths = (700, 900, 0, 2000, 1, 1500, 64, 800, 513)
    case = DecodeCase("bad", lengths, torch.float16, heads=8, head_dim=128, block_size=128)
    inputs = cases.make(case)
    bad = [1, 3, 5]
    others = [row for row in range(len(lengths)) if row not in bad]
    empty, lens, table = (
        inputs.seq_lens.clone(),
        inputs.seq_lens.clone(),
        inputs.block_table.clone(),
    )
    empty[bad] = 0  # a bad length gets no work, so the others are shared out as beside an empty one
    lens[bad] = torch.tensor([-1, table.size(1) * 128 + 1, 2**31 - 1], dtype=torch.int32)
    table[bad, [0, 5, 2]] = torch.tensor([-1, inputs.key_cache.size(0), 2**31 - 1]).int()
    for what, good, wrong in (
        ("bad lengths", inputs._replace(seq_lens=empty), inputs._replace(seq_lens=lens)),
        ("bad block ids", inputs, inputs._replace(block_table=table)),
    ):
        for got, right in zip(run(wrong), run(good), strict=True):
            if not got[bad].isnan().all():
                raise AssertionError(f"{what}: expected NaN in rows {bad}, got numbers")
            expect_bits(f"{what}: rows beside them", got[others], right[others])
    return {"bad_rows": 2 * len(bad)}


# ---- The vendor's operator -----------------------------------------------------------------------


def ifa_takes(case: DecodeCase) -> bool:
    """If npu_incre_flash_attention computes the case from contiguous caches of pages."""
    plain = case.query_layout == case.cache_layout == "plain"
    return plain and case.head_dim == case.value_dim and max(case.lengths, default=0) > 0


def against_ifa(case: DecodeCase) -> Figures:
    """Both may be off the truth by the tolerance, so off each other by two."""
    inputs = cases.make(case)
    want, _ = reference(*inputs, scale=case.scale)
    limit = _limit(case, inputs, want)
    ours, _ = run(inputs, case.scale)
    scale = case.head_dim**-0.5 if case.scale is None else case.scale
    tensors = [tensor.to(DEVICE) for tensor in for_peers(inputs)]
    try:
        theirs = ifa_call(tensors, list(case.lengths), scale)().cpu().view_as(ours)
    except (RuntimeError, AttributeError, ImportError) as error:
        raise Skipped(f"IFA refuses it: {first_line(error)}") from error
    own = _errors(theirs, want, limit)
    about = f"against IFA, itself off float64 by {own['of_tolerance']:.3g} times the tolerance"
    checks.assert_near(about, ours, theirs.double(), 2 * limit)
    return {"ours": _errors(ours, want, limit), "ifa": own}


# ---- The same bits, eagerly and from a graph -----------------------------------------------------


def replayed_cases() -> list[DecodeCase]:
    """Batches of which every row has pages for its length and for every shorter one."""
    lengths = (700, 129, 0, 1500, 1, 64, 1023, 300)
    gqa = DecodeCase("gqa", lengths, torch.float16, 32, 8, 128, block_size=128)
    mha = DecodeCase("mha", lengths, torch.float16, 8, 8, 64)
    mqa = DecodeCase("mqa", lengths, torch.bfloat16, 16, 1, 128, block_size=128)
    return [gqa, mha, mqa]


def same_bits() -> Figures:
    """Different shapes behind each other, nothing between them; every round gives the same bits."""
    rounds = 3 if virtual() else 200
    batches = [[on_device(t) for t in cases.make(case)] for case in replayed_cases()]
    first = [torch.ops.pa_hp.decode(*batch).cpu() for batch in batches]
    later = [[torch.ops.pa_hp.decode(*batch) for batch in batches] for _ in range(rounds)]
    for number, outs in enumerate(later):
        for case, out, want in zip(replayed_cases(), outs, first, strict=True):
            expect_bits(f"{case.id}, round {number}", out.cpu(), want)
    return {"launches": rounds * len(batches)}


def replay(case: DecodeCase) -> Figures:
    """A captured decode, replayed with other lengths, tables and queries: the eager call's bits."""
    inputs = cases.make(case)
    static = [on_device(tensor) for tensor in inputs]
    torch.ops.pa_hp.decode_lse(*static)
    graph = torch_npu().npu.NPUGraph()
    with torch_npu().npu.graph(graph):
        out, lse = torch.ops.pa_hp.decode_lse(*static)
    generator = torch.Generator().manual_seed(case.seed)
    replays = 4 if virtual() else 50
    for number in range(replays):
        rows = torch.randperm(len(case.lengths), generator=generator)
        share = torch.rand(len(case.lengths), generator=generator)
        lens = (inputs.seq_lens * share).round().int()[rows]
        values = inputs._replace(
            query=inputs.query[rows], block_table=inputs.block_table[rows], seq_lens=lens
        )
        for target, value in zip(static, values, strict=True):
            target.copy_(value)
        graph.replay()
        eager = torch.ops.pa_hp.decode_lse(*static)
        expect_bits(f"out of replay {number}", out.cpu(), eager[0].cpu())
        expect_bits(f"lse of replay {number}", lse.cpu(), eager[1].cpu())
        want, want_lse = reference(*values)
        checks.check_out(case, values, out.cpu(), want, case.dtype)
        checks.check_lse(case, values, lse.cpu(), want_lse)
    return {"replays": replays}
