"""Kernels launched on a stream run in the simulator."""

import ctypes
from pathlib import Path

import pytest
import test_op
import torch
from pa_hp import sim

SOURCE = Path(__file__).parent.parent / "sim" / "kernels" / "axpy.cce"
TILE = 4096
BLOCKS = 4


@pytest.fixture(scope="module")
def axpy():
    from pa_hp.kernels.sim import vnpu

    kernel = sim.Kernel(SOURCE, "axpy", cores="aiv")
    vnpu.register(kernel)
    return kernel


def launch(runtime, kernel, x, y, a, tiles):
    """y <- a * x + y on the current stream."""
    factor = int.from_bytes(bytes(ctypes.c_float(a)), "little")
    words = (ctypes.c_uint64 * 4)(x.data_ptr(), y.data_ptr(), factor, tiles)
    stream = ctypes.c_void_p(torch.npu.current_stream().npu_stream)
    stub = ctypes.c_void_p(id(kernel))
    return runtime.library.rtKernelLaunch(stub, BLOCKS, words, ctypes.sizeof(words), None, stream)


def test_launch(runtime, axpy):
    x, y = torch.randn(2, 6 * TILE)
    on_device, result = x.npu(), y.npu()
    begin, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    begin.record()
    assert launch(runtime, axpy, on_device, result, 2.5, 6) == 0
    end.record()
    torch.testing.assert_close(result.cpu(), 2.5 * x + y)
    report = axpy.launch(BLOCKS, x, y.clone(), 2.5, 6)
    assert begin.elapsed_time(end) * 1000 == pytest.approx(report.time_us, rel=0.01)


def test_replay(runtime, axpy):
    x, y = torch.ones(TILE, device="npu"), torch.zeros(TILE, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        assert launch(runtime, axpy, x, y, 1.0, 1) == 0
    for step in range(3):
        x.fill_(step + 1)
        graph.replay()
    assert torch.equal(y.cpu(), torch.full((TILE,), 6.0))


def test_out_of_bounds_is_named_and_the_process_goes_on(runtime, axpy):
    x = torch.zeros(TILE, device="npu")
    assert launch(runtime, axpy, x, x, 1.0, 1 << 20) == 0
    with pytest.raises(RuntimeError, match="rtKernelLaunch"):
        torch.npu.synchronize()
    y = torch.ones(TILE, device="npu")
    assert launch(runtime, axpy, y, y, 2.0, 1) == 0
    assert torch.equal(y.cpu(), torch.full((TILE,), 3.0))
    test_op.test_answers(test_op.CLASSES[0])  # and so does a decode


def test_a_chip_binary_is_refused(runtime):
    from pa_hp.kernels.sim import vnpu

    binary = vnpu._Binary(0, 0, b"\x7fELF", 4)
    handle = ctypes.c_void_p()
    error = runtime.library.rtDevBinaryRegister(ctypes.byref(binary), ctypes.byref(handle))
    assert error != 0
