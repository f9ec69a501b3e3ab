"""How far an answer may be off. ``docs/numerics.md`` derives every number here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .. import build

U32 = 2.0**-24  # unit roundoff of float32, in which the kernel accumulates
SIGMAS = 4.0  # how many standard deviations of the error model an element may be off
NARROWEST = 4  # lanes of the narrowest vectors, which have the longest sums
CHUNK = 256  # kChunkTokens in kernels/cpu/decode.h; more and shorter chunks err less
PEER_RATIO = 2.0  # the kernel's largest error against that of same-dtype PyTorch


class Limits(NamedTuple):
    unit: float  # unit roundoff of the output dtype
    floor: float  # half the distance of its smallest numbers
    cosine: float  # limit of 1 - cos(out, reference)


LIMITS = {
    torch.float16: Limits(2.0**-11, 2.0**-25, 2.0**-22),
    torch.bfloat16: Limits(2.0**-8, 2.0**-134, 2.0**-16),
    torch.float32: Limits(2.0**-24, 2.0**-150, 2.0**-40),
}


# A weight as the sum of two bfloat16 numbers, the second one what rounding to the first leaves.
TWO_PARTS = (torch.bfloat16, torch.bfloat16)
Weights: TypeAlias = torch.dtype | tuple[torch.dtype, torch.dtype]


def score_error(head_dim: int, length: int, score_std: float) -> float:
    """Standard deviation of a weight's relative error, in units of `U32`."""
    reach = score_std * math.sqrt(2 * math.log(max(length, 2)))  # largest of `length` normal scores
    typical = min(score_std**2, reach) + score_std  # where the softmax's mass lies
    dot = score_std * math.sqrt(head_dim / NARROWEST / 6)
    return dot + 4 * typical + reach + 3


def spread(length: int, score_std: float) -> float:
    """Root of the sum of the squared softmax weights, with room for rows that differ."""
    return min(1.0, 2 * math.sqrt(math.exp(min(score_std**2, 50)) / max(length, 1)))


def weights_error(dtype: Weights, length: int, score_std: float) -> float:
    """Standard deviation of what weights rounded to `dtype` add to an element of `out`."""
    if length <= 1 or score_std == 0:  # every weight is exactly 1
        return 0.0
    parts = dtype if isinstance(dtype, tuple) else (dtype,)
    unit = math.prod(LIMITS[part].unit for part in parts)
    floor = LIMITS[parts[0]].floor
    others = min(0.5, spread(length, score_std))
    return (unit * others + floor * math.sqrt(length)) / math.sqrt(3)


def cpu_weights_dtype(query: Tensor, value_cache: Tensor, isa: str | None = None) -> Weights:
    """What the CPU kernel for `isa` (this machine's) rounds its softmax weights to.

    Where rows are whole lines, with bfloat16 dot products in blocks of 16 query heads of a kv head
    (kernels/cpu/tiles_512_heads.inl), with AMX where `has_blocks` in kernels/cpu/isa.h says so.
    """
    blocks = {
        ("avx512_bf16", torch.bfloat16): 16,
        ("amx_bf16", torch.bfloat16): 5,
        ("amx_bf16", torch.float16): 9,
    }
    group = query.size(1) // value_cache.size(2)
    whole = query.size(2) % 32 == value_cache.size(3) % 32 == 0
    if not whole or group < blocks.get((isa or build.cpu_isa(), query.dtype), math.inf):
        return torch.float32
    return TWO_PARTS if query.dtype == torch.float16 else torch.bfloat16


def out_limits(
    dtype: torch.dtype,
    head_dim: int,
    length: int,
    score_std: float = 1.0,
    weights_dtype: Weights = torch.float32,
) -> tuple[float, float]:
    """(atol, rtol) of an element of `out` in a row of `length` tokens.

    `weights_dtype` is what a kernel rounds its softmax weights to before they meet the values.
    """
    limits = LIMITS[dtype]
    sums = math.sqrt(min(length, CHUNK) / 6) + math.sqrt(length / CHUNK / 6)
    relative = score_error(head_dim, length, score_std) + sums
    atol = SIGMAS * U32 * spread(length, score_std) * relative
    if weights_dtype != torch.float32:
        atol += SIGMAS * weights_error(weights_dtype, length, score_std)
    return atol + limits.floor, limits.unit + 4 * U32


def lse_limits(head_dim: int, length: int, score_std: float = 1.0) -> tuple[float, float]:
    """(atol, rtol) of an element of `lse` in a row of `length` tokens."""
    sums = math.sqrt(min(length, CHUNK) / NARROWEST / 3) + math.sqrt(length / CHUNK / 3)
    return SIGMAS * U32 * (score_error(head_dim, length, score_std) + sums), 4 * U32


def bound(want: Tensor, limits: Sequence[tuple[float, float]]) -> Tensor:
    """Largest error of every element of ``want [batch, ...]``, given each row's (atol, rtol)."""
    columns = torch.tensor(limits, dtype=torch.float64).view(-1, 2, *[1] * (want.dim() - 1))
    atol, rtol = columns.unbind(1)
    return atol + rtol * want.abs()


def peer_bound(peer: Tensor, want: Tensor) -> float:
    """Largest error that PyTorch's answer in the same dtype leaves to the kernel's."""
    error = float((peer.double() - want).abs().max())
    return PEER_RATIO * error + 4 * U32 * float(want.abs().max())


def misdirection(got: Tensor, want: Tensor) -> float:
    """1 - cos of the angle between the two; 0 where it has no meaning."""
    norms = float(got.double().norm() * want.norm())
    if norms == 0 or not math.isfinite(norms):
        return 0.0
    return 1 - float((got.double() * want).sum()) / norms
