"""What a launch on the modelled chip gives back: findings, modelled times, pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

PIPES = ("S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX")
_WORK, _SET_FLAG, _WAIT, _BARRIER, _SIGNAL = range(5)  # Kind of core.h
_CORE, _PIPE, _KIND, _LABEL, _ID, _BYTES = range(6)  # columns of Timeline.fields


@dataclass(frozen=True)
class Finding:
    kind: str
    message: str
    count: int


@lru_cache
def _chip_tables() -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads((Path(__file__).resolve().parent / "chips.json").read_text())


def chip_names() -> list[str]:
    return [name for name in _chip_tables() if name != "all"]


def chip_parameters(soc: str, names: Sequence[str]) -> list[float]:
    """Values of `names` for one chip, from chips.json."""
    tables = _chip_tables()
    if soc not in chip_names():
        raise ValueError(
            f"pa_hp.sim: expected soc to be one of {', '.join(chip_names())}, got {soc!r}"
        )
    values = tables["all"] | tables[soc]
    return [float(values[name]["value"]) for name in names]


@dataclass
class Timeline:
    """Every operation of a launch in modelled time: arrays of one entry an operation."""

    core_names: list[str]
    labels: list[tuple[str, str]]  # builtin, file:line
    start: np.ndarray  # us
    end: np.ndarray
    fields: np.ndarray  # [operations, 6]: core, pipe, kind, label, flag id, GM bytes
    edges: np.ndarray  # [waits, 2]: what was waited for, the wait

    def core_ends(self) -> dict[str, float]:
        """When each core's last operation ends, in us."""
        ends = np.zeros(len(self.core_names))
        np.maximum.at(ends, self.fields[:, _CORE], self.end)
        return dict(zip(self.core_names, ends.tolist(), strict=True))


