"""Fake (meta) kernels: shapes, dtypes and devices without data, for torch.compile and export.

Every check that shapes and dtypes can answer is made here as well, in the words of
``kernels/check.h``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Limits(NamedTuple):
    """As in kernels/check.h."""

    float32: bool
    head_dim_step: int
    head_dim_max: int
    block_size_step: int
    block_size_max: int
    group_max: int


_ANY = 2**63 - 1
CPU_LIMITS = Limits(True, 8, 576, 1, _ANY, _ANY)
NPU_LIMITS = Limits(False, 16, 256, 16, 512, 64)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Checker:
    def __init__(self, op: str, query: Tensor, limits: Limits | None = None) -> None:
        self.op = op
        on_npu = query.device.type == "npu"
        self.limits = limits or (NPU_LIMITS if on_npu else CPU_LIMITS)

    def expect(self, check, condition, argument, rule, value, hint="") -> None:
        check(
            condition,
            lambda: f"pa_hp.{self.op}: expected {argument} to be {rule}, got {value}{hint}",
        )

    def same_dtype(self, name: str, tensor: Tensor, query: Tensor) -> None:
        self.expect(
            torch._check_type,
            tensor.dtype == query.dtype,
            name,
            _name(query.dtype),
            _name(tensor.dtype),
            "; it must have the dtype of query",
        )

    def int32(self, name: str, tensor: Tensor) -> None:
        self.expect(
            torch._check_type,
            tensor.dtype == torch.int32,
            name,
            "int32",
            _name(tensor.dtype),
            "; call .to(torch.int32)",
        )

    def same_device(self, name: str, tensor: Tensor, query: Tensor) -> None:
        self.expect(
            torch._check_value,
            tensor.device == query.device,
            name,
            f"on {query.device}",
            tensor.device,
            "; it must be on the device of query",
        )

    def rank(self, name: str, tensor: Tensor, dims: int, shape: str) -> None:
        self.expect(
            torch._check_value, tensor.dim() == dims, name, f"{dims}-D {shape}", list(tensor.shape)
        )

    def size(self, name: str, tensor: Tensor, dim: int, expected, meaning: str) -> None:
        self.expect(
            torch._check_value,
            tensor.size(dim) == expected,
            f"{name}.size({dim})",
            f"{expected} ({meaning})",
            tensor.size(dim),
        )

    def head_dim(self, name: str, tensor: Tensor) -> None:
        dim, step, most = tensor.size(-1), self.limits.head_dim_step, self.limits.head_dim_max
        for condition in (dim >= 1, dim <= most, dim % step == 0):
            self.expect(
                torch._check_value,
                condition,
                f"{name}.size({tensor.dim() - 1})",
                f"a multiple of {step} up to {most}",
                dim,
            )

    def last_dim_contiguous(self, name: str, tensor: Tensor) -> None:
        if tensor.stride(-1) == 1:
            return
        self.expect(
            torch._check_value,
            tensor.size(-1) <= 1,
            name,
            "contiguous in its last dimension",
            f"stride {tensor.stride(-1)}",
            "; call .contiguous()",
        )

    def inputs(self, query, key_cache, value_cache, block_table, seq_lens) -> None:
        self.expect(
            torch._check_type,
            query.dtype in (torch.float16, torch.bfloat16)
            or (query.dtype == torch.float32 and self.limits.float32),
            "query",
            "float16, bfloat16 or float32" if self.limits.float32 else "float16 or bfloat16",
            _name(query.dtype),
        )
        self.same_dtype("key_cache", key_cache, query)
        self.same_dtype("value_cache", value_cache, query)
        self.int32("block_table", block_table)
        self.int32("seq_lens", seq_lens)

        self.same_device("key_cache", key_cache, query)
        self.same_device("value_cache", value_cache, query)
        self.same_device("block_table", block_table, query)
        self.same_device("seq_lens", seq_lens, query)

        self.rank("query", query, 3, "[batch, heads, head_dim]")
        self.rank("key_cache", key_cache, 4, "[num_blocks, block_size, kv_heads, head_dim]")
        self.rank("value_cache", value_cache, 4, "[num_blocks, block_size, kv_heads, head_dim_v]")
        self.rank("block_table", block_table, 2, "[batch, max_blocks]")
        self.rank("seq_lens", seq_lens, 1, "[batch]")

        self.head_dim("query", query)
        self.size("key_cache", key_cache, 3, query.size(2), "head_dim of query")
        self.size("value_cache", value_cache, 0, key_cache.size(0), "num_blocks of key_cache")
        self.size("value_cache", value_cache, 1, key_cache.size(1), "block_size of key_cache")
        self.size("value_cache", value_cache, 2, key_cache.size(2), "kv_heads of key_cache")
        self.head_dim("value_cache", value_cache)
        for dim, meaning in ((1, "block_size"), (2, "kv_heads")):
            self.expect(
                torch._check_value,
                key_cache.size(dim) >= 1,
                f"key_cache.size({dim})",
                f"at least 1 ({meaning})",
                key_cache.size(dim),
            )
        kv_heads = key_cache.size(2)
        for condition in (query.size(1) >= 1, query.size(1) % kv_heads == 0):
            self.expect(
                torch._check_value,
                condition,
                "query.size(1)",
                f"a positive multiple of {kv_heads} (kv_heads of key_cache)",
                query.size(1),
            )
        block_size = key_cache.size(1)
        step, most = self.limits.block_size_step, self.limits.block_size_max
        for condition in (block_size % step == 0, block_size <= most):
            self.expect(
                torch._check_value,
                condition,
                "key_cache.size(1)",
                f"a multiple of {step} up to {most} (block_size)",
                block_size,
            )
        self.expect(
            torch._check_value,
            query.size(1) // kv_heads <= self.limits.group_max,
            "query.size(1)",
            f"at most {self.limits.group_max} times {kv_heads} (kv_heads of key_cache)",
            query.size(1),
        )
        self.size("block_table", block_table, 0, query.size(0), "batch of query")
        self.size("seq_lens", seq_lens, 0, query.size(0), "batch of query")

        self.last_dim_contiguous("query", query)
        self.last_dim_contiguous("key_cache", key_cache)
        self.last_dim_contiguous("value_cache", value_cache)
        self.last_dim_contiguous("block_table", block_table)
        self.last_dim_contiguous("seq_lens", seq_lens)

    def output(self, out, query, value_cache) -> None:
        self.same_dtype("out", out, query)
        self.same_device("out", out, query)
        self.rank("out", out, 3, "[batch, heads, head_dim_v]")
        self.size("out", out, 0, query.size(0), "batch of query")
        self.size("out", out, 1, query.size(1), "heads of query")
        self.size("out", out, 2, value_cache.size(3), "head_dim_v of value_cache")
        self.last_dim_contiguous("out", out)


def _decode(query, key_cache, value_cache, block_table, seq_lens, *, scale=None):
    _Checker("decode", query).inputs(query, key_cache, value_cache, block_table, seq_lens)
    return query.new_empty((query.size(0), query.size(1), value_cache.size(3)))


def _decode_out(query, key_cache, value_cache, block_table, seq_lens, *, scale=None, out):
    checker = _Checker("decode_out", query)
    checker.inputs(query, key_cache, value_cache, block_table, seq_lens)
    checker.output(out, query, value_cache)


def _decode_lse(query, key_cache, value_cache, block_table, seq_lens, *, scale=None):
    _Checker("decode_lse", query).inputs(query, key_cache, value_cache, block_table, seq_lens)
    out = query.new_empty((query.size(0), query.size(1), value_cache.size(3)))
    return out, query.new_empty((query.size(0), query.size(1)), dtype=torch.float32)


def register() -> None:
    """Register the fakes; called once, right after the library has been loaded."""
    torch.library.register_fake("pa_hp::decode", _decode)
    torch.library.register_fake("pa_hp::decode_out", _decode_out)
    torch.library.register_fake("pa_hp::decode_lse", _decode_lse)
