"""The bench's picture: shares of the read bandwidth, and speed-ups over the peers."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import harness


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A picture of `rows`: the share of the read bandwidth, and how many times as fast as peers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [f"{row['case'].removesuffix('_' + row['dtype'])} {row['dtype']}" for row in rows]
    places = range(len(rows))
    peers = list(rows[0]["ratios"])
    has_shares = rows[0]["share_of_read"] is not None
    figure = Figure(figsize=(10, 1.5 + 0.24 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, has_shares + bool(peers), sharey=True, squeeze=False)[0])
    if has_shares:
        panels[0].barh(places, [100 * row["share_of_read"] for row in rows], color="tab:blue")
        panels[0].set_xlabel("% of reading the same pages")
        panels[0].set_xlim(0, 100)
    if peers:
        for name in peers:
            values = [row["ratios"][name] for row in rows]
            panels[-1].plot(values, places, "o", label=f"x {name}")
        panels[-1].axvline(1, color="0.6")
        panels[-1].set_xscale("log", base=2)
        panels[-1].xaxis.set_major_formatter("{x:g}")
        panels[-1].set_xlabel("times as fast as")
        panels[-1].legend()
    for axes in panels:
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(places, names)
    panels[0].invert_yaxis()
    figure.suptitle("pa_hp.decode, {host}, {threads} threads".format(**harness.environment()))
    figure.savefig(path, dpi=120, format="png")


def picture(text: str) -> Path:
    """A file that `draw` can write."""
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("expected matplotlib, got none; pip install 'pa_hp[plot]'")
    path = Path(text)
    if not path.parent.is_dir():  # better now than after minutes of timing
        raise argparse.ArgumentTypeError(
            f"expected the directory of {path.name} to exist, got {path.parent}"
        )
    return path