@dataclass
class Report:
    """One launch. Times are modelled, in microseconds; shares are of the whole modelled time.

    Attributes
    ----------
    hazards : list of Finding
        What the checker found; empty is good.
    time_us : float or None
        Modelled time of the kernel, without its launch. None: not timed (soc=None, or a failure).
    busy : dict, core -> pipe -> share
        Time that the pipe worked at its own pace. Pipe S is the scalar unit, busy while it issues.
    stalls : dict, core -> pipe -> reason -> us
        The rest of the time: "flag from P", "cross-core counter N", "bandwidth" (others held HBM
        or the L2), "issue" (the scalar unit had not come to it), "barrier", "finished", ...
    bytes : dict
        gm_read, gm_write (asked for), l2_read, l2_write (bursts padded), hbm_read, hbm_write.
    critical_path : list of dict
        Back from the last operation through what each one waited for: core type, pipe, builtin,
        site, us, share, count; largest first. The shares add up to 1.
    balance : float
        Slowest cluster over the mean of all clusters.
    checked : bool
        Whether hazards were looked for, and not bounds alone.
    sync_sites : dict, site -> executions
    ops : int
        Operations recorded.
    """

    hazards: list[Finding]
    sync_sites: dict[str, int]
    ops: int
    soc: str | None = None
    warm: bool = False
    checked: bool = True
    time_us: float | None = None
    busy: dict[str, dict[str, float]] = field(default_factory=dict)
    stalls: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    critical_path: list[dict[str, Any]] = field(default_factory=list)
    balance: float | None = None
    timeline: Timeline | None = field(default=None, repr=False)

    def add_timing(self, timing: dict[str, Any], timeline: Timeline | None = None) -> None:
        """Take over the timing pass's result (see timing.h)."""
        if "failure" in timing:
            self.hazards.append(Finding("timing", timing["failure"], 1))
            return
        total = self.time_us = timing["time_us"]
        for core in timing["cores"]:
            pipes = core["pipes"]
            self.busy[core["name"]] = {p: v["busy"] / (total or 1) for p, v in pipes.items()}
            self.stalls[core["name"]] = {p: v["stalls"] for p, v in pipes.items()}
        self.bytes = timing["bytes"]
        self.critical_path = timing["critical_path"]
        self.balance = timing["balance"]
        self.timeline = timeline

    # ---- Text -------------------------------------------------------------------------------

    def __str__(self) -> str:
        lines = []
        count = sum(f.count for f in self.hazards)
        alone = "" if self.checked else " (checker off: only what bounds and flags themselves tell)"
        recorded = f"; {self.ops} operations" if self.ops else ""  # of a timed launch
        lines.append(f"hazards: {count or 'none'}{alone}{recorded}")
        lines += [f"  {f.message}" + f" (x{f.count})" * (f.count > 1) for f in self.hazards[:3]]
        if len(self.hazards) > 3:
            lines.append(f"  and {len(self.hazards) - 3} more kinds")
        if self.time_us is None:
            return "\n".join([*lines, "no time was modelled"])
        start = "L2 warm from a run before" if self.warm else "L2 cold"
        lines.insert(0, f"modelled time {self.time_us:.2f} us on {self.soc}, {start}")
        size = {k: _size_text(v) for k, v in self.bytes.items()}
        rate = (self.bytes["hbm_read"] + self.bytes["hbm_write"]) / (self.time_us or 1) / 1e3
        lines.append(
            f"GM read {size['gm_read']}, written {size['gm_write']}; from HBM {size['hbm_read']}, "
            f"to HBM {size['hbm_write']} (modelled {rate:.0f} GB/s)"
        )
        lines.append(f"modelled balance {self.balance:.3f} (last end / mean end)")
        for kind in ("AIC", "AIV"):
            cores = [c for c in self.busy if c.startswith(kind)]
            if not cores:
                continue
            pipes = [p for p in PIPES if any(p in self.busy[c] for c in cores)]
            shares = [sum(self.busy[c].get(p, 0) for c in cores) / len(cores) for p in pipes]
            text = ", ".join(f"{p} {s:.0%}" for p, s in zip(pipes, shares, strict=True))
            lines.append(f"{kind} busy (modelled, mean of {len(cores)}): {text}")
            busiest = max((s, p) for s, p in zip(shares, pipes, strict=True) if p != "S" or
                          len(pipes) == 1)[1]  # fmt: skip
            reasons: dict[str, float] = {}
            for core in cores:
                for reason, us in self.stalls[core].get(busiest, {}).items():
                    reasons[reason] = reasons.get(reason, 0) + us / len(cores) / self.time_us
            worst = sorted(reasons.items(), key=lambda r: -r[1])[:3]
            if worst:
                text = ", ".join(f"{reason} {share:.0%}" for reason, share in worst)
                lines.append(f"  {busiest} is held up by: {text}")
        lines.append("critical path (modelled):")
        for part in self.critical_path[:5]:
            lines.append(
                f"  {part['us']:9.2f} us {part['share']:4.0%}  {part['core']} {part['pipe']} "
                f"{part['builtin']} {part['site']} (x{part['count']})"
            )
        return "\n".join(lines)

    # ---- Pictures ---------------------------------------------------------------------------

    def _chosen(self, cores: Sequence[str] | None) -> tuple[Timeline, list[int]]:
        timeline = self.timeline
        if timeline is None:
            raise ValueError(
                "pa_hp.sim: this launch was not timed; launch with a soc and no failure"
            )
        if cores is None:
            return timeline, list(range(len(timeline.core_names)))
        for name in cores:
            if name not in timeline.core_names:
                raise ValueError(
                    f"pa_hp.sim: expected cores to be names such as {timeline.core_names[0]!r}, "
                    f"got {name!r}"
                )
        return timeline, [timeline.core_names.index(name) for name in cores]

    def save_trace(
        self, path: str | Path, cores: Sequence[str] | None = None, limit: int = 200_000
    ) -> list[str]:
        """Write a Chrome trace (ui.perfetto.dev opens it) of the modelled times.

        One process a core, one thread a pipe, arrows for flags and cross-core signals.

        Parameters
        ----------
        path : str or Path
            The JSON file. An operation takes some 180 bytes.
        cores : sequence of str, optional
            The cores to show. By default the first ones, as many as `limit` lets in whole.
        limit : int
            Operations to show at most, if `cores` does not say otherwise.

        Returns
        -------
        list of str
            The cores shown.
        """
        timeline, chosen = self._chosen(cores)
        fields, start, end = timeline.fields, timeline.start, timeline.end
        if cores is None:
            sizes = np.bincount(fields[:, _CORE], minlength=len(chosen))
            chosen = chosen[: max(1, int((np.cumsum(sizes) <= limit).sum()))]
        events = []
        for core in chosen:
            meta = {"ph": "M", "pid": core}
            name = {"name": timeline.core_names[core]}
            events.append(json.dumps({**meta, "name": "process_name", "args": name}))
            events.append(json.dumps({**meta, "name": "process_sort_index",
                                      "args": {"sort_index": core}}))  # fmt: skip
            for pipe in np.unique(fields[fields[:, _CORE] == core, _PIPE]).tolist():
                thread = {**meta, "tid": pipe, "name": "thread_name", "args": {"name": PIPES[pipe]}}
                events.append(json.dumps(thread))
        labels = [(json.dumps(name), json.dumps(site)) for name, site in timeline.labels]
        categories = ("work", "flag", "wait", "barrier", "signal")
        shown = np.isin(fields[:, _CORE], chosen)
        for i in np.flatnonzero(shown).tolist():
            core, pipe, kind, label, number, moved = fields[i].tolist()
            name, site = labels[label]
            more = f',"bytes":{moved}' if moved else "" if kind == _WORK else f',"id":{number}'
            events.append(
                f'{{"ph":"X","name":{name},"cat":"{categories[kind]}","pid":{core},"tid":{pipe},'
                f'"ts":{start[i]:.5f},"dur":{end[i] - start[i]:.5f},"args":{{"at":{site}{more}}}}}'
            )
        for n, (a, b) in enumerate(timeline.edges.tolist()):
            if not (shown[a] and shown[b]):
                continue
            for phase, i, ts in (("s", a, start[a]), ("f", b, max(start[b], end[b] - 1e-4))):
                core, pipe = fields[i, :2].tolist()
                bind = ',"bp":"e"' if phase == "f" else ""
                events.append(
                    f'{{"ph":"{phase}","name":"wait","cat":"flow","id":{n},"pid":{core},'
                    f'"tid":{pipe},"ts":{ts:.5f}{bind}}}'
                )
        names = [timeline.core_names[core] for core in chosen]
        facts = {
            "soc": self.soc,
            "times": "modelled, not measured",
            "cores": f"{len(names)} of {len(timeline.core_names)}",
        }
        about = json.dumps(facts)
        Path(path).write_text(
            '{"displayTimeUnit":"ns","otherData":' + about + ',"traceEvents":[\n'
            + ",\n".join(events) + "\n]}\n"
        )  # fmt: skip
        return names

    def plot(
        self,
        path: str | Path,
        cores: Sequence[str] | None = None,
        begin_us: float = 0.0,
        end_us: float | None = None,
    ) -> None:
        """Draw pipes over modelled time as a PNG: colours are builtins, hatched is waiting.

        `cores` are the first cluster's by default; [begin_us, end_us) is all of the time.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.patches import Patch
        except ImportError as error:
            raise ImportError(
                "pa_hp.sim: Report.plot needs matplotlib; pip install 'pa_hp[plot]'"
            ) from error
        if cores is None and self.timeline is not None:
            names = self.timeline.core_names
            first = names[0].split()[-1].split(".")[0]
            cores = [n for n in names if n.split()[-1].split(".")[0] == first]
        timeline, chosen = self._chosen(cores)
        until = (self.time_us or 0.0) if end_us is None else end_us
        shown = np.isin(timeline.fields[:, _CORE], chosen)
        shown &= (timeline.end > begin_us) & (timeline.start < until)
        if not shown.any():
            raise ValueError(
                f"pa_hp.sim: expected an operation to draw between {begin_us} and {until} us, "
                f"got none"
            )
        fields, start = timeline.fields[shown], timeline.start[shown]
        length = timeline.end[shown] - start
        work = fields[:, _KIND] == _WORK
        # A wait narrower than a pixel is invisible, and hatching is slow.
        waits = np.isin(fields[:, _KIND], (_WAIT, _BARRIER)) & (length > (until - begin_us) / 2000)
        rows = [
            (core, pipe)
            for core in chosen
            for pipe in np.unique(fields[(fields[:, _CORE] == core) & work, _PIPE]).tolist()
        ] or [(core, 0) for core in chosen]
        builtins = sorted({name for name, _ in timeline.labels})
        numbers = np.array([builtins.index(name) for name, _ in timeline.labels])[fields[:, _LABEL]]
        spent = np.bincount(numbers[work], length[work], minlength=len(builtins))
        order = [n for n in np.argsort(-spent, kind="stable").tolist() if spent[n] > 0]
        palette = _palette()
        colours = {n: palette[min(i, len(palette) - 1)] for i, n in enumerate(order)}
        figure = Figure(figsize=(14, 1.2 + 0.36 * len(rows) + 0.25), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for row, (core, pipe) in enumerate(rows):
            here = (fields[:, _CORE] == core) & (fields[:, _PIPE] == pipe)

            def bars(which: np.ndarray, row: int = row, **look: Any) -> None:
                spans = list(zip(start[which], length[which], strict=True))
                axes.broken_barh(spans, (row - 0.4, 0.8), linewidth=0, **look)

            bars(here & waits, facecolor="0.93", edgecolor="0.7", hatch="////")
            for number, colour in colours.items():
                bars(here & work & (numbers == number), facecolor=colour)
        axes.set_yticks(range(len(rows)),
                        [f"{timeline.core_names[c]} {PIPES[p]}" for c, p in rows])  # fmt: skip
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(begin_us, until)
        axes.set_xlabel("modelled time, us")
        axes.set_title(f"modelled on {self.soc}: {self.time_us:.2f} us", loc="left")
        labels = [builtins[number] for number in order[: len(palette)]]
        if len(order) > len(palette):
            labels[-1] = "others"
        legend = [Patch(color=c, label=n) for c, n in zip(palette, labels, strict=False)]
        legend.append(Patch(facecolor="0.93", edgecolor="0.7", hatch="////", label="waiting"))
        axes.legend(handles=legend, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        figure.savefig(path, dpi=110, format="png")


def _palette() -> list[str]:
    """Ten colours; the last is shared by all builtins from the tenth on, if there are more."""
    return ["tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown",
            "tab:pink", "tab:olive", "tab:cyan", "tab:gray"]  # fmt: skip


def _size_text(count: float) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
