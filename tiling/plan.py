"""``DecodeDesc -> DecodePlan``: everything about a decode that its shapes decide.

A plan is a pure function of the desc: sizes of tiles, maps of every buffer checked against the
chip, layout of the workspace. Candidates are listed and the cheapest by :func:`cost` is taken.
Lengths play no part; how they share the work out is in ``partition.py``.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

# Bytes of the memories of a core (Ascend C programming guide, architecture 2201); the same on 910B1
# to 910B4.
UB, L1, L0, L0C = 192 << 10, 512 << 10, 64 << 10, 128 << 10

# As in kernels/npu/plan.h, which says what they mean; a test compares those that stand there.
FRACTAL = 16
MAX_ROWS = 64
MAX_SCORES = 16384
MERGE_ROWS = 64  # parts times rows that are merged at once at most, if UB has room
MERGE_BLOCKS = 2 * MERGE_ROWS + (MERGE_ROWS + MAX_ROWS // 2) // 2  # and of the largest maxima
SLOTS = 3
ROW_TAIL = 16
MAX_TILE = 1024  # tokens of a chunk and of a tile
MAX_COLUMNS = 4095  # of a store from L0C, 12 bits
MAX_CLUSTERS = 32  # parts of an item that UB has room for in every shape
LANES = 64
TILES = 3
STATS = 34
STAT_LANES = 64

DTYPES = {"float16": 0, "bfloat16": 1}
ITEM = 2  # bytes of either

# Cost model, in cycles and bytes. kernels/sim/chips.json and move.cpp name the sources of the first
# six; the others are read off modelled timelines.
LOAD_FIXED, LOAD_RATE = 50, 32  # GM to L1 by nd2nz: fixed part, bytes a cycle
WEIGHTS_RATE = 110  # GM to L1 from the L2
STORE_FIXED, STORE_RATE = 30, 41  # L0C to GM
LINE = 512  # bytes that HBM is read by
CHUNK = 30  # order of a chunk
VECTOR_OP = 30  # fixed part of a vector instruction with its barrier
TILE_OPS = 34  # vector instructions of a tile, apart from those per 64 tokens
LATENCY = 2500  # of the first tile's way in and the last one's way out
SHARES = (256, 32768)  # tokens times kv heads of a cluster that fixed costs are spread over


@dataclass(frozen=True)
class DecodeDesc:
    """What a plan depends on: sizes, strides (in elements), dtype, scale, clusters of the chip."""

    dtype: str
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int
    num_blocks: int
    block_size: int
    max_blocks: int
    scale: float
    clusters: int
    query_strides: tuple[int, ...]  # batch, head
    key_strides: tuple[int, ...]  # block, token, head
    value_strides: tuple[int, ...]
    block_table_stride: int
    out_strides: tuple[int, ...]  # batch, head

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class DecodePlan:
    """The fields of ``DecodePlan`` in ``kernels/npu/plan.h``, in its order."""

    query_stride_batch: int
    query_stride_head: int
    key_stride_block: int
    key_stride_token: int
    key_stride_head: int
    value_stride_block: int
    value_stride_token: int
    value_stride_head: int
    block_table_stride: int
    out_stride_batch: int
    out_stride_head: int
    dtype: int
    batch: int
    heads: int
    group: int
    head_dim: int
    head_dim_v: int
    num_blocks: int
    block_size: int
    max_blocks: int
    scale: float
    tile_heads: int
    head_groups: int
    rows: int
    chunk_tokens: int
    tile_tokens: int
    key_step: int
    value_step: int
    item_cost: int
    item_floor: int
    l1_slot_bytes: int
    l1_query: int
    l1_query_bytes: int
    l1_weights: int
    l1_weights_bytes: int
    l0c_output: int
    l0c_score_bytes: int
    ub_scores: int
    ub_weights: int
    ub_output: int
    ub_acc: int
    ub_fold: int
    ub_result: int
    ub_stats: int
    ub_merge_weights: int
    ub_merge: int
    merge_rows: int
    ws_weights: int
    ws_output: int
    ws_partials: int
    ws_bytes: int

    def pack(self) -> np.ndarray:
        """The C struct, as int32 words."""
        return np.array([_VALUES(self)], LAYOUT).view(np.int32)


STRIDES = 11  # fields of 64 bits; the rest has 32
_NAMES = [f.name for f in fields(DecodePlan)]
_VALUES = operator.attrgetter(*_NAMES)
LAYOUT = np.dtype(
    [
        (name, "<i8" if i < STRIDES else "<f4" if name == "scale" else "<i4")
        for i, name in enumerate(_NAMES)
    ],
    align=True,  # as C has it
)


@dataclass(frozen=True)
class Tiles:
    """How much of the cache is worked on at a time: one candidate, or a vector of each for many."""

    tile_heads: Any
    chunk_tokens: Any
    tile_tokens: Any

    def __getitem__(self, index: Any) -> Tiles:
        columns = (self.tile_heads, self.chunk_tokens, self.tile_tokens)
        picked = (column[index] for column in columns)
        return Tiles(*(int(n) if n.ndim == 0 else n for n in picked))


def _ceil_div(value: Any, by: Any) -> Any:
    return -(-value // by)


def _round_up(value: Any, to: int) -> Any:
    return _ceil_div(value, to) * to


def cost(desc: DecodeDesc, tiles: Tiles) -> Any:
    """Cycles of a cluster for one token of one kv head; a vector of them for many candidates.

    The busiest of three: loads of the cube core (K, V and P; a page at a time), stores of S and O,
    and the vector cores. Then what is paid once, spread over the cluster's share: full tables are
    assumed, within SHARES.
    """
    heads, tokens = tiles.tile_heads, tiles.tile_tokens
    rows, width = heads * desc.group, desc.head_dim + desc.head_dim_v
    piece = np.minimum(tiles.chunk_tokens, desc.block_size)
    loads = tokens * heads * width * ITEM / LOAD_RATE
    # A line's other heads are read by someone else, earlier or later.
    shared = (heads < desc.kv_heads) & (heads * min(desc.head_dim, desc.head_dim_v) * ITEM < LINE)
    loads = loads * np.where(shared, 1.25, 1)
    loads = loads + 2 * (LOAD_FIXED * tokens / piece + CHUNK * tokens / tiles.chunk_tokens)
    loads = loads + LOAD_FIXED + rows * tokens * ITEM / WEIGHTS_RATE
    key_step, _ = steps(desc, tiles)
    stores = STORE_FIXED * (heads * _ceil_div(tokens, key_step) + 1)
    stores = stores + rows * (tokens + desc.head_dim_v) * 4 / STORE_RATE
    blocks, half = _ceil_div(tokens, LANES), _ceil_div(rows, 2)
    vector = VECTOR_OP * (TILE_OPS + 4 * blocks) + half * (14 * blocks + desc.head_dim_v / 10)
    steady = np.maximum(np.maximum(loads, stores), vector) / (tokens * heads)
    capacity = desc.batch * desc.kv_heads * desc.max_blocks * desc.block_size / desc.clusters
    share = min(max(capacity, SHARES[0]), SHARES[1])
    parts = 1 + desc.clusters * heads / (max(desc.batch, 1) * desc.kv_heads)  # of an item, to merge
    chunk = tiles.chunk_tokens * heads * width * ITEM / LOAD_RATE
    once = LATENCY + chunk / 16 + parts * (5 * VECTOR_OP + half * (desc.head_dim_v / 16 + 6))
    return steady + once / share


def item_places(desc: DecodeDesc, tiles: Tiles) -> tuple[int, int]:
    """What an item costs beyond its tokens, and in all if it has next to none: in tokens.

    The first is the load of Q, and what loads of K, V and P cost however short they are. The second
    is the most of three: the cube core's small products, heads after each other, and then the
    store of O; all of its stores; the vector cores' instructions. Its figures are fitted to the
    modelled times of many sequences of one token (910B2; 1 to 12 kv heads a tile, 1 to 64 rows,
    head_dim 64 to 256): most within 1 %, all within 6 %.
    """
    heads, chunk = tiles.tile_heads, tiles.chunk_tokens
    rows = heads * desc.group
    half = math.ceil(rows / 2)
    token = heads * (desc.head_dim + desc.head_dim_v) * ITEM / LOAD_RATE
    item = 4 * LOAD_FIXED + rows * desc.head_dim * ITEM / LOAD_RATE
    output = rows * desc.head_dim_v * 4 / STORE_RATE
    products = heads * (58 + 0.23 * (desc.head_dim + desc.head_dim_v)) + output
    stores = 130 + heads * STORE_FIXED + rows * 64 / STORE_RATE + output
    vector = 351 + 0.89 * desc.head_dim_v + half * (11.6 + desc.head_dim_v / 16)
    # Tokens of long items beside it: with their part of P, and of the loads' fixed parts, where
    # half the pages follow each other.
    pages = LOAD_FIXED * (1 / min(chunk, desc.block_size) + 1 / chunk)
    long_token = token + rows * ITEM / WEIGHTS_RATE + pages
    return round(item / long_token), round(max(products, stores, vector) / long_token)


def steps(desc: DecodeDesc, tiles: Tiles) -> tuple[Any, Any]:
    """Tokens of one product with K and of one with V: what half of L0A, L0B and L0C holds."""
    m = _round_up(desc.group, FRACTAL)
    half = L0 // 2
    key = min(half // (desc.head_dim * ITEM), half // (m * 4))
    value = min(half // (desc.head_dim_v * ITEM), half // (m * ITEM))
    chunk = tiles.chunk_tokens
    return tuple(np.minimum(most // FRACTAL * FRACTAL, chunk) for most in (key, value))


def candidates(desc: DecodeDesc) -> Tiles:
    """Every division into heads, chunks and tiles whose buffers fit, in a fixed order.

    A chunk is a whole number of pages, or a page a whole number of chunks, so that a page is rarely
    loaded in two parts.
    """
    return _candidates(replace(desc, **_NO_PART))


# What plays no part in what fits: candidates and buffers are kept for the rest, so a new batch is
# planned in half the time.
_NO_PART: dict[str, Any] = {
    **{"dtype": "", "batch": 0, "num_blocks": 0, "max_blocks": 0, "scale": 0.0},
    **{field.name: () for field in fields(DecodeDesc) if "stride" in field.name},
}


@functools.lru_cache(maxsize=256)
def _candidates(desc: DecodeDesc) -> Tiles:
    heads = np.arange(1, min(desc.kv_heads, MAX_ROWS // desc.group) + 1)
    heads = heads[desc.kv_heads % heads == 0]
    parts = np.arange(FRACTAL, desc.block_size, FRACTAL)
    parts = parts[desc.block_size % parts == 0]
    pages = np.arange(desc.block_size, MAX_TILE + 1, desc.block_size)
    chunks = np.concatenate([parts, pages])[:, None]
    counts = np.array([1, 2, 3, 4, 6, 8, 12, 16, 32])
    chunk, count = np.nonzero(chunks * counts <= MAX_TILE)
    chunk, count = chunks[chunk, 0], counts[count]
    each = len(chunk)
    tiles = Tiles(np.repeat(heads, each), *(np.tile(n, len(heads)) for n in (chunk, chunk * count)))
    good = tiles.tile_heads * desc.group * tiles.tile_tokens <= MAX_SCORES
    good &= tiles.tile_heads * desc.head_dim_v <= MAX_COLUMNS
    for size, memory in _memories(desc, tiles).values():
        good &= sum(map(_padded, memory.values())) <= size
    return tiles[good]


def _padded(count: Any) -> Any:
    return _round_up(count, 64)


def _memories(desc: DecodeDesc, tiles: Tiles) -> dict[str, tuple[int, dict[str, Any]]]:
    """Bytes of every memory of a core, and of the buffers that lie in it in this order."""
    rows = tiles.tile_heads * desc.group
    half = _ceil_div(rows, 2)
    pitch, m = _round_up(rows, FRACTAL), _round_up(desc.group, FRACTAL)
    # The cube reads up to 15 rows behind a head's own: they must not be another buffer's.
    spare = FRACTAL * 32
    slot = tiles.chunk_tokens * tiles.tile_heads * max(desc.head_dim, desc.head_dim_v) * ITEM
    query = pitch * desc.head_dim * ITEM + spare
    weights = pitch * _round_up(tiles.tile_tokens, FRACTAL) * ITEM + spare
    scores = m * steps(desc, tiles)[0] * 4
    columns = _round_up(tiles.tile_tokens, LANES)
    row = (desc.head_dim_v + ROW_TAIL) * 4
    return {
        "L1": (L1, {"slots": SLOTS * slot, "query": 2 * query, "weights": 2 * weights}),
        "L0C": (
            L0C,
            {"scores": 2 * scores, "output": tiles.tile_heads * m * desc.head_dim_v * 4},
        ),
        "UB": (
            UB,
            {
                "scores": half * columns * 4,
                "weights": half * columns * ITEM,
                "output": half * desc.head_dim_v * 4,
                "acc": _round_up(half, 8) * row,
                "fold": half * LANES * 4,
                "result": MAX_ROWS // 2 * desc.head_dim_v * ITEM,
                "stats": STATS * STAT_LANES * 4,
                "merge_weights": MERGE_BLOCKS * 32,
                "merge": desc.clusters * desc.head_dim_v * 4,
            },
        ),
    }


def _workspace(head_dim_v: int) -> dict[str, int]:
    """Offsets of a cluster's buffers in GM, and their end.

    They do not depend on the tiles: rows and scores count at their largest.
    """
    output = TILES * MAX_SCORES * (4 + ITEM)
    partials = output + TILES * MAX_ROWS * head_dim_v * 4
    end = _round_up(partials + MAX_ROWS * (head_dim_v + ROW_TAIL) * 4, 512)
    return {"weights": TILES * MAX_SCORES * 4, "output": output, "partials": partials, "bytes": end}


def workspace_bytes(head_dim_v: int, clusters: int) -> int:
    """Bytes of scratch memory of a decode; nothing else counts.

    Raises
    ------
    ValueError
        head_dim_v is no multiple of 16 up to 256, or clusters are not 1 to MAX_CLUSTERS.
    """
    _expect_multiple("head_dim_v", head_dim_v, 256)
    _expect_clusters(clusters)
    return clusters * _workspace(head_dim_v)["bytes"]


@functools.lru_cache(maxsize=256)
def _buffers(desc: DecodeDesc, tiles: Tiles) -> dict[str, int]:
    """Every buffer's place and size, for one candidate."""
    (_, l1), (_, l0c), _ = sizes = _memories(desc, tiles).values()
    places = []
    for _, memory in sizes:
        ends = itertools.accumulate(map(_padded, memory.values()), initial=0)
        places.append(dict(zip(memory, ends, strict=False)))
    at_l1, at_l0c, at_ub = places
    key_step, value_step = steps(desc, tiles)
    found = {
        "key_step": key_step,
        "value_step": value_step,
        "l1_slot_bytes": l1["slots"] // SLOTS,
        "l1_query": at_l1["query"],
        "l1_query_bytes": l1["query"] // 2,
        "l1_weights": at_l1["weights"],
        "l1_weights_bytes": l1["weights"] // 2,
        "l0c_output": at_l0c["output"],
        "l0c_score_bytes": l0c["scores"] // 2,
        "merge_rows": min(MERGE_ROWS, (UB - at_ub["merge"]) // (desc.head_dim_v * 4)),
        **{f"ub_{name}": offset for name, offset in at_ub.items()},
        **{f"ws_{name}": offset for name, offset in _workspace(desc.head_dim_v).items()},
    }
    return {name: int(value) for name, value in found.items()}  # some are numpy's


# Sizes by their least value, and of strides how many there are.
_LEAST = {"batch": 0, "heads": 1, "kv_heads": 1, "num_blocks": 0, "max_blocks": 0}
_STRIDES = {"query_strides": 2, "key_strides": 3, "value_strides": 3, "out_strides": 2}


def finite(scale: float) -> bool:
    """Whether the kernels can take a scale: they work in float32 and with powers of 2."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.float32(scale) * np.float32(1.442695)))


def _expect(good: bool, name: str, rule: str, value: object) -> None:
    if not good:
        raise ValueError(f"pa_hp.tiling: expected {name} to be {rule}, got {value!r}")


def _expect_multiple(name: str, value: int, most: int) -> None:
    good = isinstance(value, int) and 0 < value <= most and value % FRACTAL == 0
    _expect(good, name, f"a multiple of {FRACTAL} up to {most}", value)


def _expect_clusters(value: int) -> None:
    good = isinstance(value, int) and 1 <= value <= MAX_CLUSTERS
    _expect(good, "clusters", f"1 to {MAX_CLUSTERS}", value)


def _check(desc: DecodeDesc) -> None:
    """Raise ValueError for what the kernel does not take."""
    _expect(desc.dtype in DTYPES, "dtype", " or ".join(DTYPES), desc.dtype)
    for name, least in _LEAST.items():
        value = getattr(desc, name)
        good = isinstance(value, int) and least <= value < 2**31
        _expect(good, name, f"{least} or more, and less than 2^31", value)
    for name, count in _STRIDES.items():
        value = getattr(desc, name)
        good = isinstance(value, tuple) and len(value) == count
        _expect(good, name, f"{count} strides", value)
    _expect(finite(desc.scale), "scale", "finite in float32 times log2(e)", desc.scale)
    _expect_multiple("head_dim", desc.head_dim, 256)
    _expect_multiple("head_dim_v", desc.head_dim_v, 256)
    _expect_multiple("block_size", desc.block_size, 512)
    rule = f"1 to {MAX_ROWS} times kv_heads, {desc.kv_heads}"
    good = desc.heads % desc.kv_heads == 0 and 1 <= desc.group <= MAX_ROWS
    _expect(good, "heads", rule, desc.heads)
    _expect_clusters(desc.clusters)
    gap = (desc.out_strides[1] - desc.head_dim_v) * ITEM  # between rows of a store, 32 bits
    good = desc.heads == 1 or 0 <= gap < 2**32
    _expect(good, "out_strides[1]", "at least head_dim_v, and less than 2^31", desc.out_strides[1])


@functools.lru_cache(maxsize=4096)
def plan(desc: DecodeDesc) -> DecodePlan:
    """The cheapest plan for a desc.

    Raises
    ------
    ValueError
        A shape, dtype or stride that the kernel does not take.
    """
    _check(desc)
    tiles = candidates(desc)
    if len(tiles.tile_heads) == 0:
        raise ValueError(f"pa_hp.tiling: expected a shape that fits the chip, got {desc}")
    best = tiles[int(np.argmin(cost(desc, tiles)))]
    rows = best.tile_heads * desc.group
    item_cost, item_floor = item_places(desc, best)
    strides = (
        *desc.query_strides,
        *desc.key_strides,
        *desc.value_strides,
        desc.block_table_stride,
        *desc.out_strides,
    )
    return DecodePlan(
        **dict(zip(_NAMES, strides, strict=False)),
        dtype=DTYPES[desc.dtype],
        batch=desc.batch,
        heads=desc.heads,
        group=desc.group,
        head_dim=desc.head_dim,
        head_dim_v=desc.head_dim_v,
        num_blocks=desc.num_blocks,
        block_size=desc.block_size,
        max_blocks=desc.max_blocks,
        scale=desc.scale,
        tile_heads=best.tile_heads,
        head_groups=desc.kv_heads // best.tile_heads,
        rows=rows,
        chunk_tokens=best.chunk_tokens,
        tile_tokens=best.tile_tokens,
        item_cost=item_cost,
        item_floor=item_floor,
        **_buffers(replace(desc, **_NO_PART), best),
    )
