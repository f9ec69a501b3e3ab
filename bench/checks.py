"""What an answer must be, with the limits of ``tolerance``; AssertionError says what it is not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .cases import DecodeCase, Inputs
from .decode import sdpa
from .tolerance import (
    LIMITS,
    Weights,
    bound,
    cpu_weights_dtype,
    lse_limits,
    misdirection,
    out_limits,
    peer_bound,
)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().flatten().clone().view(torch.uint8).numpy().tobytes()


def _expect(condition: bool, message: str) -> None:
    if not condition:  # not `assert`, which python -O leaves out
        raise AssertionError(message)


def assert_near(what: str, got: Tensor, want: Tensor, limit: Tensor) -> None:
    """Same non-finite values in the same places, the rest off by at most `limit`."""
    shapes = f"{what}: shape {list(got.shape)}, expected {list(want.shape)}"
    _expect(got.shape == want.shape, shapes)
    if got.numel() == 0:
        return
    got = got.double()
    finite = want.isfinite()
    same = torch.where(finite, got.isfinite(), (got == want) | (got.isnan() & want.isnan()))
    error = (got - want).abs()
    inside = torch.where(finite, error <= limit, True)
    good = same & inside
    if good.all():
        return
    badness = torch.where(same, torch.where(finite, error / limit, 0.0), math.inf)
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


def check_out(
    case: DecodeCase,
    inputs: Inputs,
    got: Tensor,
    want: Tensor,
    weights_dtype: Weights | None = None,
) -> None:
    """`out` against the reference: every element, and the direction as a whole.

    `weights_dtype` is what the kernel rounds its softmax weights to; None: as on this CPU.
    """
    if weights_dtype is None:
        weights_dtype = cpu_weights_dtype(inputs.query, inputs.value_cache)
    limits = [
        out_limits(case.dtype, case.head_dim, length, case.score_std, weights_dtype)
        for length in inputs.seq_lens.tolist()
    ]
    _expect(got.dtype == case.dtype, f"{case.id}: out is {got.dtype}")
    assert_near(f"{case.id}: out", got, want, bound(want, limits))
    off = misdirection(got, want)
    _expect(off <= LIMITS[case.dtype].cosine, f"{case.id}: 1 - cos = {off:.3g}")


def check_lse(case: DecodeCase, inputs: Inputs, got: Tensor, want: Tensor) -> None:
    limits = [lse_limits(case.head_dim, n, case.score_std) for n in inputs.seq_lens.tolist()]
    _expect(got.dtype == torch.float32, f"{case.id}: lse is {got.dtype}")
    assert_near(f"{case.id}: lse", got, want, bound(want, limits))


def check_against_peer(case: DecodeCase, inputs: Inputs, got: Tensor, want: Tensor) -> None:
    """The largest error is at most twice that of PyTorch's own attention in the same dtype."""
    if got.numel() == 0:
        return
    ours = (got.double() - want).abs().max().item()
    limit = peer_bound(sdpa(*inputs, scale=case.scale), want)
    _expect(ours <= limit, f"{case.id}: {ours:.3g}, PyTorch allows {limit:.3g}")
