"""Descs to plan for, and a compiler for what a test wants from the kernel's headers."""

import ctypes
import subprocess

import pytest
from pa_hp import build
from pa_hp.tiling.plan import DecodeDesc


@pytest.fixture(scope="session")
def compile_library(tmp_path_factory):
    """Compile one C++ source with the host's compiler and load it."""

    def compile_and_load(source):
        library = tmp_path_factory.mktemp("library") / f"{source.stem}.so"
        flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
        command = [build.compiler(), *flags, "-o", library, source]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return ctypes.CDLL(str(library))

    return compile_and_load


def contiguous_desc(
    batch=16,
    heads=32,
    kv_heads=8,
    head_dim=128,
    head_dim_v=None,
    block_size=128,
    max_blocks=32,
    clusters=24,
    **others,
):
    """A desc of contiguous tensors."""
    dim_v = head_dim if head_dim_v is None else head_dim_v
    strides = {
        "query_strides": (heads * head_dim, head_dim),
        "key_strides": (block_size * kv_heads * head_dim, kv_heads * head_dim, head_dim),
        "value_strides": (block_size * kv_heads * dim_v, kv_heads * dim_v, dim_v),
        "block_table_stride": max_blocks,
        "out_strides": (heads * dim_v, dim_v),
    }
    desc = {
        "dtype": "bfloat16",
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "head_dim_v": dim_v,
        "num_blocks": batch * max_blocks,
        "block_size": block_size,
        "max_blocks": max_blocks,
        "scale": head_dim**-0.5,
        "clusters": clusters,
    }
    return DecodeDesc(**(desc | strides | others))


@pytest.fixture(scope="session")
def make_desc():
    return contiguous_desc
