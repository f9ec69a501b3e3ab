"""Shapes of the NPU kernel: the axes, thinned crosses of them, and a run with every check on."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator

import pa_hp
import torch
from pa_hp.bench.cases import DecodeCase, Inputs, make
from torch import Tensor

LENGTHS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "ragged": lambda size: (1, 700, 0, 255, 257, 513),
    "block_edges": lambda size: (0, 1, size - 1, size, size + 1, 2 * size + 1),
    "unaligned": lambda size: (17, 31, 129, 383),
    "load_edges": lambda size: (127, 128, 0, 1023, 1024, 1025),
    "one_long": lambda size: (2503,),
    "long_among_short": lambda size: (5, 3, 1900, 2, 0, 7),
    "many_short": lambda size: tuple(range(0, 66, 3)),
    "one_token": lambda size: (1,),
    "empty": lambda size: (0, 0),
}
SCORES = {  # factor of the query, scale
    "normal": (1.0, None),
    "flat": (0.01, None),
    "spread": (4.0, None),
    "peaked": (20.0, None),
    "given": (1.0, 0.3),
    "negative": (1.0, -0.1),
    "none": (1.0, 0.0),
}
DIMS = (
    *((dim, dim) for dim in (16, 48, 64, 80, 96, 112, 128, 192, 208, 256)),
    *((192, 128), (128, 192), (64, 16), (16, 256), (256, 48)),
)
AXES = {
    "dtype": (torch.float16, torch.bfloat16),
    "dims": DIMS,
    "block_size": (16, 32, 48, 64, 80, 112, 128, 256, 512),
    "group": (1, 2, 3, 4, 5, 7, 8, 13, 16, 32, 33, 48, 64),
    "kv_heads": (1, 2, 3, 4, 5, 7, 8),
    "lengths": tuple(LENGTHS),
    "cache_layout": ("plain", "stacked", "interleaved", "wide", "heads_first"),
    "query_layout": ("plain", "wide", "heads_first", "fused"),
    "scores": tuple(SCORES),
    "pages": ("shuffled", "in_order", "runs", "backwards"),
    "soc": ("910B2", "910B3", "910B4"),
}
CROSSED = ("dtype", "dims", "block_size", "group")  # in full, if asked for


@dataclasses.dataclass(frozen=True)
class NpuCase(DecodeCase):
    """A case with what else the NPU kernel may look at."""

    pages: str = "shuffled"  # in_order, runs (of three), backwards: ids of a sequence's blocks
    soc: str = "910B2"


def _case(**chosen) -> NpuCase:
    (head_dim, head_dim_v), group = chosen["dims"], chosen["group"]
    factor, scale = SCORES[chosen["scores"]]
    return NpuCase(
        name=(
            f"d{head_dim}v{head_dim_v}-b{chosen['block_size']}-g{group}x{chosen['kv_heads']}"
            f"-{chosen['lengths']}-{chosen['cache_layout']}-{chosen['query_layout']}"
            f"-{chosen['scores']}-{chosen['pages']}-{chosen['soc']}"
        ),
        lengths=LENGTHS[chosen["lengths"]](chosen["block_size"]),
        dtype=chosen["dtype"],
        heads=group * chosen["kv_heads"],
        kv_heads=chosen["kv_heads"],
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        block_size=chosen["block_size"],
        query_layout=chosen["query_layout"],
        cache_layout=chosen["cache_layout"],
        query_factor=factor,
        scale=scale,
        pages=chosen["pages"],
        soc=chosen["soc"],
    )


def pairwise() -> list[NpuCase]:
    """Cases that hold every pair of values of two axes at least once; always the same ones."""
    draw = random.Random(0)
    missing = {
        pair
        for (a, at), (b, bt) in itertools.combinations(AXES.items(), 2)
        for pair in itertools.product([(a, x) for x in at], [(b, y) for y in bt])
    }

    def pairs(chosen: dict) -> set:
        return set(itertools.combinations(chosen.items(), 2)) & missing

    cases = []
    while missing:
        # The order of a set of such pairs changes from run to run, the smallest of them does not.
        must = dict(min(missing, key=repr))
        tries = [{a: must.get(a, draw.choice(at)) for a, at in AXES.items()} for _ in range(40)]
        best = max(tries, key=lambda chosen: len(pairs(chosen)))
        missing -= pairs(best)
        cases.append(_case(**best))
    return cases


def crossed(draws: int, **fixed) -> Iterator[NpuCase]:
    """The full cross of the axes in `CROSSED`, the others drawn."""
    axes = [(fixed[axis],) if axis in fixed else AXES[axis] for axis in CROSSED]
    for values in itertools.product(*axes, range(draws)):
        draw = random.Random(repr(values))
        others = {a: draw.choice(at) for a, at in AXES.items() if a not in CROSSED}
        yield _case(**dict(zip(CROSSED, values, strict=False)), **others)


def build(case: NpuCase) -> Inputs:
    """The tensors of `case`."""
    inputs = make(case)
    if case.pages == "shuffled":
        return inputs
    table = inputs.block_table
    used = [-(-length // case.block_size) for length in case.lengths]
    ids = torch.cat([table[row, :count] for row, count in enumerate(used)]).long()
    if case.pages == "backwards":
        ids = ids.flip(0)
    elif case.pages == "runs":
        draw = torch.Generator().manual_seed(case.seed)
        runs = ids.split(3)
        order = torch.randperm(len(runs), generator=draw).tolist()
        ids = torch.cat([runs[run] for run in order] or [ids])
    # `ids` moves to the end of the cache, in this order: the last of them is the last block.
    num_blocks = inputs.key_cache.size(0)
    dead = torch.ones(num_blocks, dtype=torch.bool)
    dead[ids] = False
    order = torch.cat([dead.nonzero().flatten(), ids])
    for cache in (inputs.key_cache, inputs.value_cache):
        cache.copy_(cache[order])
    place = torch.empty(num_blocks, dtype=torch.int32)
    place[order] = torch.arange(num_blocks, dtype=torch.int32)
    for row, count in enumerate(used):
        table[row, :count] = place[table[row, :count].long()]
    return inputs


def run(case: DecodeCase, inputs: Inputs, soc: str = "910B2", **options) -> tuple[Tensor, Tensor]:
    """`out` and `lse` of the NPU kernel with every check on: no finding."""
    lse = torch.full(inputs.query.shape[:2], torch.nan)
    out, report = pa_hp.simulate(
        *inputs, scale=case.scale, soc=soc, lse=lse, timed=False, strict_visibility=True, **options
    )
    assert report.hazards == [], f"{case.id}: {report.hazards[:3]}"
    return out, lse


RAGGED = LENGTHS["ragged"](0)
# As different as they get: one and many tiles, items whole, cut and merged in several passes, rows
# for one vector core only, one head and several a tile, loads of one page, of many and in parts.
VARIED = [
    NpuCase("widest", RAGGED, torch.float16, heads=64, kv_heads=1, head_dim=256, block_size=128),
    NpuCase("many_heads", (300, 20), torch.bfloat16, heads=64, kv_heads=8, head_dim=128),
    NpuCase("narrow", tuple(range(0, 66, 3)), torch.float16, heads=2, head_dim=16),
    NpuCase("one_long", (6000,), torch.bfloat16, heads=8, kv_heads=1, head_dim=192, head_dim_v=128),
    NpuCase("one_token", (1,), torch.float16, heads=1, kv_heads=1),
    NpuCase("mha", (700, 33), torch.bfloat16, heads=7, kv_heads=7, head_dim=80, block_size=80),
    NpuCase("empty", (0,) * 100, torch.float16, heads=36, kv_heads=9),
    NpuCase("odd_group", RAGGED, torch.float16, heads=39, kv_heads=3, block_size=48),
    NpuCase("fewer_clusters", RAGGED, torch.bfloat16, heads=16, block_size=512, soc="910B4"),
    NpuCase("tall", (2500, 40), torch.float16, heads=33, kv_heads=1, head_dim=16, head_dim_v=256),
    NpuCase("halves", (257,) * 25, torch.float16, heads=64, kv_heads=1, head_dim=256),
]
