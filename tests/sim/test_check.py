"""Every kind of finding has a kernel that provokes it; without the mistake there is none."""

from pathlib import Path

import pytest
import torch
from pa_hp import sim

HERE = Path(__file__).parent
TILE = 1024

# Macro -> what the finding says: kind, and what its message must hold.
FINDINGS = {
    "OUT_OF_UB": ("out of bounds", "UB[195584, 199680), which has 196608 bytes"),
    "MISALIGNED": ("misaligned", "address 4 in UB is not a multiple of 32"),
    "OUT_OF_TENSOR": ("out of bounds", "GM argument 0[64, 4160), which has 4096 bytes"),
    "SCALAR_OUT_OF_TENSOR": ("out of bounds", "(scalar load) GM argument 0[4096, 4100)"),
    "SET_TWICE": ("flag set twice", "flag MTE2->V 0 set at findings.cce:"),
    "NO_WAIT": ("RAW", "UB[0, 4096): AIV 0.0 V reads at findings.cce:"),
    "ARGUMENT": ("argument out of range", "repeat is 256, which does not fit in its 8 bits"),
    "HALF_OF_IT": ("uninitialised", "GM argument 1[2048, "),
    "NO_BARRIER": (
        "RAW",
        "AIV 0.0 V reads at findings.cce:39 (vadd) what V wrote at findings.cce:36",
    ),
    "OVERWRITE": ("WAR", "MTE2 writes at findings.cce:42 (copy_gm_to_ubuf) what V read"),
    "WRITE_TWICE": ("WAW", "MTE2 writes at findings.cce:45 (copy_gm_to_ubuf) what V wrote"),
    "LEFT_OVER": ("flag left over", "flag V->MTE2 3 set at findings.cce:48 is never waited for"),
    "NEVER_SET": ("deadlock", "pipe V waits at findings.cce:51 for flag MTE2->V 5"),
    "NO_SUCH_PAIR": ("no such pipe pair", "a vector core has no flag M->V"),
    "EVENT": ("argument out of range", "event id is 9, the hardware has 0 to 7"),
    "SCALAR_TOO_EARLY": ("RAW", "AIV 0.0 S reads at "),
}


def tensors():
    return torch.arange(TILE, dtype=torch.float32), torch.zeros(TILE)


@pytest.mark.parametrize("latest", [False, True])
def test_without_a_mistake_nothing_is_found(latest):
    x, y = tensors()
    kernel = sim.Kernel(HERE / "findings.cce", "run", cores="aiv")
    report = kernel.launch(1, x, y, latest=latest, strict_visibility=True)
    assert report.hazards == []
    torch.testing.assert_close(y, 2 * x, rtol=0, atol=0)


@pytest.mark.parametrize("macro", FINDINGS)
def test_mistake_is_found(macro):
    kind, text = FINDINGS[macro]
    kernel = sim.Kernel(HERE / "findings.cce", "run", cores="aiv", defines=[macro])
    report = kernel.launch(1, *tensors())
    matching = [finding for finding in report.hazards if finding.kind == kind]
    assert any(text in finding.message for finding in matching), report.hazards


@pytest.mark.parametrize("macro", ["NO_WAIT", "OVERWRITE", "NO_BARRIER"])
def test_missing_synchronisation_shows_as_a_wrong_value_in_latest_mode(macro):
    right, wrong = (
        sim.Kernel(HERE / "findings.cce", "run", cores="aiv", defines=defines)
        for defines in ([], [macro])
    )
    x, y = tensors()
    right.launch(1, x, y, latest=True)
    z = torch.zeros(TILE)
    wrong.launch(1, x, z, latest=True)
    if macro == "NO_WAIT":  # the sum of what the buffer held before the load
        assert not torch.equal(y, z)
    else:  # the checker is what finds these: pipes run in order, so the values happen to be right
        assert wrong.launch(1, x, z, latest=True).hazards


CROSS_CORE = {
    "NO_FENCE": ("no fence", "whose signal came without pipe_barrier and dsb before it"),
    "NO_WAIT": ("RAW", "AIC 0 MTE2 reads at cross_core.cce:"),
    "ONE_SIDED": ("deadlock", "AIC 0 waits at cross_core.cce:31 for cross-core counter 0"),
    "OVERFLOW": ("counter overflow", "cross-core counter 0 passes 15"),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("latest", [False, True])
def test_a_signal_behind_a_fence_orders_cores(latest, seed):
    x, y = tensors()
    kernel = sim.Kernel(HERE / "cross_core.cce", "run")
    report = kernel.launch(1, x, y, latest=latest, strict_visibility=True, schedule_seed=seed)
    assert report.hazards == []
    torch.testing.assert_close(y, x, rtol=0, atol=0)


@pytest.mark.parametrize("macro", CROSS_CORE)
def test_cross_core_mistake_is_found(macro):
    kind, text = CROSS_CORE[macro]
    kernel = sim.Kernel(HERE / "cross_core.cce", "run", defines=[macro])
    report = kernel.launch(1, *tensors(), strict_visibility=True, schedule_seed=1)
    matching = [finding for finding in report.hazards if finding.kind == kind]
    assert any(text in finding.message for finding in matching), report.hazards


def test_unfenced_store_is_fine_unless_visibility_is_strict():
    kernel = sim.Kernel(HERE / "cross_core.cce", "run", defines=["NO_FENCE"])
    assert kernel.launch(1, *tensors()).hazards == []


def test_counter_left_over():
    kernel = sim.Kernel(HERE / "cross_core.cce", "run", defines=["NO_WAIT"])
    report = kernel.launch(1, *tensors())
    assert any(
        f.message == "counter left over: AIC 0: cross-core counter 0 ends at 1"
        for f in report.hazards
    ), report.hazards


def test_uninitialised_memory_that_nobody_uses_is_not_reported():
    """The upper half of the sum is computed from what the load did not write, and not stored."""
    source = HERE / "findings.cce"
    kernel = sim.Kernel(source, "run", cores="aiv", defines=["HALF_OF_IT"])
    x, y = tensors()
    report = kernel.launch(1, x, y)
    assert [f.kind for f in report.hazards] == ["uninitialised"]
    # The result of the launch itself stands, whatever the second run that found it has done.
    torch.testing.assert_close(y[: TILE // 2], 2 * x[: TILE // 2], rtol=0, atol=0)
    assert y[TILE // 2 :].isnan().all()


def test_same_seed_gives_the_same_report():
    kernel = sim.Kernel(HERE / "cross_core.cce", "run", defines=["NO_WAIT"])
    first, second = (kernel.launch(2, *tensors(), schedule_seed=7) for _ in range(2))
    assert first.hazards == second.hazards and first.time_us == second.time_us
