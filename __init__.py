"""Paged-attention decode as a PyTorch operator: ``torch.ops.pa_hp.decode``.

Importing builds nothing; the native library is built on the first use of an op, or by
``pa_hp.load()``.
"""

import importlib
from typing import Any

from ._version import __version__
from .build import BuildError, load
from .ops.compat import npu_incre_flash_attention, npu_paged_attention
from .ops.decode import decode, decode_lse, decode_out
from .ops.namespace import install as _install
from .ops.patch import patch, patched, unpatch
from .ops.reference import reference

_install()

__all__ = [
    "BuildError",
    "__version__",
    "decode",
    "decode_lse",
    "decode_out",
    "load",
    "npu_incre_flash_attention",
    "npu_paged_attention",
    "patch",
    "patched",
    "reference",
    "sim",
    "simulate",
    "tiling",
    "unpatch",
]


def __getattr__(name: str) -> Any:
    """The simulator and the tiling are imported when they are asked for."""
    if name == "sim":
        from .kernels import sim

        return sim
    if name == "simulate":
        from .ops.simulate import simulate

        return simulate
    if name == "tiling":
        return importlib.import_module(".tiling", __name__)
    raise AttributeError(f"module 'pa_hp' has no attribute {name!r}")
