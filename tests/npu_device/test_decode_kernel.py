"""The project's own kernel, launched by launch.cpp on NPU tensors, against the reference."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch
from pa_hp import build
from pa_hp.ops import simulate
from pa_hp.ops.reference import reference
from pa_hp.tiling.plan import plan

KERNELS = Path(build.__file__).parent / "kernels"
CLUSTERS = 4
BATCH, HEADS, KV_HEADS, DIM, PAGE = 3, 8, 2, 64, 16


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """launch.cpp with the virtual NPU's launch syntax, and the kernel that it launches."""
    from pa_hp.kernels.sim import vnpu

    vnpu.register(simulate.kernel())
    target = tmp_path_factory.mktemp("launch") / "launch.so"
    command = [build.compiler(), "-std=c++17", "-shared", "-fPIC", "-o", str(target)]
    command += ["-include", str(KERNELS / "sim/runtime/launch.h"), str(KERNELS / "npu/launch.cpp")]
    command += [f"-L{os.environ['PA_HP_VNPU']}", "-lascendcl"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target)).pa_hp_npu_launch


def test_decode(launch):
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(BATCH, HEADS, DIM, generator=generator).half()
    k, v = torch.randn(2, 12, PAGE, KV_HEADS, DIM, generator=generator).half()
    table = torch.randperm(12, generator=generator).int().reshape(BATCH, 4)
    lengths = torch.tensor([50, 0, 17], dtype=torch.int32)
    tensors = [q, k, v, table, lengths]
    on_device = [tensor.npu() for tensor in tensors]
    out = torch.empty_like(on_device[0])
    scale = DIM**-0.5
    the_plan = plan(simulate.describe(*tensors[:4], q, scale, CLUSTERS))
    words = the_plan.pack()
    workspace = torch.empty(CLUSTERS * the_plan.ws_bytes, dtype=torch.uint8, device="npu")
    pointers = [tensor.data_ptr() for tensor in [*on_device, out]] + [0]
    params = (ctypes.c_uint64 * 64)(*pointers)

    def enqueue():
        stream = torch.npu.current_stream().npu_stream
        addresses = [words.ctypes.data, workspace.data_ptr()]
        arguments = [*map(ctypes.c_void_p, addresses), CLUSTERS, ctypes.c_void_p(stream)]
        assert launch(ctypes.byref(params), *arguments) == 0

    def check():
        wanted = reference(q, k, v, table, on_device[4].cpu(), scale=scale)
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        torch.testing.assert_close(out.cpu().float(), wanted.float(), rtol=2e-3, atol=2e-3)

    enqueue()
    check()
    # Captured once, replayed with other lengths: the host does not look at them.
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        enqueue()
    on_device[4].add_(torch.tensor([3, 9, 0], dtype=torch.int32, device="npu"))
    graph.replay()
    check()
