"""Named inputs of the op: caches as they look in service, and what a kernel could trip over.

Block ids are shuffled; NaN lies in every slot that no sequence uses, the tail of a last block
included; unused entries of the block table hold an id that no cache has.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from .tolerance import CHUNK

IMPOSSIBLE_ID = 2147480000
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Inputs(NamedTuple):
    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor


@dataclasses.dataclass(frozen=True)
class DecodeCase:
    """One set of arguments; `make` builds it, always the same."""

    name: str
    lengths: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    head_dim_v: int = 0  # 0: as head_dim
    block_size: int = 16
    query_layout: str = "plain"  # plain, wide, heads_first, fused
    cache_layout: str = "plain"  # plain, stacked, interleaved, wide, heads_first
    query_factor: float = 1.0  # of a standard normal query: larger scores, a peaked softmax
    scale: float | None = None

    @property
    def id(self) -> str:
        return f"{self.name}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def seed(self) -> int:
        return zlib.crc32(self.id.encode())

    @property
    def value_dim(self) -> int:
        return self.head_dim_v or self.head_dim

    @property
    def score_std(self) -> float:
        """Standard deviation of the scaled scores (query and keys are normal)."""
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        return self.query_factor * abs(scale) * self.head_dim**0.5


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values with the strides that `layout` names; the last dimension stays contiguous."""
    if layout == "plain":
        return tensor
    if layout == "wide":  # a slice of longer rows
        buffer = tensor.new_full((*tensor.shape[:-1], tensor.size(-1) + 24), torch.nan)
        view = buffer[..., 8 : 8 + tensor.size(-1)]
    elif layout == "heads_first":  # (num_blocks, kv_heads, block_size, dim) or (heads, batch, dim)
        dims = (0, 1) if tensor.dim() == 3 else (1, 2)
        view = torch.empty_like(tensor.transpose(*dims).contiguous()).transpose(*dims)
    elif layout == "fused":  # query, key and value rows from one projection
        batch, heads, dim = tensor.shape
        view = tensor.new_full((batch, heads + 3, dim), torch.nan)[:, 1 : heads + 1]
    elif layout == "stacked":  # one layer of kv_cache[layers, ...]
        view = tensor.new_full((3, *tensor.shape), torch.nan)[1]
    elif layout == "interleaved":  # kv_cache[num_blocks, 2, ...]
        view = tensor.new_full((tensor.size(0), 2, *tensor.shape[1:]), torch.nan)[:, 1]
    else:
        raise ValueError(layout)
    return view.copy_(tensor)


