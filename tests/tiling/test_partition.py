"""The partition in numpy is the device's, and it is what the kernel relies on."""

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pa_hp.tiling.partition import partition, tiles
from pa_hp.tiling.plan import plan

TILE_FIELDS = [
    "cluster", "seq", "head_group", "begin", "end", "first", "last", "behind", "piece_begin",
    "piece_end", "length", "first_cluster", "last_cluster", "together",
]  # fmt: skip
MOST_SEQUENCES = 1024


@pytest.fixture(scope="module")
def device_tiles(compile_library):
    """Tiles of all clusters, from the kernel's header: a dict of arrays."""
    function = compile_library(Path(__file__).parent / "schedule.cpp").schedule_tiles
    function.restype = ctypes.c_int64
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, pointer, integer, pointer, integer]
    rows = np.empty((1 << 16, len(TILE_FIELDS)), np.int64)

    def run(seq_lens, the_plan, clusters):
        nonlocal rows
        words, lengths = the_plan.pack(), seq_lens.astype(np.int32)
        arguments = words.ctypes.data, lengths.ctypes.data, clusters
        count = function(*arguments, rows.ctypes.data, len(rows))
        if count > len(rows):
            rows = np.empty((count, len(TILE_FIELDS)), np.int64)
            assert function(*arguments, rows.ctypes.data, len(rows)) == count
        return dict(zip(TILE_FIELDS, rows[:count].T, strict=True))

    return run


