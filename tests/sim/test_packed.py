"""Packed configurations of the builtins against numpy models of their fields."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pa_hp import sim

HERE = Path(__file__).parent
BYTES = 0x8000


@pytest.fixture(scope="module")
def kernel():
    return sim.Kernel(HERE / "packed.cce", "packed", cores="aiv")


def run(kernel, what, copy=0, two=0, one=0):
    random = np.random.default_rng(what)
    image = random.uniform(0.5, 2, 2 * BYTES // 4).astype(np.float32)
    if what == 7:
        image = random.uniform(0.5, 2, BYTES).astype(np.float16).view(np.float32)
    out = torch.zeros(BYTES // 4)
    fields = torch.tensor([w - 2**64 if w >= 2**63 else w for w in (what, copy, two, one)])
    report = kernel.launch(1, fields, torch.from_numpy(image), out, soc=None)
    assert not report.hazards
    return image[: BYTES // 4], image[BYTES // 4 :], out.numpy()


def blocks(repeats, block, repeat):
    """Number of the 32-byte block of [repeat, block in the repeat]."""
    return np.arange(repeats)[:, None] * repeat + np.arange(8) * block


@pytest.mark.parametrize("what", [0, 1])
@pytest.mark.parametrize(
    "bursts, length, src_gap, dst_gap", [(1, 700, 0, 0), (5, 7, 3, 2), (9, 1, 0, 4)]
)
def test_copy(kernel, what, bursts, length, src_gap, dst_gap):
    config = bursts << 4 | length << 16 | src_gap << 32 | dst_gap << 48
    before, _, out = run(kernel, what, copy=config)
    want = before.reshape(-1, 8).copy() if what == 0 else np.zeros((BYTES // 32, 8), np.float32)
    for i in range(bursts):
        to, of = i * (length + dst_gap), i * (length + src_gap)
        want[to : to + length] = before.reshape(-1, 8)[of : of + length]
    np.testing.assert_array_equal(out, want.reshape(-1))


@pytest.mark.parametrize("what, model", [(2, np.add), (3, np.divide)])
def test_two_sources(kernel, what, model):
    config = 1 | 2 << 8 | 1 << 16 | 8 << 24 | 16 << 32 | 9 << 40 | 5 << 56
    a, b, out = run(kernel, what, two=config)
    want = a.reshape(-1, 8).copy()
    want[blocks(5, 1, 8)] = model(
        a.reshape(-1, 8)[blocks(5, 2, 16)], b.reshape(-1, 8)[blocks(5, 1, 9)]
    )
    np.testing.assert_allclose(out, want.reshape(-1), rtol=3e-7)


@pytest.mark.parametrize("what, model", [(4, np.sqrt), (5, lambda x: x * np.float32(3))])
def test_one_source(kernel, what, model):
    config = 2 | 1 << 16 | 16 << 32 | 11 << 40 | 6 << 56
    a, _, out = run(kernel, what, one=config)
    want = a.reshape(-1, 8).copy()
    want[blocks(6, 2, 16)] = model(a.reshape(-1, 8)[blocks(6, 1, 11)])
    np.testing.assert_allclose(out, want.reshape(-1), rtol=3e-7)


def test_narrowing(kernel):
    a, _, out = run(kernel, 6, one=1 | 1 << 16 | 4 << 32 | 8 << 40 | 7 << 56)
    want = a.view(np.float16).copy()
    want[: 7 * 64] = a[: 7 * 64].astype(np.float16)
    np.testing.assert_array_equal(out.view(np.uint16), want.view(np.uint16))


def test_widening(kernel):
    a, _, out = run(kernel, 7, one=1 | 1 << 16 | 8 << 32 | 4 << 40 | 7 << 56)
    want = a.copy()
    want[: 7 * 64] = a.view(np.float16)[: 7 * 64].astype(np.float32)
    np.testing.assert_array_equal(out.view(np.uint32), want.view(np.uint32))
