"""What a decode will run, and where: ``explain(desc, seq_lens)`` in text and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .partition import Partition, partition, tiles
from .plan import (
    FRACTAL,
    ITEM,
    L0,
    L0C,
    L1,
    SLOTS,
    UB,
    DecodeDesc,
    DecodePlan,
    Tiles,
    candidates,
    cost,
    plan,
)

_SHOWN = 3  # candidates beside the chosen one
_COLOURS = [i for i in range(20) if i not in (14, 15)]  # of tab20, without its greys


class Buffer(NamedTuple):
    """A part of a memory: `copies` buffers of `bytes` each, from `offset` on."""

    name: str
    offset: int
    bytes: int
    copies: int = 1


class Memory(NamedTuple):
    name: str
    bytes: int
    buffers: list[Buffer]


@dataclass(frozen=True)
class Explanation:
    """Prints as text; :meth:`plot` draws who works on what.

    Attributes
    ----------
    desc : DecodeDesc
    plan : DecodePlan
        The plan chosen.
    candidates : list of (Tiles, float)
        All divisions that fit the chip and the modelled cycles of a cluster for one token of one kv
        head, cheapest first.
    partition : Partition
        The pieces of every cluster.
    """

    desc: DecodeDesc
    plan: DecodePlan
    candidates: list[tuple[Tiles, float]]
    partition: Partition

    @property
    def tokens(self) -> np.ndarray:
        """Tokens per cluster, each counted once a head group: int64, shape ``[clusters]``."""
        pieces = self.partition.pieces
        counts = np.zeros(self.desc.clusters, np.int64)
        np.add.at(counts, pieces["cluster"], pieces["end"] - pieces["begin"])
        return counts

    @property
    def memories(self) -> list[Memory]:
        """Buffer maps of the chip's memories, and of a cluster's workspace."""
        p = self.plan
        m = -(-p.group // FRACTAL) * FRACTAL  # rows of a product
        ub = {
            name: getattr(p, f"ub_{name.replace(' ', '_')}")
            for name in ("scores", "weights", "output", "acc", "fold", "result", "stats",
                         "merge weights", "merge")
        }  # fmt: skip
        ub_end = p.ub_merge + p.merge_rows * p.head_dim_v * 4
        workspace = {"scores": 0, "weights": p.ws_weights, "output": p.ws_output}
        return [
            Memory("L1", L1, [
                Buffer("K and V", 0, p.l1_slot_bytes, SLOTS),
                Buffer("Q", p.l1_query, p.l1_query_bytes, 2),
                Buffer("P", p.l1_weights, p.l1_weights_bytes, 2),
            ]),
            Memory("L0A", L0, [Buffer("Q or P", 0, m * max(p.head_dim, p.value_step) * ITEM, 2)]),
            Memory("L0B", L0, [
                Buffer("K or V", 0, ITEM * max(p.key_step * p.head_dim,
                                               p.value_step * p.head_dim_v), 2),
            ]),
            Memory("L0C", L0C, [
                Buffer("S", 0, p.l0c_score_bytes, 2),
                Buffer("O", p.l0c_output, p.tile_heads * m * p.head_dim_v * 4),
            ]),
            Memory("UB", UB, _in_a_row(ub, ub_end)),
            Memory("workspace of a cluster", p.ws_bytes,
                   _in_a_row(workspace | {"partial results": p.ws_partials}, p.ws_bytes)),
        ]  # fmt: skip

    # ---- Text ------------------------------------------------------------------------------------

    def __str__(self) -> str:
        d = self.desc
        dims = f"head_dim {d.head_dim}" + f" and {d.head_dim_v} of V" * (d.head_dim_v != d.head_dim)
        lines = [
            f"{d.dtype}, batch {d.batch}, {d.heads} query heads on {d.kv_heads} kv heads, {dims},",
            f"up to {d.max_blocks} blocks of {d.block_size} tokens; {d.clusters} clusters",
            "",
            *self._tile_lines(),
            "",
        ]
        for memory in self.memories:
            lines += _memory_lines(memory)
        whole = d.clusters * self.plan.ws_bytes
        lines += [f"  of {d.clusters} clusters: {_kib(whole)}", "", *self._partition_lines()]
        return "\n".join(lines)

    def _tile_lines(self) -> list[str]:
        p, best = self.plan, self.candidates[0][1]
        lines = [f"tiles: modelled cycles for a token of a kv head; {len(self.candidates)} fit"]
        for i, (it, cycles) in enumerate(self.candidates[: 1 + _SHOWN]):
            more = f"  +{cycles / best - 1:.2%}" if i else ""
            lines.append(
                f"  {'next' if i else 'chosen':6} {it.tile_heads:3} kv heads x {it.tile_tokens:4} "
                f"tokens, loaded {it.chunk_tokens:4} at a time: {cycles:7.2f}{more}"
            )
        lines.append(
            f"  {p.rows} query heads a tile; a product takes {p.key_step} tokens of K, or "
            f"{p.value_step} of V"
        )
        return lines

    def _partition_lines(self) -> list[str]:
        p, part, tokens, groups = self.plan, self.partition, self.tokens, self.plan.head_groups
        pieces = part.pieces
        worked_on = part.lengths[part.lengths > 0]
        lines = [
            f"partition: an item is a sequence and one of {groups} groups of kv heads; it costs "
            f"{p.item_cost} tokens more, or {p.item_floor} in all if that is more"
        ]
        if len(worked_on):
            lines.append(
                f"  {len(worked_on)} sequences of {worked_on.min()} to {worked_on.max()} tokens, "
                f"mean {worked_on.mean():.1f}: {len(worked_on) * groups} items"
            )
        lines += [
            f"  lengths of 0: {(part.valid & (part.lengths == 0)).sum()}, rows become zeros; "
            f"out of range: {(~part.valid).sum()}, rows become NaN",
            f"  tokens a cluster: min {tokens.min()}, mean {tokens.mean():.1f}, max {tokens.max()}",
            f"  {len(pieces)} pieces in {len(tiles(part, p))} tiles; "
            f"clusters without work: {(tokens == 0).sum()} of {self.desc.clusters}",
        ]
        inside = pieces["begin"] > 0
        cut = (~inside & (pieces["end"] < pieces["length"])).sum()
        merging = "all clusters that have any" if part.together else "the first"
        merged = f"; merged by {merging}" if cut else ""
        lines.append(f"  items cut: {cut}, with {inside.sum()} parts behind the first{merged}")
        return lines

    # ---- Picture ---------------------------------------------------------------------------------

    def plot(self, path: str | Path) -> None:
        """Draw the share of every cluster as a PNG.

        Colours are sequences (they repeat after eighteen), grey is what items cost beyond their
        tokens, a black edge is a cut: the item goes on in the next cluster, or comes from the one
        before.
        """
        try:
            from matplotlib import colormaps
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.patches import Patch
        except ImportError as error:
            raise ImportError(
                "pa_hp.tiling: Explanation.plot needs matplotlib; pip install 'pa_hp[plot]'"
            ) from error
        part, clusters = self.partition, self.desc.clusters
        palette = [colormaps["tab20"](i) for i in _COLOURS]
        figure = Figure(figsize=(12, 1.2 + 0.25 * clusters), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        shares = np.diff(part.cuts)
        axes.barh(np.arange(len(shares)), shares, height=0.8, color="0.85", linewidth=0)
        for cluster in range(len(shares)):
            mine = part.pieces[part.pieces["cluster"] == cluster]
            begin = mine["place"] - part.cuts[cluster]
            width = mine["end"] - mine["begin"]
            colours = [palette[seq % len(palette)] for seq in mine["seq"]]
            spans = list(zip(begin, width, strict=True))
            axes.broken_barh(spans, (cluster - 0.4, 0.8), facecolors=colours, linewidth=0)
            edges = [
                *begin[mine["begin"] > 0],
                *(begin + width)[mine["end"] < mine["length"]],
            ]
            axes.vlines(edges, cluster - 0.45, cluster + 0.45, color="black", linewidth=1.5)
        axes.set_yticks(range(clusters))
        axes.set_ylim(clusters - 0.5, -0.5)
        most = max(int(shares.max()), 1)
        axes.set_xlim(-0.01 * most, 1.01 * most)
        axes.set_xlabel(f"tokens of {self.plan.tile_heads} kv heads")
        axes.set_ylabel("cluster")
        axes.set_title(
            f"batch {self.desc.batch}, groups of kv heads: {self.plan.head_groups}, "
            f"pieces: {len(part.pieces)}", loc="left",
        )  # fmt: skip
        shown = np.unique(part.pieces["seq"])
        legend = [Patch(color="0.85", label="cost of an item"), Patch(color="black", label="cut")]
        if len(shown) <= len(palette):
            legend += [Patch(color=palette[s % len(palette)], label=f"sequence {s}")
                       for s in shown]  # fmt: skip
        axes.legend(handles=legend, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        figure.savefig(path, dpi=110, format="png")


def explain(desc: DecodeDesc, seq_lens: ArrayLike) -> Explanation:
    """What the NPU kernel will do for these shapes and lengths, without running it.

    Parameters
    ----------
    desc : DecodeDesc
        Shapes, strides, dtype and number of clusters.
    seq_lens : integers, shape ``[batch]``
        Tokens of every sequence; a length out of range is one that nobody works on. An array, a
        list or a tensor on the CPU.

    Returns
    -------
    Explanation
        ``print`` it, or ``plot`` it. Cycles in it are modelled.

    Raises
    ------
    TypeError
        `desc` is no DecodeDesc.
    ValueError
        No plan fits the chip, or `seq_lens` is not a vector of `batch` integers.

    Examples
    --------
    >>> from pa_hp.tiling import DecodeDesc, explain
    >>> desc = DecodeDesc(
    ...     "bfloat16", batch=2, heads=32, kv_heads=8, head_dim=128, head_dim_v=128, num_blocks=64,
    ...     block_size=128, max_blocks=32, scale=128**-0.5, clusters=24,
    ...     query_strides=(4096, 128), key_strides=(131072, 1024, 128),
    ...     value_strides=(131072, 1024, 128), block_table_stride=32, out_strides=(4096, 128),
    ... )
    >>> why = explain(desc, [4000, 0])
    >>> int(why.tokens.sum()) == 4000 * why.plan.head_groups
    True
    """
    if not isinstance(desc, DecodeDesc):
        raise TypeError(
            f"pa_hp.tiling: expected desc to be a DecodeDesc, got {type(desc).__name__}"
        )
    the_plan = plan(desc)
    tiles = candidates(desc)
    cycles = cost(desc, tiles)
    ranked = [(tiles[i], float(cycles[i])) for i in np.argsort(cycles, kind="stable")]
    return Explanation(desc, the_plan, ranked, partition(seq_lens, the_plan, desc.clusters))


def _in_a_row(offsets: dict[str, int], end: int) -> list[Buffer]:
    """Buffers that lie one behind the other, the last one up to `end`."""
    ends = [*list(offsets.values())[1:], end]
    return [Buffer(n, at, to - at) for (n, at), to in zip(offsets.items(), ends, strict=True)]


def _kib(count: int) -> str:
    return f"{count / 1024:.1f} KiB"


def _memory_lines(memory: Memory) -> list[str]:
    used = sum(b.bytes * b.copies for b in memory.buffers)
    lines = [f"{memory.name}, {_kib(memory.bytes)}: {used / memory.bytes:.1%} used"]
    for b in memory.buffers:
        size = f"{b.copies} x {_kib(b.bytes)}" if b.copies > 1 else _kib(b.bytes)
        share = b.copies * b.bytes / memory.bytes
        lines.append(f"  {b.offset:7} {b.name:16} {size:>14} {share:7.1%}")
    return lines
