"""The op on the NPU: its library, loaded with the first tensor from there, and its planner."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from .. import build
from ..kernels.npu import toolchain
from ..tiling.plan import DTYPES, DecodeDesc, plan

# DecodeParams of kernels/params.h behind its seven pointers: sizes, strides, scale, dtype.
_SHAPE = struct.Struct("@56x20qfi")
_DTYPES = {number: name for name, number in DTYPES.items()}


def _say(message: ctypes.c_void_p, size: int, error: BaseException) -> None:
    text = (str(error) or type(error).__name__).encode()[: size - 1] + b"\0"
    ctypes.memmove(message, text, len(text))


@ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int64)
def _loader(message: Any, size: int) -> bool:
    """Of kernels/proxy.cpp."""
    try:
        build.load("npu")
    except BaseException as error:  # all of them: nothing passes through C
        _say(message, size, error)
        return False
    return True


@ctypes.CFUNCTYPE(
    ctypes.c_bool,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
)
def _planner(shape: Any, clusters: int, result: Any, message: Any, size: int) -> bool:
    """Of kernels/npu/entry.cpp."""
    try:
        words = plan(describe(_SHAPE.unpack(ctypes.string_at(shape, _SHAPE.size)), clusters)).pack()
        ctypes.memmove(result, words.ctypes.data, words.nbytes)
    except BaseException as error:
        _say(message, size, error)
        return False
    return True


def describe(fields: tuple[Any, ...], clusters: int) -> DecodeDesc:
    """What a plan depends on, from the fields of a DecodeParams behind its pointers."""
    sizes, strides, (scale, dtype) = fields[:9], fields[9:20], fields[20:]
    values: list[Any] = [_DTYPES[dtype], *sizes[:3], *sizes[4:], scale, clusters]  # not the group
    values += [strides[:2], strides[2:5], strides[5:8], strides[8], strides[9:]]
    return DecodeDesc(*values)


def install(library: ctypes.CDLL) -> None:
    """Tell the library that every machine has how to load the NPU's."""
    library.pa_hp_npu_set_loader(_loader)


def provide(library: ctypes.CDLL, backend: ctypes.CDLL) -> None:
    """Give the functions of the NPU's library to the one that every machine has.

    Raises BuildError on a chip that the kernel is not for.
    """
    backend.pa_hp_npu_soc.restype = ctypes.c_char_p
    toolchain.expect_soc(backend.pa_hp_npu_soc().decode())
    if toolchain.find().name == "simulator":
        from ..kernels.sim import vnpu
        from .simulate import kernel

        vnpu.register(kernel())
    backend.pa_hp_npu_backend.restype = ctypes.c_void_p
    library.pa_hp_npu_provide(ctypes.c_void_p(backend.pa_hp_npu_backend(_planner)))
