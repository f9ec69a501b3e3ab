"""Drop-ins for torch_npu's decode attention: they map arguments and nothing else.

Semantics from torch_npu's op-plugin and CANN's ops-transformer sources; what is not supported is
refused by name rather than ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .decode import decode, decode_out

_IFA = "pa_hp.npu_incre_flash_attention"
_ATB = "pa_hp.npu_paged_attention"


def _expect(condition: bool, where: str, argument: str, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{where}: expected {argument} to be {rule}, got {value}")


def npu_incre_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    pse_shift: Tensor | None = None,
    actual_seq_lengths: Sequence[int] | Tensor | None = None,
    antiquant_scale: Tensor | None = None,
    antiquant_offset: Tensor | None = None,
    block_table: Tensor | None = None,
    dequant_scale1: Tensor | None = None,
    quant_scale1: Tensor | None = None,
    dequant_scale2: Tensor | None = None,
    quant_scale2: Tensor | None = None,
    quant_offset2: Tensor | None = None,
    kv_padding_size: Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    block_size: int = 0,
    inner_precise: int = 1,
) -> Tensor:
    """Drop-in for ``torch_npu.npu_incre_flash_attention``: same arguments, order and defaults.

    Parameters
    ----------
    query : Tensor, float16 | bfloat16 (CPU also float32)
        ``[batch, 1, heads * head_dim]`` for BSH, ``[batch, 1, heads, head_dim]`` for BSND,
        ``[batch, heads, 1, head_dim]`` for BNSD.
    key, value : Tensor, dtype of `query`
        With `block_table`: ``[num_blocks, block_size, kv_heads * head_dim]`` for every layout, or,
        for BNSD, ``[num_blocks, kv_heads, block_size, head_dim]``. Without: as `query` with
        `kv_heads` in place of `heads` and the sequence in place of 1. No layout is copied.
    actual_seq_lengths : sequence of int or int32 Tensor, optional
        One length for all rows, or at least one per row (the first `batch` count). Required with
        `block_table`; without it None or an empty list means that every slot is valid. A length of
        0 gives zeros.
    block_table : Tensor, int32, shape ``[batch, max_blocks]``, optional
    num_heads : int
        Heads of `query`.
    scale_value : float
        Factor of the scores. The default is 1.0, as in torch_npu, not ``head_dim ** -0.5``.
    input_layout : str
        "BSH", "BSND" or "BNSD".
    num_key_value_heads : int
        0 means `num_heads`.
    block_size : int
        Tokens per block; only with `block_table`.
    inner_precise : int
        0 or 1; the accumulation is float32 in both.

    Returns
    -------
    Tensor, dtype and shape of `query` (with the head_dim of `value`).

    Raises
    ------
    NotImplementedError
        For a mask, a quantisation argument, pse_shift or kv_padding_size that is given, and for
        another layout.
    ValueError
        For lengths or sizes other than the ones above.

    Notes
    -----
    Under torch.compile pass `actual_seq_lengths` as a tensor: a list is a constant of the graph,
    and a new one compiles anew.
    """
    refused = {
        "padding_mask": padding_mask,
        "atten_mask": atten_mask,
        "pse_shift": pse_shift,
        "antiquant_scale": antiquant_scale,
        "antiquant_offset": antiquant_offset,
        "dequant_scale1": dequant_scale1,
        "quant_scale1": quant_scale1,
        "dequant_scale2": dequant_scale2,
        "quant_scale2": quant_scale2,
        "quant_offset2": quant_offset2,
        "kv_padding_size": kv_padding_size,
    }
    for name, argument in refused.items():
        if argument is not None:
            raise NotImplementedError(f"{_IFA}: {name} is not supported; pass None")
    _expect(inner_precise in (0, 1), _IFA, "inner_precise", "0 or 1", inner_precise)
    if input_layout not in ("BSH", "BSND", "BNSD"):
        raise NotImplementedError(
            f"{_IFA}: input_layout {input_layout!r} is not supported; pass BSH, BSND or BNSD"
        )
    _expect(num_heads >= 1, _IFA, "num_heads", "at least 1", num_heads)
    kv_heads = num_key_value_heads or num_heads
    _expect(
        kv_heads >= 1 and num_heads % kv_heads == 0,
        _IFA,
        "num_key_value_heads",
        f"0 or a divisor of num_heads {num_heads}",
        num_key_value_heads,
    )
    batch = query.size(0)
    flat_query = _as_bsnd("query", query, input_layout, batch, 1, num_heads).squeeze(1)
    layout = input_layout
    sizes: tuple[int | str, int | str] = (batch, "seq")
    if block_table is None:  # a dense cache is a paged one with one block per sequence
        block_table = torch.arange(batch, dtype=torch.int32, device=query.device).unsqueeze(1)
    else:
        _expect(block_size >= 1, _IFA, "block_size", "at least 1 with a block_table", block_size)
        given = actual_seq_lengths is not None and len(actual_seq_lengths) > 0
        rule = "given with a block_table"
        _expect(given, _IFA, "actual_seq_lengths", rule, actual_seq_lengths)
        # A 3-D cache is laid out like BSH, whatever the layout of query.
        layout = "BNSD" if input_layout == "BNSD" and key.dim() == 4 else "BSH"
        sizes = ("num_blocks", block_size)
    key_cache = _as_bsnd("key", key, layout, *sizes, kv_heads)
    value_cache = _as_bsnd("value", value, layout, *sizes, kv_heads)
    if actual_seq_lengths is None or len(actual_seq_lengths) == 0:
        seq_lens = torch.full((batch,), key_cache.size(1), dtype=torch.int32, device=query.device)
    else:
        capacity = key_cache.size(1) * block_table.size(-1)
        seq_lens = _ifa_lengths(actual_seq_lengths, batch, capacity, query.device)
    out = decode(flat_query, key_cache, value_cache, block_table, seq_lens, scale=scale_value)
    if input_layout == "BSH":
        return out.flatten(1).unsqueeze(1)
    return out.unsqueeze(1 if input_layout == "BSND" else 2)


def _as_bsnd(
    name: str, tensor: Tensor, layout: str, batch: int | str, seq: int | str, heads: int
) -> Tensor:
    """`tensor`, which lies in `layout`, viewed as BSND; a size given as a word may be any."""
    view, fits = tensor, tensor.dim() == len(layout)
    if fits and layout == "BSH":
        fits = tensor.size(2) % heads == 0
        view = tensor.unflatten(2, (heads, tensor.size(2) // heads)) if fits else tensor
    elif fits and layout == "BNSD":
        view = tensor.transpose(1, 2)
    for size, wanted in zip(view.shape, (batch, seq, heads), strict=False):
        fits = fits and (isinstance(wanted, str) or size == wanted)
    if not fits:
        shape = {
            "BSH": f"[{batch}, {seq}, {heads} * head_dim]",
            "BSND": f"[{batch}, {seq}, {heads}, head_dim]",
            "BNSD": f"[{batch}, {heads}, {seq}, head_dim]",
        }[layout]
        _expect(False, _IFA, name, shape, list(tensor.shape))
    return view


def _ifa_lengths(
    lengths: Sequence[int] | Tensor, batch: int, capacity: int, device: torch.device
) -> Tensor:
    """One int32 length per row, on `device`. Values in a tensor are the op's to check."""
    if isinstance(lengths, Tensor):
        _expect(lengths.dim() == 1, _IFA, "actual_seq_lengths", "1-D", list(lengths.shape))
    count = len(lengths)
    if count != 1 and count < batch:
        rule = f"1 or at least {batch} lengths"
        _expect(False, _IFA, "actual_seq_lengths", rule, count)
    if not isinstance(lengths, Tensor):
        for row, length in enumerate(lengths[:batch]):
            rule = f"in [0, {capacity}]"
            fits = not isinstance(length, float) and 0 <= length <= capacity
            _expect(fits, _IFA, f"actual_seq_lengths[{row}]", rule, length)
        lengths = torch.tensor(lengths[:batch], dtype=torch.int32, device=device)
    return (lengths.expand(batch) if count == 1 else lengths[:batch]).contiguous()


