"""Drop-ins for torch_npu's decode attention: they map arguments and nothing else.

Semantics from torch_npu's op-plugin and CANN's ops-transformer sources; what is not supported is
refused by name rather than ignored.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .decode import decode, decode_out
from .fake import NPU_LIMITS

_IFA = "pa_hp.npu_incre_flash_attention"
_ATB = "pa_hp.npu_paged_attention"


def _expect(condition: bool, where: str, argument: str, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{where}: expected {argument} to be {rule}, got {value}")


def _refuse_sizes(where: str, query: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    """NotImplementedError for what the NPU's kernel does not take, before the op's ValueError.

    So torch.compile, which cannot catch what an op raises, can still choose another function.
    """
    if query.device.type != "npu" or (query.dim(), key_cache.dim(), value_cache.dim()) != (3, 4, 4):
        return
    limits = NPU_LIMITS
    head_dims = query.size(2), value_cache.size(3)
    block_size, kv_heads = key_cache.size(1), key_cache.size(2)
    fits = (
        query.dtype in (torch.float16, torch.bfloat16)
        and max(head_dims) <= limits.head_dim_max
        and all(head_dim % limits.head_dim_step == 0 for head_dim in head_dims)
        and block_size <= limits.block_size_max
        and block_size % limits.block_size_step == 0
        and query.size(1) <= limits.group_max * kv_heads
    )
    if not fits:
        raise NotImplementedError(
            f"{where}: {query.dtype} with head_dim {query.size(2)} and {value_cache.size(3)}, "
            f"block_size {block_size}, {query.size(1)} heads and {kv_heads} kv_heads is not "
            f"supported on the NPU; it takes float16 and bfloat16, head_dim a multiple of "
            f"{limits.head_dim_step} up to {limits.head_dim_max}, block_size a multiple of "
            f"{limits.block_size_step} up to {limits.block_size_max}, and up to "
            f"{limits.group_max} heads a kv_head"
        )


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
        `kv_heads` in place of `heads` and the sequence, on the NPU a multiple of 16, in place of 1.
        No layout is copied.
    actual_seq_lengths : sequence of int or int32 Tensor, optional
        One length for all rows, or at least one per row (the first `batch` count). Required with
        `block_table`; without it None or an empty list means that every slot is valid. A length of
        0 gives zeros. With tensors on the NPU, what lies on the host (a sequence, or a tensor of
        integers on the CPU) is checked, uploaded without waiting, and kept on the device for as
        long as it is the same; what lies on the device is not read.
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
        For a mask, a quantisation argument, pse_shift or kv_padding_size that is given, for
        another layout, and on the NPU for sizes that its kernel does not take and dense caches that
        cannot be cut into blocks.
    ValueError
        For lengths or sizes other than the ones above.

    Notes
    -----
    Under torch.compile and in a captured NPU graph pass `actual_seq_lengths` as a tensor of the
    device: lengths on the host are constants there. A new list compiles anew; a captured graph
    keeps the old one.
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
    if isinstance(actual_seq_lengths, Tensor):
        given = actual_seq_lengths.numel() > 0
    else:
        given = actual_seq_lengths is not None and len(actual_seq_lengths) > 0
    if block_table is not None:
        _expect(block_size >= 1, _IFA, "block_size", "at least 1 with a block_table", block_size)
        rule = "given with a block_table"
        _expect(given, _IFA, "actual_seq_lengths", rule, actual_seq_lengths)
        # A 3-D cache is laid out like BSH, whatever the layout of query.
        layout = "BNSD" if input_layout == "BNSD" and key.dim() == 4 else "BSH"
        sizes = ("num_blocks", block_size)
    key_cache = _as_bsnd("key", key, layout, *sizes, kv_heads)
    value_cache = _as_bsnd("value", value, layout, *sizes, kv_heads)
    if block_table is None:
        key_cache, value_cache, block_table = _as_pages(key_cache, value_cache)
    _refuse_sizes(_IFA, flat_query, key_cache, value_cache)
    capacity = key_cache.size(1) * block_table.size(-1)
    if actual_seq_lengths is not None and given:
        seq_lens = _ifa_lengths(actual_seq_lengths, batch, capacity, query)
    else:
        seq_lens = torch.full((batch,), capacity, dtype=torch.int32, device=query.device)
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


def _as_pages(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Dense BSND caches as paged ones, and their block table; nothing is copied."""
    batch, seq = key.shape[:2]
    count, step = 1, 1  # blocks of a row, and from one row's first to the next row's
    if key.device.type == "npu":
        key, step = _cut("key", key)
        value, value_step = _cut("value", value)
        count = seq // key.size(1)
        if (key.size(1), step) != (value.size(1), value_step):
            raise NotImplementedError(
                f"{_IFA}: dense key and value whose rows lie differently are not supported on the "
                f"NPU; use a block_table"
            )
    rows = torch.arange(step * batch + count, dtype=torch.int32, device=key.device)
    return key, value, rows.as_strided((batch, count), (step, 1))


