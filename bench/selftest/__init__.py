"""``python -m pa_hp selftest``: every step on the NPU, one report file.

The steps (steps.py) run in a worker process: what crashes or hangs there is recorded, and
another worker goes on behind it. This process never touches the device.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import torch

from ..._version import __version__
from . import steps
from .device import DEVICE, Skipped, kind, torch_npu, virtual

Record = dict[str, Any]

COMMAND = [sys.executable, "-m", "pa_hp"]  # how this command starts itself
FIRST = ("machine", "build")  # without them nothing else is worth trying
SECONDS = 300.0  # for a step; a kernel that hangs does not end by itself
LONG, LONG_SECONDS = ("build", "question.fence"), 1800.0  # those that build
MAX_DEAD = 5  # steps in a row that break the device or hang, before the rest is given up
LOG_CHARACTERS = 2000  # of what a dead worker printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``selftest``."""
    parser.add_argument("--device", choices=["npu"], default="npu", help="(npu)")
    parser.add_argument("--quick", action="store_true", help="few steps: a minute or two")
    parser.add_argument(
        "--step",
        action="append",
        metavar="NAME",
        help="only this step, or those that a glob matches; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, help="the report (./pa_hp-selftest-SOC-DATE.json)", metavar="FILE"
    )
    parser.add_argument("--worker", type=int, metavar="FD", help=argparse.SUPPRESS)


def command(arguments: argparse.Namespace) -> int:
    """``selftest``; returns 0 if no step failed, 1 if one did, 2 for wrong arguments."""
    if arguments.worker is not None:
        with open(arguments.worker, "w") as pipe:
            work(arguments.step, pipe)
        return 0
    known = list(steps.all_steps(arguments.quick))
    names = [*FIRST] if arguments.step else known
    for pattern in arguments.step or []:
        found = fnmatch.filter(known, pattern)
        if not found:
            print(
                f"python -m pa_hp selftest: expected --step to name a step, got {pattern!r}; "
                f"known are: {', '.join(known)}",
                file=sys.stderr,
            )
            return 2
        names += [name for name in found if name not in names]
    report: Record = {
        "format": 1,
        "pa_hp": __version__,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "options": {"quick": arguments.quick, "step": arguments.step},
        "virtual_npu": virtual(),
        "times_of_events": kind(),
        "steps": [],
    }
    path = arguments.out
    try:
        if path is not None:
            _write(path, report)  # before anything else: it may be a place that cannot be written
        with contextlib.closing(supervise(names)) as records:  # no worker outlives a Ctrl-C
            for record in records:
                report["steps"].append(record)
                if path is None:
                    path = Path(_file_name(report))
                _write(path, report)  # after every step: nothing is lost if this process ends
                print(_line(record), flush=True)
    except _Unwritable as error:
        print(
            f"python -m pa_hp selftest: expected --out to be writable, got: {error}",
            file=sys.stderr,
        )
        return 2
    print("\n".join(["", *summary(report), f"report: {path}"]))
    return 1 if any(record["status"] == "failed" for record in report["steps"]) else 0


def _file_name(report: Record) -> str:
    soc = report["steps"][0].get("figures", {}).get("soc", "unknown")
    return f"pa_hp-selftest-{soc}-{report['date'][:10]}.json"


class _Unwritable(OSError):
    """Of the report, not of anything else that goes on."""


def _write(path: Path, report: Record) -> None:
    text = json.dumps(report, indent=1)
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_text(text + "\n")
        partial.replace(path)
    except OSError as error:
        raise _Unwritable(error) from error


# ---- The worker ----------------------------------------------------------------------------------


def work(names: Sequence[str], pipe: IO[str]) -> None:
    """Run steps and write a line of JSON for each; stop after one that has broken the device."""
    known = steps.all_steps()
    for name in names:
        record = run_step(name, known[name])
        record["stop"] = record["status"] != "passed" and not _healthy()
        pipe.write(json.dumps(record) + "\n")
        pipe.flush()
        if record["stop"]:
            return


def run_step(name: str, step: Callable[[], dict[str, Any]]) -> Record:
    """The record of one step, whatever happens in it."""
    begin = time.perf_counter()
    record: Record = {"step": name, "status": "passed"}
    try:
        record["figures"] = step()
        torch_npu().npu.synchronize()  # what it left behind counts as its own
    except Skipped as reason:
        record |= {"status": "skipped", "reason": str(reason)}
    except AssertionError as error:
        record |= {"status": "failed", "reason": str(error)}
    except Exception as error:  # of whatever kind: the next step is to run
        record |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        record["traceback"] = traceback.format_exc()
    record["seconds"] = round(time.perf_counter() - begin, 3)
    return record


def _healthy() -> bool:
    try:
        torch_npu().npu.synchronize()
        return (torch.ones(1, device=DEVICE) + 1).item() == 2
    except Exception:  # no device, or one that an error has left unusable
        return False


# ---- The one that watches it ---------------------------------------------------------------------