def npu_paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
    *,
    workspace: Tensor | None = None,
) -> None:
    """Drop-in for ``torch_npu._npu_paged_attention`` (ATB): same arguments and order; writes `out`.

    Parameters
    ----------
    query : Tensor, float16 | bfloat16 (CPU also float32), shape ``[batch, heads, head_dim]``
    key_cache, value_cache : Tensor, dtype of `query`
        Shape ``[num_blocks, block_size, kv_heads, head_dim]``; head_dim of the values may differ.
    num_kv_heads, num_heads : int
        Must agree with the shapes; `num_kv_heads` 0 means `num_heads`.
    scale_value : float
        Factor of the scores.
    block_table : Tensor, int32, shape ``[batch, max_blocks]``
    context_lens : Tensor, int32, shape ``[batch]``
        On the device of `query`. A length of 0 gives zeros.
    out : Tensor, dtype of `query`, shape ``[batch, heads, head_dim_v]``
    workspace : Tensor, optional
        Accepted and not used.

    Raises
    ------
    ValueError
        Head counts that disagree with the shapes; else as :func:`pa_hp.decode_out`.
    """
    heads, kv_heads = query.size(-2), key_cache.size(-2)
    _expect(num_heads == heads, _ATB, "num_heads", f"{heads} (heads of query)", num_heads)
    _expect(
        (num_kv_heads or num_heads) == kv_heads,
        _ATB,
        "num_kv_heads",
        f"{kv_heads} (kv_heads of key_cache)",
        num_kv_heads,
    )
    decode_out(query, key_cache, value_cache, block_table, context_lens, scale=scale_value, out=out)