def random_lengths(rng, kind, capacity):
    batch = int(MOST_SEQUENCES ** rng.random() + rng.random())
    lengths = rng.integers(0, capacity + 1, batch)
    if kind == "equal":
        lengths[:] = lengths[0]
    elif kind == "many zeros":
        lengths[rng.random(batch) < 0.9] = 0
    elif kind == "one long":
        lengths = rng.integers(0, capacity // 50 + 1, batch)
        lengths[rng.integers(batch)] = capacity
    elif kind == "out of range":
        where = rng.random(batch)
        lengths[where < 0.3] = rng.integers(-(2**31), 0, batch)[where < 0.3]
        lengths[where > 0.7] = rng.integers(capacity + 1, 2**31, batch)[where > 0.7]
        lengths[(where > 0.4) & (where < 0.5)] = capacity
    elif kind == "ones":
        lengths[rng.random(batch) < rng.choice([0.5, 0.99, 1.0])] = 1
    return lengths


def random_plan(rng, base, batch, block_size, max_blocks):
    chunk = 16 * int(rng.choice([1, 2, 3, 4, 7, 8, 16]))
    return replace(
        base,
        batch=batch,
        block_size=block_size,
        max_blocks=max_blocks,
        head_groups=int(rng.choice([1, 1, 2, 3, 5, 8, 16])),
        item_cost=int(rng.choice([1, 2, 5, 17, 40, 300])),
        item_floor=int(rng.choice([1, 3, 12, 45, 90, 400])),
        tile_heads=int(rng.choice([1, 2, 4, 8])),
        rows=int(rng.choice([1, 2, 4, 8, 16, 33, 64])),
        chunk_tokens=chunk,
        tile_tokens=chunk * int(rng.choice([1, 2, 3, 4, 8, 32])),
    )


def check_same(part, part_tiles, device):
    pieces, first = part.pieces, device["first"] == 1
    for name in ("cluster", "seq", "head_group", "length", "first_cluster", "last_cluster"):
        np.testing.assert_array_equal(pieces[name], device[name][first], name)
    np.testing.assert_array_equal(pieces["begin"], device["piece_begin"][first])
    np.testing.assert_array_equal(pieces["end"], device["piece_end"][first])
    np.testing.assert_array_equal(pieces["behind"], device["behind"][first])
    np.testing.assert_array_equal(part_tiles["piece"], np.cumsum(first) - 1)
    np.testing.assert_array_equal(part_tiles["begin"], device["begin"])
    np.testing.assert_array_equal(part_tiles["end"], device["end"])
    np.testing.assert_array_equal(device["last"], device["end"] == device["piece_end"])
    np.testing.assert_array_equal(device["together"], part.together)


def check_properties(part, the_plan, seq_lens, clusters):
    pieces, groups = part.pieces, the_plan.head_groups
    capacity = the_plan.max_blocks * the_plan.block_size
    # Every token of every item once, in order; nothing else.
    item = pieces["seq"] * groups + pieces["head_group"]
    starts, ends = np.ones(len(item), bool), np.ones(len(item), bool)
    starts[1:] = ends[:-1] = item[1:] != item[:-1]
    worked_on = np.flatnonzero((seq_lens > 0) & (seq_lens <= capacity))
    np.testing.assert_array_equal(
        item[starts], (worked_on[:, None] * groups + np.arange(groups)).ravel()
    )
    assert (pieces["begin"][starts] == 0).all()
    np.testing.assert_array_equal(pieces["end"][ends], seq_lens[pieces["seq"][ends]])
    np.testing.assert_array_equal(pieces["begin"][1:][~starts[1:]], pieces["end"][:-1][~ends[:-1]])
    assert (pieces["begin"] < pieces["end"]).all()
    # Shares are equal, and a piece lies in its cluster's.
    shares, cluster = np.diff(part.cuts), pieces["cluster"]
    assert 1 <= len(shares) <= clusters
    assert shares.max() - shares.min() <= 1
    of_items = [
        max(the_plan.item_cost + length, the_plan.item_floor)
        for length in seq_lens[worked_on].tolist()
    ]
    # The line begins with the first item's tokens.
    skipped = of_items[0] - int(seq_lens[worked_on[0]]) if of_items else 0
    assert shares.sum() == sum(of_items) * groups - skipped
    assert (part.cuts[cluster] <= pieces["place"]).all()
    place_end = pieces["place"] + pieces["end"] - pieces["begin"]
    assert (place_end <= part.cuts[cluster + 1]).all()
    # What the merge reads: one partial result a cluster, from each cluster that the item is in.
    assert np.bincount(cluster[pieces["begin"] > 0], minlength=1).max() <= 1
    number = np.arange(len(item)) - np.flatnonzero(starts)[np.cumsum(starts) - 1]
    np.testing.assert_array_equal(cluster, pieces["first_cluster"] + number)
    np.testing.assert_array_equal(cluster[ends], pieces["last_cluster"][ends])


@pytest.mark.parametrize(
    "kind", ["uniform", "equal", "many zeros", "one long", "out of range", "ones"]
)
def test_same_as_the_device(kind, device_tiles, make_desc):
    base = plan(make_desc())
    rng = np.random.default_rng(sum(kind.encode()))
    for _ in range(1700):
        block_size = 16 * int(rng.integers(1, 9))
        max_blocks = int(rng.integers(1, 4096 // block_size))
        seq_lens = random_lengths(rng, kind, max_blocks * block_size)
        the_plan = random_plan(rng, base, len(seq_lens), block_size, max_blocks)
        clusters = int(rng.choice([1, 20, 24, 25]))
        part = partition(seq_lens, the_plan, clusters)
        check_same(part, tiles(part, the_plan), device_tiles(seq_lens, the_plan, clusters))
        check_properties(part, the_plan, seq_lens, clusters)


def test_lengths_near_the_largest(device_tiles, make_desc):
    """Of 31 bits, and lines of far more; with one tile a piece, or the loops would take minutes."""
    most = 2**31 - 1
    base = plan(make_desc(batch=3, block_size=512, max_blocks=2**22))
    the_plan = replace(base, chunk_tokens=2**27, tile_tokens=2**30, head_groups=4)
    for lengths in ([most, most, most], [most, -(2**31), 0], [1, most, most - 5]):
        seq_lens = np.array(lengths)
        part = partition(seq_lens, the_plan, 25)
        check_same(part, tiles(part, the_plan), device_tiles(seq_lens, the_plan, 25))
        check_properties(part, the_plan, seq_lens, 25)


@pytest.mark.parametrize("lengths", [[], [0, 0, 0], [-1, 5000]])
def test_no_work(lengths, device_tiles, make_desc):
    the_plan = replace(plan(make_desc()), batch=len(lengths))
    seq_lens = np.array(lengths, np.int32)
    part = partition(seq_lens, the_plan, 24)
    assert len(part.pieces) == len(tiles(part, the_plan)) == 0
    np.testing.assert_array_equal(part.cuts, [0, 0])
    np.testing.assert_array_equal(part.lengths, np.zeros(len(lengths)))
    np.testing.assert_array_equal(part.valid, [0 <= n <= 4096 for n in lengths])
    assert len(device_tiles(seq_lens, the_plan, 24)["seq"]) == 0


def test_little_work_is_not_cut_for_every_cluster(make_desc):
    the_plan = replace(plan(make_desc()), batch=1, head_groups=1, item_cost=4, item_floor=20)
    part = partition(np.array([100]), the_plan, 24)
    np.testing.assert_array_equal(part.cuts, [0, 16, 33, 50, 66, 83, 100])
    np.testing.assert_array_equal(part.pieces["end"], [16, 33, 50, 66, 83, 100])
    np.testing.assert_array_equal(part.pieces["place"], [0, 16, 33, 50, 66, 83])


@pytest.mark.parametrize(
    ("seq_lens", "clusters", "message"),
    [
        ([1, 2, 3], 24, r"expected seq_lens to be integers of shape \[16\], got int64 of .* \[3\]"),
        ([[1] * 16], 24, r"expected seq_lens .* of shape \[1, 16\]"),
        ([1.5] * 16, 24, r"expected seq_lens .* got float64"),
        ([1] * 16, 0, "expected clusters to be at least 1, got 0"),
    ],
)
def test_bad_input(seq_lens, clusters, message, make_desc):
    with pytest.raises(ValueError, match=f"^pa_hp.tiling: {message}"):
        partition(np.array(seq_lens), plan(make_desc()), clusters)
