"""Makes ``torch.ops.pa_hp.decode`` load the library on first use, as ``pa_hp.decode`` does."""

from __future__ import annotations

import types
from typing import Any

import torch

from .. import build


class _LazyOps(types.ModuleType):
    """Stands in for ``torch.ops.pa_hp`` until the first op is asked for, then steps aside."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # inspection, not use
            raise AttributeError(name)
        build.load()
        return getattr(torch.ops.pa_hp, name)


def install() -> None:
    if "cpu" in build.loaded:  # the package is being reloaded
        return
    setattr(torch.ops, "pa_hp", _LazyOps("torch.ops.pa_hp"))  # noqa: B010


def uninstall() -> None:
    """Give the name back to torch; the library has been loaded."""
    torch.ops.__dict__.pop("pa_hp", None)
