"""Who works on what: kernels/npu/schedule.h in numpy.

All (sequence, head group, token) lie on one line in that order. An item is one sequence and head
group; before its tokens it has a stretch for what it costs beyond them: ``item_cost`` places, or
what makes ``item_floor`` in all, if that is more. The line begins with the first item's tokens, and
every cluster takes an equal share of it, cut wherever that falls. A piece is what one cluster has
of an item, a tile at most ``tile_tokens`` of a piece. The device works the same out from the
lengths that it finds; here it is for explanations and tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .plan import FRACTAL, DecodePlan

# As in kernels/npu/plan.h, which says what they mean; a test compares them.
MIN_SHARE = 16
PARTS = 6
MERGE_ALONE = 16
SHORT_LOAD = 128
EVEN_TILES = 4
LAST_LOAD = 32

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
        ("behind", np.int64),  # places that the share goes on for behind it; 0: no tokens there
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
    mixed : bool, shape ``[clusters at work]``
        Whether the share goes well beyond the item that it begins in.
    together : bool
        Whether all clusters that have parts of an item merge them, each some rows; otherwise the
        one that has its beginning does.
    pieces : PIECE, shape ``[pieces]``
        In the order of the line: by cluster, and in the order that the cluster works on them.
    """

    lengths: np.ndarray
    valid: np.ndarray
    cuts: np.ndarray
    mixed: np.ndarray
    together: bool
    pieces: np.ndarray


def partition(seq_lens: ArrayLike, plan: DecodePlan, clusters: int) -> Partition:
    """Share a decode's work out among clusters.

    Parameters
    ----------
    seq_lens : integers, shape ``[batch]``
        Tokens of every sequence. What is negative or more than the block table has room for is out
        of range: nobody works on it, and the kernel makes its rows NaN.
    plan : DecodePlan
        Its batch, capacity, head_groups, rows, item_cost and item_floor count.
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
    extent = np.maximum(plan.item_cost + length, plan.item_floor)
    # The first item's cost is left out: nearly every share begins inside an item, at no cost.
    stop = np.cumsum(extent) - (extent - length)[:1].sum()
    start = np.maximum(stop - extent, 0)
    total = int(stop[-1]) if stop.size else 0

    # No share is empty between two others, or so short that it is not worth its signals.
    shares = min(max(total // MIN_SHARE, 1), clusters)
    cuts = total * np.arange(shares + 1) // shares

    # Pieces lie between neighbours among all cuts and starts.
    begin = np.unique(np.concatenate([cuts[:-1], start])) if total else cuts[:0]
    end = np.append(begin[1:], total) if total else begin
    cluster = np.searchsorted(cuts, begin, side="right") - 1
    item = np.searchsorted(start, begin, side="right") - 1
    tokens_at = stop - length

    def cluster_of(place: np.ndarray) -> np.ndarray:
        return ((place + 1) * shares - 1) // max(total, 1)

    pieces = np.empty(len(begin), PIECE)
    pieces["cluster"] = cluster
    pieces["seq"] = seq[item]
    pieces["head_group"] = head_group[item]
    pieces["begin"] = np.maximum(begin - tokens_at[item], 0)
    pieces["end"] = np.maximum(end - tokens_at[item], 0)
    pieces["length"] = length[item]
    pieces["first_cluster"] = cluster_of(tokens_at[item])
    pieces["last_cluster"] = cluster_of(stop[item] - 1)
    pieces["place"] = np.maximum(begin, tokens_at[item])
    # What the share has behind a piece: nothing, or something from the next item's tokens on.
    following = np.append(tokens_at[1:], total)[item]
    pieces["behind"] = np.where(end == stop[item], np.maximum(cuts[cluster + 1] - following, 0), 0)
    pieces = pieces[pieces["begin"] < pieces["end"]]
    first_stop = np.append(stop, 0)[np.searchsorted(start, cuts[:-1], side="right") - 1]
    mixed = cuts[1:] > first_stop + LAST_LOAD
    longest = int(extent.max(initial=0))
    together = total > 0 and longest * shares // total * -(-plan.rows // 2) > MERGE_ALONE
    return Partition(lengths, valid, cuts, mixed, together, pieces)


def tiles(part: Partition, plan: DecodePlan) -> np.ndarray:
    """The tiles that every piece is worked on in.

    A share has two at least, so that one core's work hides the other's, and PARTS if it is of
    several pieces, with shorter loads then. As long as a piece has more than EVEN_TILES to come
    they end at multiples of a load; the last ones are all but equal, and of multiples of 16
    tokens, as P has columns of as many.

    Returns
    -------
    TILE, shape ``[tiles]``
        In the order of the pieces.
    """
    pieces, share = part.pieces, np.diff(part.cuts)
    load = np.full(len(share), plan.chunk_tokens)
    for _ in range(plan.chunk_tokens.bit_length()):
        long = (load > SHORT_LOAD) | (load * plan.tile_heads > 2 * SHORT_LOAD)
        halved = part.mixed & long & (load % (2 * FRACTAL) == 0)
        load = np.where(halved & (share // PARTS < load), load // 2, load)
    parts = np.where(part.mixed, PARTS, 2)
    most = np.minimum(plan.tile_tokens, share // parts // load * load + load)
    load, most = load[pieces["cluster"]], most[pieces["cluster"]]

    piece, begin = np.arange(len(pieces)), pieces["begin"]
    rounds = []
    while len(piece):
        rest = pieces["end"][piece] - begin
        even = (rest - 1) // EVEN_TILES < most
        equal = -(-rest // -(-rest // most))
        step = np.where(rest > most, -(-equal // FRACTAL) * FRACTAL, rest)
        step = np.where(even, step, begin // load * load + most - begin)
        made = np.empty(len(piece), TILE)
        made["piece"], made["begin"], made["end"] = piece, begin, begin + step
        rounds.append(made)
        more = step < rest
        piece, begin, load, most = piece[more], (begin + step)[more], load[more], most[more]
    result = np.concatenate(rounds) if rounds else np.empty(0, TILE)
    return result[np.lexsort((result["begin"], result["piece"]))]
