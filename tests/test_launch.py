"""kernels/npu/launch.cpp: the host's one C function hands everything on as it is."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pa_hp import build
from pa_hp.tiling.plan import LAYOUT

SOURCE = Path(build.__file__).parent / "kernels" / "npu" / "launch.cpp"

# Stands in for the compiler's launch syntax and for CANN's runtime: records what it is given.
STAND_IN = r"""
#include <cstdint>
#include <initializer_list>
#include <type_traits>
extern "C" { uint64_t seen[16]; int runtime_error; }
template <class A>
uint64_t word(A argument) {
  if constexpr (std::is_class_v<A>) return argument.batch;
  else return uint64_t(argument);
}
template <class... A>
void record(unsigned clusters, void* stream, A... args) {
  int i = 0;
  for (const uint64_t word : {uint64_t(clusters), uint64_t(stream), word(args)...}) {
    seen[i++] = word;
  }
}
#define PA_HP_LAUNCH(kernel, clusters, stream, ...) record(clusters, stream, __VA_ARGS__)
extern "C" int rtGetC2cCtrlAddr(uint64_t* address, uint32_t* length) {
  *address = 0xff75;
  *length = 64;
  return runtime_error;
}
"""
POINTERS = ("query", "key_cache", "value_cache", "block_table", "seq_lens", "out", "lse")


class DecodeParams(ctypes.Structure):
    """The pointers that params.h begins with."""

    _fields_ = [(name, ctypes.c_void_p) for name in POINTERS]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    (folder / "stand_in.h").write_text(STAND_IN)
    target = folder / "launch.so"
    command = [build.compiler(), "-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command += ["-include", str(folder / "stand_in.h"), str(SOURCE), "-o", str(target)]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(target))
    library.pa_hp_npu_launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    library.pa_hp_npu_launch.argtypes += [ctypes.c_uint32, ctypes.c_void_p]
    return library


def launch(library, lse=7, error=0):
    ctypes.c_int.in_dll(library, "runtime_error").value = error
    params = DecodeParams(1, 2, 3, 4, 5, 6, lse)
    plan = np.zeros(1, LAYOUT)
    plan["batch"] = 9
    return library.pa_hp_npu_launch(ctypes.byref(params), plan.ctypes.data, 8, 24, 0x57)


def seen(library):
    return list((ctypes.c_uint64 * 16).in_dll(library, "seen"))


def test_every_argument_in_its_place(library):
    assert launch(library) == 0
    # clusters, stream, flags' address, tensors, workspace, plan by value
    assert seen(library)[:12] == [24, 0x57, 0xFF75, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_an_absent_lse_is_null(library):
    assert launch(library, lse=None) == 0
    assert seen(library)[9] == 0


def test_an_error_of_the_runtime_comes_back_and_nothing_is_launched(library):
    assert launch(library) == 0
    before = seen(library)
    assert launch(library, lse=None, error=507000) == 507000
    assert seen(library) == before
