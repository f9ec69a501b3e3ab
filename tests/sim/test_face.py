"""The Python face: strict builds, wrong calls, reports that do not depend on where tensors lie."""

import platform
import re
import subprocess
from pathlib import Path

import numpy as np
import pa_hp
import pytest
import torch
from pa_hp import sim
from pa_hp.kernels.sim import toolchain

HERE = Path(__file__).parent


@pytest.fixture
def strict_builds(clang):
    if platform.machine() != "x86_64":
        pytest.skip("strict builds are for x86-64")


@pytest.mark.usefixtures("strict_builds")
def test_plain_dereference_of_ub_reaches_the_running_core():
    kernel = sim.Kernel(HERE / "strict.cce", "run", cores="aiv", strict=True)
    x, y = torch.full((8,), 5.0), torch.zeros(3 * 8)
    assert kernel.launch(3, x, y).hazards == []
    assert y.view(3, 8)[:, :2].tolist() == [[5, 5], [5, 7], [5, 9]]


@pytest.mark.usefixtures("strict_builds")
def test_mixing_memories_does_not_compile():
    with pytest.raises(
        pa_hp.BuildError, match="no matching function for call to 'copy_ubuf_to_gm'"
    ):
        sim.Kernel(HERE / "strict.cce", "run", cores="aiv", strict=True, defines=["MIXED_UP"])


@pytest.mark.usefixtures("strict_builds")
@pytest.mark.parametrize("name, cores", [("axpy", "aiv"), ("matmul", "aic"), ("score_exp", "mix")])
def test_teaching_kernels_build_strictly_without_a_warning(name, cores, clang):
    source = HERE / "kernels" / f"{name}.cce"
    assert sim.Kernel(source, name, cores=cores, strict=True, defines=[]).signature
    flags = ["-x", "c++", "-std=c++17", "-Wall", "-Werror", "-fsyntax-only"]
    flags += ["-DPA_SIM_STRICT=1", f"-I{toolchain.INCLUDE}", "-include", "cce.h"]
    for half in {"aiv": ["vector"], "aic": ["cube"], "mix": ["cube", "vector"]}[cores]:
        command = [clang, *flags, f"-D{toolchain.HALVES[half]}=1", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


STRUCT = """
#include <cstdint>
struct Plan { int64_t a; int32_t b; float c; int32_t d; };
extern "C" __global__ __aicore__ void run(__gm__ int64_t* out, Plan plan, int32_t last) {
  if (block_idx != 0 || get_subblockid() != 0) return;
  out[0] = plan.a; out[1] = plan.b; out[2] = int64_t(8 * plan.c); out[3] = plan.d; out[4] = last;
}
"""
PLAN = np.dtype([("a", "<i8"), ("b", "<i4"), ("c", "<f4"), ("d", "<i4")], align=True)


def test_a_struct_is_passed_by_value(tmp_path):
    source = tmp_path / "struct.cce"
    source.write_text(STRUCT)
    kernel = sim.Kernel(source, "run", cores="aiv")
    out = torch.zeros(5, dtype=torch.int64)
    kernel.launch(1, out, np.array([(2**40, -3, 0.5, 7)], PLAN), -9, check=False)
    assert out.tolist() == [2**40, -3, 4, 7, -9]
    with pytest.raises(ValueError, match="argument 1 to be a numpy array of 24 bytes, got array"):
        kernel.launch(1, out, np.zeros(2), -9)


AXPY = HERE / "kernels" / "axpy.cce"


def test_wrong_type_does_not_compile(tmp_path):
    source = tmp_path / "wrong.cce"
    source.write_text(AXPY.read_text().replace("vadd(y_tile, x_tile", "vadd((half*)y_tile, x_tile"))
    with pytest.raises(pa_hp.BuildError, match=r"(?s)error: no matching function.*whole log: "):
        sim.Kernel(source, "axpy", cores="aiv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, torch.zeros(8)), "axpy: expected 4 arguments, got 1"),
        ((1, 3, None, 0.5, 0), "axpy: expected argument 0 to be a CPU tensor or None, got 3"),
        ((1, None, None, None, 0), "axpy: expected argument 2 to be a number of float32, got None"),
        ((1, None, None, 0.5, 0.5), "axpy: expected argument 3 to be an int of int32, got 0.5"),
        ((1, None, None, 0.5, 2**31), "to be an int of int32, got 2147483648"),
        ((1, None, None, 10**400, 0), "argument 2 to be a number of float32, got 1000"),
        ((1, None, None, 1e40, 0), "argument 2 to be a number of float32, got 1e+40"),
        ((0, None, None, 0.5, 0), "sim.Kernel: expected block_dim to be at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    kernel = sim.Kernel(AXPY, "axpy", cores="aiv")
    with pytest.raises(ValueError, match=re.escape(message)):
        kernel.launch(*arguments)


def test_wrong_options():
    with pytest.raises(ValueError, match="expected cores to be mix, aic or aiv, got 'gpu'"):
        sim.Kernel(AXPY, "axpy", cores="gpu")
    with pytest.raises(ValueError, match=r"expected path to be a file, got 'no\.cce'"):
        sim.Kernel("no.cce", "axpy")
    with pytest.raises(ValueError, match="expected soc to be one of 910B1, 910B2, 910B3, 910B4"):
        sim.Kernel(AXPY, "axpy", cores="aiv").launch(1, None, None, 0.5, 0, soc="910C")


def test_an_edit_of_the_source_or_a_header_is_a_new_build(tmp_path):
    (tmp_path / "factor.h").write_text("#define FACTOR 2\n")
    source = tmp_path / "k.cce"
    source.write_text(
        '#include "factor.h"\n'
        'extern "C" __global__ __aicore__ void k(__gm__ int32_t* y) { y[0] = FACTOR; }\n'
    )
    results = []
    for factor in (2, 3):
        (tmp_path / "factor.h").write_text(f"#define FACTOR {factor}\n")
        y = torch.zeros(1, dtype=torch.int32)
        sim.Kernel(source, "k", cores="aiv").launch(1, y)
        results.append(y.item())
    assert results == [2, 3]


@pytest.mark.parametrize("offset", [0, 8, 24])
def test_report_does_not_depend_on_where_tensors_lie(offset):
    """Same modelled time and findings for a copy of the tensors at another alignment."""
    kernel = sim.Kernel(HERE / "cross_core.cce", "run", defines=["NO_WAIT"])
    base = kernel.launch(2, torch.zeros(1024), torch.zeros(1024), schedule_seed=7)
    buffer = torch.zeros(2, 1024 + offset)
    tensors = [row[offset:].clone() if offset == 0 else row.clone()[offset:] for row in buffer]
    moved = kernel.launch(2, *tensors, schedule_seed=7)
    assert moved.time_us == pytest.approx(base.time_us, rel=0.02 if offset else 0)
    assert [f.kind for f in moved.hazards] == [f.kind for f in base.hazards]
