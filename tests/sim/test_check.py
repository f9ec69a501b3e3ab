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


def test_missing_wait_shows_as_a_wrong_value_in_latest_mode():
    """The sum is of what the buffer held before the load, which is NaN."""
    kernel = sim.Kernel(HERE / "findings.cce", "run", cores="aiv", defines=["NO_WAIT"])
    x, y = tensors()
    kernel.launch(1, x, y, latest=True)
    assert y.isnan().all()
    kernel.launch(1, x, y)  # by default the lucky order hides it
    assert torch.equal(y, 2 * x)


CROSS_CORE = {
    "NO_FENCE": ("no fence", "whose signal came without a fence before it"),
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


def run_source(tmp_path, body, *args, cores="aiv", **options):
    """Launch one block of a kernel whose entry has `body`, float tensors x and y, and an int n."""
    source = tmp_path / "case.cce"
    head = (
        'extern "C" __global__ __aicore__ void run(__gm__ float* x, __gm__ float* y, int32_t n) {'
    )
    source.write_text(f"{head}\n{body}\n}}\n")
    return sim.Kernel(source, "run", cores=cores).launch(1, *args, **options)


UB = "__ubuf__ float* a = (__ubuf__ float*)(uintptr_t)0;"


def test_uninitialised_outputs_in_one_page_are_told_apart_and_keep_their_values(tmp_path):
    x, y = torch.zeros(8), torch.zeros(8)  # small ones lie side by side
    body = UB + " copy_ubuf_to_gm(x, a, 0, 1, 1, 0, 0); copy_ubuf_to_gm(y, a + 8, 0, 1, 1, 0, 0);"
    report = run_source(tmp_path, body, x, y, 0)
    assert [f.kind for f in report.hazards] == ["uninitialised"] * 2
    assert x.isnan().all() and y.isnan().all()


def test_null_pointer_and_out_of_bounds_scalars_stop_the_launch(tmp_path):
    for body in ("y[0] = x[n];", "y[n] = 1.0f;"):
        for x, y in ((torch.zeros(8), torch.zeros(8)), (None, None)):
            report = run_source(tmp_path, body, x, y, 1 << 20)
            assert [f.kind for f in report.hazards] == ["stopped", "out of bounds"]
            assert "cannot go on behind the scalar" in report.hazards[0].message, report.hazards
    report = run_source(tmp_path, "y[0] = x[0];", None, None, 0)
    assert "GM through a null pointer" in report.hazards[1].message
    x, y = torch.ones(8), torch.zeros(8)  # and the next launch is none the worse
    assert run_source(tmp_path, "y[0] = x[0];", x, y, 0).hazards == [] and y[0] == 1


def test_a_loop_without_end_stops_the_launch(tmp_path):
    report = run_source(tmp_path, "for (;;) pipe_barrier(PIPE_V);", None, None, 0, check=False)
    assert [f.kind for f in report.hazards] == ["stopped"]
    assert "more than 16777216 operations; AIV 0.0 is at case.cce:2" in report.hazards[0].message


def test_a_wait_of_the_scalar_unit_and_dsb_are_a_fence(tmp_path):
    body = """
    constexpr uint64_t signal = 1 | 2 << 4;
#if defined(__DAV_C220_VEC__)
    if (get_subblockid() == 0) {
      __ubuf__ float* a = (__ubuf__ float*)(uintptr_t)0;
      copy_gm_to_ubuf(a, x, 0, 1, 1, 0, 0);
      set_flag(PIPE_MTE2, PIPE_MTE3, EVENT_ID0);
      wait_flag(PIPE_MTE2, PIPE_MTE3, EVENT_ID0);
      copy_ubuf_to_gm(y, a, 0, 1, 1, 0, 0);
      set_flag(PIPE_MTE3, PIPE_S, EVENT_ID0);
      wait_flag(PIPE_MTE3, PIPE_S, EVENT_ID0);
      dsb(DSB_DDR);
    }
    ffts_cross_core_sync(PIPE_MTE3, signal);
#else
    wait_flag_dev(0);
    copy_gm_to_cbuf((__cbuf__ float*)(uintptr_t)0, y, 0, 1, 1, 0, 0, PAD_NONE);
#endif
    """
    args = torch.ones(8), torch.zeros(8), 0
    report = run_source(tmp_path, body, *args, cores="mix", strict_visibility=True)
    assert report.hazards == []


def test_a_ring_in_one_page_is_not_blamed_for_a_later_read(tmp_path):
    """The cube core reads slot 0, signals, reads slot 1; a vector core then writes slot 0."""
    body = """
    constexpr uint64_t signal = 1 | 2 << 4;
#if defined(__DAV_C220_CUBE__)
    __cbuf__ float* a = (__cbuf__ float*)(uintptr_t)0;
    copy_gm_to_cbuf(a, y, 0, 1, 1, 0, 0, PAD_NONE);
    ffts_cross_core_sync(PIPE_MTE2, signal);
    copy_gm_to_cbuf(a + 8, y + 8, 0, 1, 1, 0, 0, PAD_NONE);
#else
    wait_flag_dev(0);
    if (get_subblockid() == 0) {
      __ubuf__ float* a = (__ubuf__ float*)(uintptr_t)0;
      copy_gm_to_ubuf(a, x, 0, 1, 1, 0, 0);
      set_flag(PIPE_MTE2, PIPE_MTE3, EVENT_ID0);
      wait_flag(PIPE_MTE2, PIPE_MTE3, EVENT_ID0);
      copy_ubuf_to_gm(y, a, 0, 1, 1, 0, 0);
    }
#endif
    """
    for seed in range(4):
        args = torch.ones(8), torch.zeros(16), 0
        assert run_source(tmp_path, body, *args, cores="mix", schedule_seed=seed).hazards == []


def test_a_signal_that_the_other_core_never_joins(tmp_path):
    body = "if (get_subblockid() == 1) ffts_cross_core_sync(PIPE_MTE3, 1 | 2 << 4 | 5 << 8);"
    body = f"#if defined(__DAV_C220_VEC__)\n{body}\n#endif"
    report = run_source(tmp_path, body, None, None, 0, cores="mix")
    assert [f.message for f in report.hazards] == [
        "signal left over: AIV 0.1: signal 5 of mode 2 waits for the other cores of its group, "
        "which never send it"
    ]


def test_a_misspelt_drop_is_refused():
    kernel = sim.Kernel(HERE / "findings.cce", "run", cores="aiv")
    with pytest.raises(ValueError, match=r"expected drop to be one of Report\.sync_sites"):
        kernel.launch(1, *tensors(), drop="vector findings.cce:1 wait_flag")
