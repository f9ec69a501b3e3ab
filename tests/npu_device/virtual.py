"""What the tests share: tensors on the device, and the virtual NPU's side door."""

import contextlib
import ctypes
import os
from pathlib import Path

import torch


def on_device(tensor, device="npu"):
    """A copy with the strides and the storage offset of `tensor`."""
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class Runtime:
    """The virtual NPU's own library: what only a test may ask of it."""

    def __init__(self):
        self.library = ctypes.CDLL(str(Path(os.environ["PA_HP_VNPU"]) / "libascendcl.so"))
        self.library.vnpu_counter.restype = ctypes.c_int64

    def delay(self, stream, milliseconds):
        """Keep a stream busy."""
        pointer = ctypes.c_void_p(stream.npu_stream)
        assert self.library.vnpu_delay(pointer, ctypes.c_int64(1000 * milliseconds)) == 0

    @contextlib.contextmanager
    def no_tasks(self):
        """Tasks are taken and not run: what remains is the host's work. No events within."""
        torch.npu.synchronize()
        self.library.vnpu_drop_tasks(ctypes.c_bool(True))
        try:
            yield
        finally:
            torch.npu.synchronize()
            self.library.vnpu_drop_tasks(ctypes.c_bool(False))

    def counter(self, name):
        """How often it happened in this process: see Counters in runtime.h."""
        value = self.library.vnpu_counter(name.encode())
        assert value >= 0, name
        return value

    def call_on_stream(self, stream, function, argument):
        """Enqueue a C function of one pointer."""
        launch = self.library.aclrtLaunchHostFunc
        address = ctypes.cast(function, ctypes.c_void_p)
        pointer = ctypes.c_void_p(stream.npu_stream)
        assert launch(pointer, address, ctypes.c_void_p(argument)) == 0