def supervise(names: Sequence[str]) -> Generator[Record, None, None]:
    """Records of all steps, in order."""
    left, dead, why = list(names), 0, ""
    while left and not why:
        with tempfile.TemporaryFile() as log, _worker(left, log) as lines:
            for record in _records(lines, left):
                left.pop(0)
                stop = record.pop("stop")
                if stop:
                    log.seek(0)
                    record["log"] = log.read().decode(errors="replace")[-LOG_CHARACTERS:]
                yield record
                if record["status"] == "passed":
                    dead = 0
                elif record["step"] in FIRST:
                    why = f"needs the step {record['step']}"
                if stop or why:
                    break
        dead += 1
        if dead >= MAX_DEAD:
            why = f"the {dead} steps before it left the device unusable"
    yield from ({"step": name, "status": "skipped", "reason": why} for name in left)


@contextlib.contextmanager
def _worker(names: Sequence[str], log: IO[bytes]) -> Iterator[int]:
    """A process that runs the steps, and the pipe that it writes to; it does not outlive us."""
    read, write = os.pipe()
    options = [word for name in names for word in ("--step", name)]
    process = subprocess.Popen(
        [*COMMAND, "selftest", *options, "--worker", str(write)],
        pass_fds=[write],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # so that what it starts goes with it
    )
    os.close(write)
    try:
        yield read
    finally:
        with contextlib.suppress(ProcessLookupError):  # all of them have ended
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver can hold on to it
            process.wait(timeout=30)
        os.close(read)


def _records(pipe: int, names: Sequence[str]) -> Iterator[Record]:
    """What the worker writes; of a step in which it dies or hangs, a record that says so."""
    buffer = b""
    for name in list(names):
        seconds = LONG_SECONDS if name in LONG else SECONDS
        deadline = time.monotonic() + seconds
        while b"\n" not in buffer:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(pipe, 1 << 16) if ready else b""
            if not chunk:
                why = "the process ended" if ready else f"not done after {seconds:.0f} s"
                yield {"step": name, "status": "failed", "reason": why, "stop": True}
                return
            buffer += chunk
        line, _, buffer = buffer.partition(b"\n")
        yield json.loads(line)


# ---- Text ----------------------------------------------------------------------------------------


def _line(record: Record) -> str:
    figures = record.get("figures", {})
    parts = [f"{record['status']:<8}{record['step']:<48}{record.get('seconds', 0):7.1f} s"]
    if "of_tolerance" in figures:
        parts.append(f"{figures['of_tolerance']:.2f} of the tolerance")
    if "reason" in record:
        parts.append(record["reason"].split("\n")[0])
    return "  ".join(parts)


def summary(report: Record) -> list[str]:
    """The report in lines of text."""
    records = {record["step"]: record for record in report["steps"]}
    facts = records["machine"].get("figures", {})
    times = report["times_of_events"]
    lines = [f"{name:<16}{value}" for name, value in facts.items()]
    timed = [
        (name, r["figures"]) for name, r in records.items() if "kernel_cold" in r.get("figures", {})
    ]
    ours = [(name, figures) for name, figures in timed if "gbps" in figures]
    if ours:
        lines += [
            "",
            f"Times in us. Kernel: from events, {times}, L2 cold, [p10 p90]. Host: the call alone, "
            "measured. IFA and ATB: kernel, host.",
            _row("case", f"kernel, {times}", "GB/s", "% of limit", "/ model", "host", "IFA", "ATB"),
        ]
    for name, figures in ours:
        cold, over = figures["kernel_cold"], figures.get("over_modelled")
        lines.append(
            _row(
                name.removeprefix("time."),
                f"{cold['p50']:.1f} [{cold['p10']:.1f} {cold['p90']:.1f}]",
                f"{figures['gbps']:.0f}",
                f"{100 * figures['share_of_hbm_limit']:.0f}",
                "-" if over is None else f"{over:.2f}",
                f"{figures['host']['p50']:.1f}",
                *(_peer(records.get(f"{name}.{peer}", {})) for peer in ("ifa", "atb")),
            )
        )
    questions = [r for name, r in records.items() if name.startswith("question.")]
    if questions:
        lines += ["", f"Open questions of docs/kernel.md; times of events are {times}."]
    for record in questions:
        lines.append(f"{record['step']:<28}{record['status']}  {_answer(record)}")
    lines += ["", "failed:"] * any(r["status"] == "failed" for r in records.values())
    lines += [_line(r) for r in records.values() if r["status"] == "failed"]
    counts = Counter(record["status"] for record in report["steps"])
    return [*lines, "", ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))]


def _row(case: str, *cells: str) -> str:
    widths = (26, 6, 10, 7, 9, 15, 15)
    return " | ".join(
        [f"{case:<34}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))]
    )


def _peer(record: Record) -> str:
    figures = record.get("figures")
    if figures is None:
        status = str(record.get("status", "-"))
        return "absent" if status == "skipped" else status
    host = f"host {figures['host']['p50']:.1f}"
    return f"{figures['kernel_cold']['p50']:.1f}, {host}" if "kernel_cold" in figures else host


def _answer(record: Record) -> str:
    """The numbers of a question's figures, in a line."""
    if "reason" in record:
        return record["reason"].split("\n")[0]

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}"
        if isinstance(value, dict):
            inner = {
                k: v
                for k, v in value.items()
                if k in ("us", "modelled_us", "p50", "kernel_cold", "figures")
            }
            return f"({', '.join(f'{k} {text(v)}' for k, v in inner.items())})"
        return str(value)

    return ", ".join(f"{k} {text(v)}" for k, v in record["figures"].items())
