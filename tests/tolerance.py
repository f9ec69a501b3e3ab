"""What counts as right, in one place. ``docs/numerics.md`` derives every number here."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from cases import CHUNK, DecodeCase, Inputs
from torch import Tensor

U32 = 2.0**-24  # unit roundoff of float32, in which the kernel accumulates
SIGMAS = 4.0  # how many standard deviations of the error model an element may be off
NARROWEST = 4  # lanes of the narrowest vectors, which have the longest sums
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


def score_error(case: DecodeCase, length: int) -> float:
    """Standard deviation of a weight's relative error, in units of `U32`."""
    std = case.score_std
    reach = std * math.sqrt(2 * math.log(max(length, 2)))  # the largest of `length` normal scores
    typical = min(std * std, reach) + std  # where the softmax's mass lies
    dot = std * math.sqrt(case.head_dim / NARROWEST / 6)
    return dot + 4 * typical + reach + 3


def out_limits(case: DecodeCase, length: int) -> tuple[float, float]:
    """(atol, rtol) of an element of `out` in a row of `length` tokens."""
    limits = LIMITS[case.dtype]
    spread = min(1.0, 2 * math.sqrt(math.exp(min(case.score_std**2, 50)) / max(length, 1)))
    sums = math.sqrt(min(length, CHUNK) / 6) + math.sqrt(length / CHUNK / 6)
    atol = SIGMAS * U32 * spread * (score_error(case, length) + sums)
    return atol + limits.floor, limits.unit + 4 * U32


def lse_limits(case: DecodeCase, length: int) -> tuple[float, float]:
    """(atol, rtol) of an element of `lse` in a row of `length` tokens."""
    sums = math.sqrt(min(length, CHUNK) / NARROWEST / 3) + math.sqrt(length / CHUNK / 3)
    return SIGMAS * U32 * (score_error(case, length) + sums), 4 * U32


def sdpa(case: DecodeCase, inputs: Inputs) -> Tensor:
    """PyTorch's attention in the dtype of the case, on gathered keys and values."""
    query, key_cache, value_cache, block_table, seq_lens = inputs
    out = query.new_zeros(query.size(0), query.size(1), value_cache.size(3))
    for row, length in enumerate(seq_lens.tolist()):
        if length == 0:
            continue
        ids = block_table[row, : -(-length // key_cache.size(1))].long()
        key, value = (
            c[ids].flatten(0, 1)[:length].transpose(0, 1) for c in (key_cache, value_cache)
        )
        grouped = query[row].reshape(key.size(0), -1, query.size(2))
        attended = F.scaled_dot_product_attention(
            grouped[None], key[None], value[None], scale=case.scale
        )
        out[row] = attended[0].flatten(0, 1)
    return out


def assert_near(what: str, got: Tensor, want: Tensor, atol: Tensor, rtol: float) -> None:
    """Same non-finite values in the same places, the rest within atol + rtol * |want|."""
    assert got.shape == want.shape, f"{what}: shape {list(got.shape)}, expected {list(want.shape)}"
    if got.numel() == 0:
        return
    got = got.double()
    finite = want.isfinite()
    same = torch.where(finite, got.isfinite(), (got == want) | (got.isnan() & want.isnan()))
    error = (got - want).abs()
    inside = torch.where(finite, error <= atol + rtol * want.abs(), True)
    good = same & inside
    if good.all():
        return
    badness = torch.where(
        same, torch.where(finite, error / (atol + rtol * want.abs()), 0.0), math.inf
    )
    index = _position(int(badness.argmax()), got.shape)
    raise AssertionError(
        f"{what}{list(index)}: got {got[index].item():.9g}, expected {want[index].item():.9g} "
        f"({badness[index].item():.3g} times the tolerance); "
        f"{good.double().mean().item():.2%} of the elements pass"
    )


def _position(flat: int, shape: torch.Size) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        flat, rest = divmod(flat, size)
        index.append(rest)
    return tuple(reversed(index))


def _column(values: list[float], dims: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, *[1] * (dims - 1))


def check_out(case: DecodeCase, inputs: Inputs, got: Tensor, want: Tensor) -> None:
    """`out` against the reference: every element, and the direction as a whole."""
    lengths = inputs.seq_lens.tolist()
    atol = _column([out_limits(case, length)[0] for length in lengths], 3)
    assert got.dtype == case.dtype
    assert_near(f"{case.id}: out", got, want, atol, out_limits(case, 1)[1])
    norms = got.double().norm() * want.norm()
    if norms > 0 and norms.isfinite():
        cosine = ((got.double() * want).sum() / norms).item()
        assert 1 - cosine <= LIMITS[case.dtype].cosine, f"{case.id}: 1 - cos = {1 - cosine:.3g}"


def check_lse(case: DecodeCase, inputs: Inputs, got: Tensor, want: Tensor) -> None:
    lengths = inputs.seq_lens.tolist()
    atol = _column([lse_limits(case, length)[0] for length in lengths], 2)
    assert got.dtype == torch.float32
    assert_near(f"{case.id}: lse", got, want, atol, lse_limits(case, 1)[1])


def check_against_peer(case: DecodeCase, inputs: Inputs, got: Tensor, want: Tensor) -> None:
    """The largest error is at most twice that of PyTorch's own attention in the same dtype."""
    if got.numel() == 0:
        return
    ours = (got.double() - want).abs().max().item()
    theirs = (sdpa(case, inputs).double() - want).abs().max().item()
    floor = 4 * U32 * want.abs().max().item()
    assert ours <= PEER_RATIO * theirs + floor, f"{case.id}: {ours:.3g}, PyTorch {theirs:.3g}"