def make(case: DecodeCase) -> Inputs:
    """Build the tensors of `case`."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype)

    batch, size = len(case.lengths), case.block_size
    used = [-(-length // size) for length in case.lengths]
    num_blocks = sum(used) + 3
    ids = torch.randperm(num_blocks, generator=generator).int()
    block_table = torch.full((batch, max(used, default=0) + 2), IMPOSSIBLE_ID, dtype=torch.int32)
    shape = (num_blocks, size, case.kv_heads)
    key_cache = torch.full((*shape, case.head_dim), torch.nan, dtype=case.dtype)
    value_cache = torch.full((*shape, case.value_dim), torch.nan, dtype=case.dtype)
    first = 0
    for row, length in enumerate(case.lengths):
        block_table[row, : used[row]] = ids[first : first + used[row]]
        first += used[row]
        token = torch.arange(length)
        where = (block_table[row][token // size].long(), token % size)
        key_cache[where] = normal(length, case.kv_heads, case.head_dim)
        value_cache[where] = normal(length, case.kv_heads, case.value_dim)
    query = normal(batch, case.heads, case.head_dim) * case.query_factor
    if case.cache_layout == "stacked" and case.value_dim == case.head_dim:
        both = torch.stack([key_cache, value_cache])  # kv_cache[2, ...], as the engines have it
        key_cache, value_cache = both[0], both[1]
    else:
        key_cache = lay_out(key_cache, case.cache_layout)
        value_cache = lay_out(value_cache, case.cache_layout)
    return Inputs(
        lay_out(query, case.query_layout),
        key_cache,
        value_cache,
        block_table,
        torch.tensor(case.lengths, dtype=torch.int32),
    )


def live_slots(inputs: Inputs) -> Tensor:
    """bool ``[num_blocks, block_size]``: slots that hold a token of some sequence."""
    num_blocks, size = inputs.key_cache.shape[:2]
    live = torch.zeros(num_blocks, size, dtype=torch.bool)
    for row, length in enumerate(inputs.seq_lens.tolist()):
        token = torch.arange(length)
        live[inputs.block_table[row][token // size].long(), token % size] = True
    return live


_EDGES = (0, 1, 15, 16, 17, 31, 33)
_CHUNK_EDGES = (CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 3 * CHUNK)


def _shapes() -> list[DecodeCase]:
    case = DecodeCase
    shapes = [
        case("one_token", (1,), heads=1, kv_heads=1),
        case("only_empty_rows", (0, 0)),
        case("no_rows", ()),
        case("block_edges", _EDGES),
        case("chunk_edges", _CHUNK_EDGES),
        case("chunk_edges_odd_block", _CHUNK_EDGES, block_size=100, heads=3, kv_heads=3),
        case("ragged_long", (2000, 3, 0, 700), heads=8, kv_heads=2),
        case("first_and_last_empty", (0, 40, 0), heads=2, kv_heads=1),
        case("many_rows", tuple(range(0, 66, 3)), heads=2, kv_heads=2, head_dim=16),
    ]
    # Two or four equal chunks, which take work for two threads.
    equal = (128, 129, 200, 256, 257, 511, 512, 513, 700, 1023, 1024, 1025)
    for kv_heads in (8, 4, 2):
        shapes.append(case(f"equal_chunks_{32 // kv_heads}", equal, heads=32, kv_heads=kv_heads))
    groups = zip((1, 2, 4, 5, 6, 7, 8, 16, 64), (7, 3, 2, 1, 2, 3, 2, 1, 1), strict=True)
    for group, kv_heads in groups:
        heads = group * kv_heads
        shapes.append(case(f"group_{group}", (33, 300), heads=heads, kv_heads=kv_heads))
    # Blocks of 16 and 8 query heads, and what is left of a group.
    edges = (0, 1, 15, 16, 17, 31, 32, 33, 255, 256, 257, 289, 512, 513)
    for heads, kv_heads, dim, dim_v in (
        (32, 1, 128, 128),
        (36, 2, 64, 96),
        (96, 3, 192, 32),
        (36, 3, 128, 96),
        (24, 1, 32, 64),
        (16, 1, 576, 512),
    ):
        name = f"group_{heads // kv_heads}_edges"
        shapes.append(
            case(name, edges, heads=heads, kv_heads=kv_heads, head_dim=dim, head_dim_v=dim_v)
        )
    for head_dim in (8, 64, 80, 96, 128, 192, 256, 576):
        shapes.append(case(f"head_dim_{head_dim}", (5, 290), head_dim=head_dim, heads=6))
    for head_dim, head_dim_v in ((192, 128), (576, 512), (64, 8), (8, 576), (24, 40)):
        name = f"head_dim_{head_dim}_v_{head_dim_v}"
        shapes.append(case(name, (19, 270), head_dim=head_dim, head_dim_v=head_dim_v, heads=6))
    for size in (1, 16, 100, 128, 512):
        lengths = (0, 1, size - 1, size, size + 1, 2 * size + 1)
        shapes.append(case(f"block_size_{size}", lengths, block_size=size))
    for layout in ("wide", "heads_first", "fused"):
        shapes.append(case(f"query_{layout}", (7, 40, 0), query_layout=layout))
    for layout in ("stacked", "interleaved", "wide", "heads_first"):
        shapes.append(case(f"cache_{layout}", (7, 300, 0), cache_layout=layout, heads=6))
    shapes += [
        case(
            "everything_strided",
            (1, 300, 64),
            query_layout="wide",
            cache_layout="interleaved",
            head_dim=80,
            head_dim_v=48,
            heads=9,
            kv_heads=3,
            block_size=48,
        ),
        case("peaked", (1, 100, 600), query_factor=20.0),
        case("peaked_group_7", (31, 520), query_factor=20.0, heads=7, kv_heads=1, head_dim=128),
        case("scale_given", (40, 300), scale=0.3),
        case("scale_negative", (40, 300), scale=-0.1),
        case("scale_zero", (1, 40, 300), scale=0.0),
        case("scale_negative_group_5", (41, 301), scale=-0.1, heads=10, kv_heads=2),
        case("scale_zero_group_14", (41, 301), scale=0.0, heads=28, kv_heads=2),
    ]
    return shapes


CASES = [dataclasses.replace(shape, dtype=dtype) for shape in _shapes() for dtype in DTYPES]


def named(name: str, dtype: torch.dtype = torch.float32) -> DecodeCase:
    """The case called `name`."""
    return next(case for case in CASES if case.name == name and case.dtype == dtype)
