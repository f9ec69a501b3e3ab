"""Who works on what: kernels/npu/schedule.h in numpy.

All (sequence, head group, token) lie on one line in that order. An item is one sequence and head
group; before its tokens it has a stretch for what it costs beyond them: ``item_cost`` places, or
what makes ``item_floor`` and a third of its tokens in all, if that is more. Every cluster takes
an equal share of the line, cut wherever that falls. A piece is what one cluster has of an item, a
tile at most ``tile_tokens`` of a piece. The device works the same out from the lengths that it
finds; here it is for explanations and tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .plan import FRACTAL, DecodePlan

MIN_SHARE = 16  # places of the line that are worth a cluster; kMinShare of plan.h

PIECE = np.dtype(
    [
        ("cluster", np.int64),
        ("seq", np.int64),
        ("head_group", np.int64),
        ("begin", np.int64),  # tokens of the sequence
        ("end", np.int64),
        ("length", np.int64),  # of the sequence
        ("first_cluster", np.int64),  # the clusters that the item's pieces are in
        ("last_cluster", np.int64),
        ("place", np.int64),  # of `begin` on the line
        ("final", np.bool_),  # no tokens of the share come behind it
    ]
)
TILE = np.dtype(
    [
        ("piece", np.int64),  # index into Partition.pieces
        ("begin", np.int64),  # tokens of the sequence
        ("end", np.int64),
    ]
)


@dataclass(frozen=True)
class Partition:
    """The work of one decode, shared out.

    Attributes
    ----------
    lengths : int64, shape ``[batch]``
        Tokens of every sequence; 0 where the length is out of range.
    valid : bool, shape ``[batch]``
        Whether it is in range.
    cuts : int64, shape ``[clusters at work + 1]``
        Places where shares begin and, the last one, where the line ends. Short lines are not cut
        for every cluster.
    pieces : PIECE, shape ``[pieces]``
        In the order of the line: by cluster, and in the order that the cluster works on them.
    """

    lengths: np.ndarray
    valid: np.ndarray
    cuts: np.ndarray
    pieces: np.ndarray


def partition(seq_lens: ArrayLike, plan: DecodePlan, clusters: int) -> Partition:
    """Share a decode's work out among clusters.

    Parameters
    ----------
    seq_lens : integers, shape ``[batch]``
        Tokens of every sequence. What is negative or more than the block table has room for is out
        of range: nobody works on it, and the kernel makes its rows NaN.
    plan : DecodePlan
        Its batch, capacity, head_groups, item_cost and item_floor count.
    clusters : int
        Clusters of the chip, at least 1.

    Raises
    ------
    ValueError
        `seq_lens` is not a vector of `batch` integers, or `clusters` is less than 1.
    """
    given = np.asarray(seq_lens)
    if given.shape != (plan.batch,) or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(
            f"pa_hp.tiling: expected seq_lens to be integers of shape {[plan.batch]}, got "
            f"{given.dtype} of shape {list(given.shape)}"
        )
    if clusters < 1:
        raise ValueError(f"pa_hp.tiling: expected clusters to be at least 1, got {clusters}")
    lengths = given.astype(np.int64)
    valid = (lengths >= 0) & (lengths <= plan.max_blocks * plan.block_size)
    lengths[~valid] = 0

    # Items, in their order: the line's stretch [start, start + extent) of each.
    seq = np.repeat(np.flatnonzero(lengths), plan.head_groups)
    head_group = np.tile(np.arange(plan.head_groups), np.count_nonzero(lengths))
    length = lengths[seq]
    extent = np.maximum(plan.item_cost + length, plan.item_floor + length // 3)
    stop = np.cumsum(extent)
    start = stop - extent
    total = int(extent.sum())

    # No share is empty between two others, or so short that it is not worth its signals.
    shares = min(max(total // MIN_SHARE, 1), clusters)
    cuts = total * np.arange(shares + 1) // shares

    # Pieces lie between neighbours among all cuts and starts.
    begin = np.unique(np.concatenate([cuts[:-1], start])) if total else cuts[:0]
    end = np.append(begin[1:], total) if total else begin
    cluster = np.searchsorted(cuts, begin, side="right") - 1
    item = np.searchsorted(start, begin, side="right") - 1
    tokens_at = stop[item] - length[item]

    def cluster_of(place: np.ndarray) -> np.ndarray:
        return ((place + 1) * shares - 1) // max(total, 1)

    pieces = np.empty(len(begin), PIECE)
    pieces["cluster"] = cluster
    pieces["seq"] = seq[item]
    pieces["head_group"] = head_group[item]
    pieces["begin"] = np.maximum(begin - tokens_at, 0)
    pieces["end"] = np.maximum(end - tokens_at, 0)
    pieces["length"] = length[item]
    pieces["first_cluster"] = cluster_of(tokens_at)
    pieces["last_cluster"] = cluster_of(stop[item] - 1)
    pieces["place"] = np.maximum(begin, tokens_at)
    pieces = pieces[pieces["begin"] < pieces["end"]]
    pieces["final"] = np.append(pieces["cluster"][1:] != pieces["cluster"][:-1], True)[
        : len(pieces)
    ]
    return Partition(lengths, valid, cuts, pieces)


def tiles(part: Partition, plan: DecodePlan) -> np.ndarray:
    """The tiles that every piece is worked on in.

    They end at multiples of the plan's ``chunk_tokens``, where a load does. A share has two at
    least, so that one core's work hides the other's. P has columns of 16 tokens from a tile's first
    on, and a load begins with one: a tile that begins askew is one load.

    Returns
    -------
    TILE, shape ``[tiles]``
        In the order of the pieces.
    """
    pieces, chunk = part.pieces, plan.chunk_tokens
    share = np.diff(part.cuts)[pieces["cluster"]]
    tokens = np.minimum(plan.tile_tokens, share // (2 * chunk) * chunk + chunk)
    aligned = pieces["begin"] % FRACTAL == 0
    first_end = pieces["begin"] // chunk * chunk + np.where(aligned, tokens, chunk)
    first_end = np.minimum(first_end, pieces["end"])
    counts = 1 - (first_end - pieces["end"]) // tokens  # the others have `tokens`, but the last

    result = np.empty(int(counts.sum()), TILE)
    result["piece"] = piece = np.repeat(np.arange(len(pieces)), counts)
    number = np.arange(len(result)) - np.repeat(np.cumsum(counts) - counts, counts)
    end = first_end[piece] + number * tokens[piece]
    result["begin"] = np.where(number == 0, pieces["begin"][piece], end - tokens[piece])
    result["end"] = np.minimum(end, pieces["end"][piece])
    return result
