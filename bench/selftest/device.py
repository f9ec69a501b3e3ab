"""What the steps share: the device and its names, tensors there, the vendor's operators."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kernels.sim import chip_names
from ...kernels.sim.report import chip_parameters

Figures = dict[str, Any]

DEVICE = "npu"


class Skipped(Exception):
    """Why a step has nothing to do here."""


def torch_npu() -> Any:
    """The module: where there is none, a step fails and nothing else."""
    return importlib.import_module("torch_npu")


def virtual() -> bool:
    return "PA_HP_VNPU" in os.environ


def kind() -> str:
    """What times of events are."""
    return "modelled" if virtual() else "measured"


def chip() -> str:
    """Name of the modelled chip that is this one, or the nearest: with as many cube cores."""
    name = torch_npu().npu.get_device_name().removeprefix("Ascend")
    for known in chip_names():
        if name.startswith(known):
            return known
    cores = getattr(torch_npu().npu.get_device_properties(0), "cube_core_num", 24)
    return next((c for c in chip_names() if chip_parameters(c, ["cube_cores"]) == [cores]), "910B2")


def on_device(tensor: Tensor) -> Tensor:
    """A copy with the same strides, and with what lies between the elements."""
    flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return flat.to(DEVICE).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def ifa_call(inputs: Sequence[Tensor], lengths: list[int], scale: float) -> Callable[[], Tensor]:
    """A call of npu_incre_flash_attention; `inputs` are on the NPU."""
    query, key_cache, value_cache, block_table, _ = inputs
    arguments = query.view(query.size(0), 1, -1), key_cache.flatten(2), value_cache.flatten(2)
    options: dict[str, Any] = {
        "num_heads": query.size(1),
        "num_key_value_heads": key_cache.size(2),
        "input_layout": "BSH",
        "scale_value": scale,
        "block_table": block_table,
        "actual_seq_lengths": lengths,
        "block_size": key_cache.size(1),
    }
    return lambda: torch_npu().npu_incre_flash_attention(*arguments, **options)


def atb_call(inputs: Sequence[Tensor], lengths: list[int], scale: float) -> Callable[[], Tensor]:
    """A call of _npu_paged_attention, whose lengths lie on the host."""
    query, key_cache, value_cache, block_table, _ = inputs
    lens = torch.tensor(lengths, dtype=torch.int32)
    heads = key_cache.size(2), query.size(1)

    def call() -> Tensor:
        out = torch.empty_like(query)
        torch_npu()._npu_paged_attention(
            query, key_cache, value_cache, *heads, scale, block_table, lens, out
        )
        return out

    return call


def for_peers(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Without NaN in dead memory and impossible ids, with which peers need not cope."""
    query, key_cache, value_cache, block_table, seq_lens = inputs
    table = block_table.clamp(max=key_cache.size(0) - 1)
    return [query, key_cache.nan_to_num(), value_cache.nan_to_num(), table, seq_lens]