def _cut(name: str, cache: Tensor) -> tuple[Tensor, int]:
    """A dense BSND cache as blocks of a size that the NPU takes, and `step` as above.

    Blocks lie one block's tokens apart. Where a row is longer than that (BNSD: kv_heads times) they
    overlap, and there are numbers between the rows' own.
    """
    batch, seq = cache.shape[:2]
    unit, most = NPU_LIMITS.block_size_step, NPU_LIMITS.block_size_max
    row, token = cache.stride()[:2]
    block_size = min(seq, most) // unit * unit
    while block_size > 0 and (
        seq % block_size != 0 or token == 0 or (batch > 1 and row % (block_size * token) != 0)
    ):
        block_size -= unit
    if block_size == 0:
        raise NotImplementedError(
            f"{_IFA}: a dense {name} of {seq} tokens, {token} elements apart in rows {row} apart, "
            f"is not supported on the NPU; make both a multiple of {unit} tokens, or use a "
            f"block_table"
        )
    count = seq // block_size
    step = row // (block_size * token) if batch > 1 else count
    shape = (step * (batch - 1) + count, block_size, *cache.shape[2:])
    return cache.as_strided(shape, (block_size * token, *cache.stride()[1:])), step


def _ifa_lengths(
    lengths: Sequence[int] | Tensor, batch: int, capacity: int, query: Tensor
) -> Tensor:
    """One int32 length per row, on the device of `query`. The op checks what a tensor holds."""
    if isinstance(lengths, Tensor):
        _expect(lengths.dim() == 1, _IFA, "actual_seq_lengths", "1-D", list(lengths.shape))
    count = len(lengths)
    if count != 1 and count < batch:
        rule = f"1 or at least {batch} lengths"
        _expect(False, _IFA, "actual_seq_lengths", rule, count)
    if _on_host(lengths, query):
        lengths = _uploaded(_IFA, "actual_seq_lengths", lengths[:batch], batch, capacity, query)
    assert isinstance(lengths, Tensor)
    return (lengths.expand(batch) if count == 1 else lengths[:batch]).contiguous()


def _on_host(lengths: Sequence[int] | Tensor, query: Tensor) -> bool:
    """True if the host may read the lengths and has to bring them to the device of `query`."""
    if isinstance(lengths, Tensor):
        return lengths.device.type == "cpu" and query.device.type == "npu"
    return True


def _uploaded(
    where: str,
    argument: str,
    lengths: Sequence[int] | Tensor,
    batch: int,
    capacity: int,
    query: Tensor,
) -> Tensor:
    """Lengths on the host, checked, as an int32 tensor on the device of `query`."""
    values = tuple(lengths.tolist() if isinstance(lengths, Tensor) else lengths)
    _check_lengths(where, argument, values, capacity)
    device = query.device
    # A fake tensor must not stay behind in the cache, nor a real one come out of it.
    if device.type != "npu" or torch.compiler.is_compiling() or type(query) is not Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)
    npu = torch.npu  # type: ignore[attr-defined]
    if not npu.is_current_stream_capturing():
        stream = npu.current_stream(device).npu_stream
        return _cached_upload(values, batch, device, stream)
    # What a captured graph uses must live as long as the graph: its own memory, and no copy from
    # the host's.
    tensor = torch.empty(len(values), dtype=torch.int32, device=device)
    row = 0
    for value, run in itertools.groupby(values):
        begin, row = row, row + len(list(run))
        tensor[begin:row].fill_(value)
    return tensor


# One entry serves every layer of a step. The stream is part of the key: on it the copy is ahead of
# whatever reads the tensor, and whatever gets the memory after it is behind.
@functools.lru_cache(maxsize=16)
def _cached_upload(
    values: tuple[int, ...], batch: int, device: torch.device, stream: int
) -> Tensor:
    # From pinned memory: any other copy to the device waits for the device.
    tensor = torch.tensor(values, dtype=torch.int32).expand(batch).contiguous()
    return tensor.pin_memory().to(device, non_blocking=True)


def _check_lengths(where: str, argument: str, lengths: tuple[int, ...], capacity: int) -> None:
    for row, length in enumerate(lengths):
        if isinstance(length, float | str) or not 0 <= length <= capacity:
            _expect(False, where, f"{argument}[{row}]", f"in [0, {capacity}]", length)


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
        A length of 0 gives zeros. With tensors on the NPU it may lie there, and is not read, or on
        the CPU, as for ATB: see `actual_seq_lengths` of :func:`npu_incre_flash_attention`.
    out : Tensor, dtype of `query`, shape ``[batch, heads, head_dim_v]``
    workspace : Tensor, optional
        Accepted and not used.

    Raises
    ------
    NotImplementedError
        On the NPU, for sizes that its kernel does not take.
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
    _refuse_sizes(_ATB, query, key_cache, value_cache)
    if not isinstance(context_lens, Tensor):
        got = type(context_lens).__name__
        raise TypeError(f"{_ATB}: expected context_lens to be a Tensor, got {got}")
    if _on_host(context_lens, query):
        batch, capacity = query.size(0), key_cache.size(1) * block_table.size(-1)
        fits = list(context_lens.shape) == [batch]
        _expect(fits, _ATB, "context_lens", f"[{batch}] (batch)", list(context_lens.shape))
        context_lens = _uploaded(_ATB, "context_lens", context_lens, batch, capacity, query)
    decode_out(query, key_cache, value_cache, block_table, context_lens, scale=scale_value, out=out)
