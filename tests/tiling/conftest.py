"""Descs to plan for."""

import pytest
from pa_hp.tiling.plan import DecodeDesc


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
