"""The specification of the op, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Paged-attention decode, slow and plain: what every backend must compute.

    Parameters
    ----------
    query, key_cache, value_cache, block_table, seq_lens, scale
        As for :func:`pa_hp.decode`; the values are taken as they are, rounded already.

    Returns
    -------
    out : Tensor, float64, shape ``[batch, heads, head_dim_v]``
        Zeros in rows of length 0.
    lse : Tensor, float64, shape ``[batch, heads]``
        Natural logarithm of the sum of exp of the scaled scores; -inf in rows of length 0.
    """
    batch, heads, head_dim = query.shape
    _, block_size, kv_heads, head_dim_v = value_cache.shape
    scale = head_dim**-0.5 if scale is None else scale
    out = query.new_zeros(batch, heads, head_dim_v, dtype=torch.float64)
    lse = query.new_full((batch, heads), -torch.inf, dtype=torch.float64)
    for row, length in enumerate(seq_lens.tolist()):
        if length == 0:
            continue
        blocks = block_table[row, : -(-length // block_size)].long()
        keys = key_cache[blocks].flatten(0, 1)[:length].double()  # [length, kv_heads, head_dim]
        values = value_cache[blocks].flatten(0, 1)[:length].double()
        grouped = query[row].double().view(kv_heads, heads // kv_heads, head_dim)
        scores = torch.einsum("kgd,tkd->kgt", grouped, keys) * scale
        out[row] = torch.einsum("kgt,tkd->kgd", scores.softmax(-1), values).reshape(
            heads, head_dim_v
        )
        lse[row] = scores.logsumexp(-1).reshape(heads)
    return out, lse
