"""The NPU kernel's sources give no warning, with an address space per memory."""

import subprocess

import pytest
from pa_hp.kernels.sim import toolchain
from pa_hp.ops import simulate

KERNEL = simulate._SOURCE


def compile_half(clang, half, *more):
    # The simulator's header is a system header here: its own warnings are not the kernel's.
    command = [clang, "-x", "c++", "-std=c++17", "-fsyntax-only"]
    command += ["-Wall", "-Wextra", "-Werror", "-DPA_SIM_STRICT=1", f"-D{toolchain.HALVES[half]}=1"]
    command += ["-isystem", str(toolchain.INCLUDE), "-include", "cce.h"]
    command += [f"-I{KERNEL.parent}", *map(str, more)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("half", toolchain.HALVES)
def test_no_warning(clang, half):
    done = compile_half(clang, half, KERNEL)
    assert done.returncode == 0 and done.stderr == "", done.stderr


@pytest.mark.parametrize("half", toolchain.HALVES)
@pytest.mark.parametrize(
    "line",
    [
        "inline void f() { int unused; }",
        "inline __cbuf__ float* f(__ubuf__ float* p) { return p; }",
    ],
    ids=["unused", "mixed_memories"],
)
def test_a_mistake_is_seen(clang, half, line, tmp_path):
    source = tmp_path / "spoilt.cce"
    source.write_text(f'#include "{KERNEL}"\n{line}\n')
    assert compile_half(clang, half, source).returncode != 0
