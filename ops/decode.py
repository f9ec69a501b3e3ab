"""Python names of the op family: docstrings, and the library loaded on first use."""

from __future__ import annotations

import torch
from torch import Tensor

from ..build import load


def decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention of one query token per sequence over a paged KV cache.

    Parameters
    ----------
    query : Tensor, float16 | bfloat16 | float32, shape ``[batch, heads, head_dim]``
        Any strides with the last dimension contiguous. `heads` is a multiple of `kv_heads`: query
        head h attends to kv head ``h // (heads // kv_heads)``. `head_dim` is a multiple of 8 up to
        576; on the NPU of 16 up to 256, `heads` is at most 64 times `kv_heads`, `block_size` a
        multiple of 16 up to 512, and float32 is not taken.
    key_cache : Tensor, dtype of `query`, shape ``[num_blocks, block_size, kv_heads, head_dim]``
        Any strides with the last dimension contiguous, so views such as ``kv_cache[0]`` or a
        transposed ``(num_blocks, kv_heads, block_size, head_dim)`` cache need no copy. Slots past a
        sequence's length are never read and may hold NaN.
    value_cache : Tensor, dtype of `query`, shape ``[num_blocks, block_size, kv_heads, head_dim_v]``
        As `key_cache`; `head_dim_v` may differ from `head_dim` and has the same limits.
    block_table : Tensor, int32, shape ``[batch, max_blocks]``
        Cache block of each of a sequence's stretches of `block_size` tokens. Last dimension
        contiguous. Entries past a sequence's last block are never read. An id outside
        ``[0, num_blocks)`` raises.
    seq_lens : Tensor, int32, shape ``[batch]``
        Number of tokens in the cache, contiguous, in ``[0, max_blocks * block_size]``, else raises.
        0 gives a row of zeros.
    scale : float, optional
        Factor of the scores before the softmax, finite in float32 times log2(e), as the kernels
        work with powers of 2; ``head_dim ** -0.5`` if not given.

    Returns
    -------
    Tensor, dtype of `query`, shape ``[batch, heads, head_dim_v]``; rows of length 0 are zero.

    Raises
    ------
    TypeError
        A dtype other than the ones above.
    ValueError
        A device, rank, size, stride, scale or length other than the ones above.
    IndexError
        A block id out of range in an entry that a sequence uses.
    pa_hp.BuildError
        On first use, if the native library cannot be built; of NPU tensors a RuntimeError with its
        words.

    Notes
    -----
    Accumulates in float32. Same inputs, same bits: on the CPU a row depends neither on the thread
    count nor on the rest of the batch, on the NPU on the lengths of the rest. Lengths and block ids
    are checked before any cache access; on the NPU, where nothing may wait, a row with one out of
    range comes back as NaN. On the CPU it runs on torch's threads (``torch.set_num_threads``), in a
    forked child on the calling thread alone. Not differentiable: a backward raises, and so does
    forward mode. Traced by torch.compile and torch.export with dynamic sizes; vmap over `query`
    works, as a loop.

    Example
    -------
    >>> import torch, pa_hp
    >>> query = torch.randn(2, 8, 64)
    >>> cache = torch.randn(2, 16, 16, 2, 64)  # key, value: 16 blocks of 16 tokens, 2 kv heads
    >>> block_table = torch.arange(16, dtype=torch.int32).view(2, 8)
    >>> seq_lens = torch.tensor([100, 7], dtype=torch.int32)
    >>> pa_hp.decode(query, cache[0], cache[1], block_table, seq_lens).shape
    torch.Size([2, 8, 64])
    """
    load()
    return torch.ops.pa_hp.decode(query, key_cache, value_cache, block_table, seq_lens, scale=scale)


def decode_out(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float | None = None,
    out: Tensor,
) -> None:
    """:func:`decode` into a tensor of the caller.

    Parameters
    ----------
    query, key_cache, value_cache, block_table, seq_lens, scale
        As for :func:`decode`.
    out : Tensor, dtype of `query`, shape ``[batch, heads, head_dim_v]``
        Written in every element. Any strides with the last dimension contiguous and no two rows
        overlapping or interleaved. Its address range must not meet that of an input. Under
        ``torch.compile(fullgraph=True)`` Dynamo itself takes a contiguous `out` only.

    Raises
    ------
    As :func:`decode`; TypeError or ValueError for an unfit `out`; RuntimeError if gradients are
    enabled and a tensor requires one.
    """
    load()
    torch.ops.pa_hp.decode_out(
        query, key_cache, value_cache, block_table, seq_lens, scale=scale, out=out
    )


def decode_lse(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`decode` that also returns the log-sum-exp, to combine partial attentions with.

    Parameters
    ----------
    query, key_cache, value_cache, block_table, seq_lens, scale
        As for :func:`decode`.

    Returns
    -------
    out : Tensor
        As :func:`decode`.
    lse : Tensor, float32, shape ``[batch, heads]``
        Natural logarithm of the sum of exp of the scaled scores; -inf in rows of length 0.

    Raises
    ------
    As :func:`decode`.
    """
    load()
    return torch.ops.pa_hp.decode_lse(
        query, key_cache, value_cache, block_table, seq_lens, scale=scale
    )
