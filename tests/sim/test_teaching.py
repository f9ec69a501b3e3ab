"""The teaching kernels: right, clean in every mode, and every synchronisation in them is needed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pa_hp import sim

HERE = Path(__file__).parent / "kernels"


@dataclass
class Teaching:
    """One kernel with its arguments and the answer that they must give."""

    cores: str
    block_dim: int
    args: list[Any]
    out: int  # which argument holds the result
    expected: np.ndarray
    atol: float


def axpy():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(7 * 4096, generator=generator) for _ in range(2))
    expected = np.float32(0.5) * x.numpy() + y.numpy()
    return Teaching("aiv", 2, [x, y, 0.5, 7], 1, expected, 0.0)


def matmul():
    generator = torch.Generator().manual_seed(0)
    m, n, k = 128, 384, 256
    a = torch.randn(m, k, generator=generator).half()
    b = torch.randn(n, k, generator=generator).half()
    c = torch.zeros(m, n)
    expected = a.numpy().astype(np.float64) @ b.numpy().astype(np.float64).T
    # fp32 sums of 256 products of unit normals: far below 256 * 2^-24 * 256.
    return Teaching("aic", 2, [a, b, c, m, n, k], 2, expected, 256 * 256 * 2**-24)


def score_exp():
    generator = torch.Generator().manual_seed(0)
    tiles = 7
    q = torch.randn(64, 128, generator=generator).half()
    k = torch.randn(tiles * 128, 128, generator=generator).half()
    out = torch.zeros(tiles, 64, 128, dtype=torch.float16)
    workspace = torch.full((2, 2, 64, 128), torch.nan)
    scale = 128**-0.5
    scores = q.numpy().astype(np.float64) @ k.numpy().astype(np.float64).T * scale
    expected = np.exp(scores).reshape(64, tiles, 128).transpose(1, 0, 2)
    # fp16 rounding of values up to exp(5).
    return Teaching("mix", 2, [q, k, out, workspace, scale, tiles], 2, expected, 148 * 2**-11)


KERNELS = {"axpy": axpy, "matmul": matmul, "score_exp": score_exp}


@pytest.fixture(params=KERNELS)
def teaching(request):
    case = KERNELS[request.param]()
    source = HERE / f"{request.param}.cce"
    return sim.Kernel(source, request.param, cores=case.cores), KERNELS[request.param]


def run(kernel, make, **options):
    case = make()
    report = kernel.launch(case.block_dim, *case.args, strict_visibility=True, **options)
    return case, report


def test_right_and_clean_under_every_schedule(teaching):
    kernel, make = teaching
    first = None
    for latest in (False, True):
        for seed in range(50):
            case, report = run(kernel, make, latest=latest, schedule_seed=seed)
            out = case.args[case.out].numpy().astype(np.float64)
            assert report.hazards == [], (latest, seed, report.hazards)
            assert np.abs(out.reshape(case.expected.shape) - case.expected).max() <= case.atol
            first = out if first is None else first
            assert np.array_equal(out, first)


def test_every_synchronisation_is_needed(teaching):
    """Each one left out, as if its line were not there, is reported."""
    kernel, make = teaching
    _, report = run(kernel, make)
    assert len(report.sync_sites) >= 8
    unnoticed = [site for site in report.sync_sites if not run(kernel, make, drop=site)[1].hazards]
    assert unnoticed == []


# The waits behind a kernel's last loop have nothing left to order: they take back the flags that it
# set before the loop, and the counts that it has not used.
BALANCE_ONLY = {
    "axpy": {"vector axpy.cce:42 wait_flag", "vector axpy.cce:43 wait_flag"},
    "matmul": {f"cube matmul.cce:{line} wait_flag" for line in (69, 70, 71)},
    "score_exp": {
        *(f"cube score_exp.cce:{line} wait_flag" for line in (69, 70, 72)),
        "cube score_exp.cce:73 wait_flag_dev",
        *(f"vector score_exp.cce:{line} wait_flag" for line in (109, 110)),
    },
}


def test_every_wait_orders_something(teaching):
    """A wait that consumes its flag and orders nothing leaves a hazard."""
    kernel, make = teaching
    _, report = run(kernel, make)
    waits = [site for site in report.sync_sites if "wait" in site or "barrier" in site]
    unnoticed = {site for site in waits if not run(kernel, make, drop=site, blind=True)[1].hazards}
    assert unnoticed == BALANCE_ONLY[kernel.entry]
