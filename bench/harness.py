"""What every bench needs: facts about the host, fair interleaved timing, progress on a terminal."""

from __future__ import annotations

import itertools
import math
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from .. import build
from .._version import __version__

WARM_UP_SECONDS = 0.02  # per candidate: clocks settle, threads start, lazy set-up is done
MIN_STEPS, MAX_STEPS = 5, 2000
KEEP_SHARE = 0.1  # with fewer undisturbed steps than this, all count and the row is called noisy


class Samples(NamedTuple):
    """Times in seconds, one list a candidate, entry i of all of them from the same step."""

    times: dict[str, list[float]]
    noisy: bool


def interleave(
    candidates: dict[str, Callable[[int], object]], num_layers: int, seconds: float
) -> Samples:
    """Time ``candidate(layer)`` of every candidate in every step.

    The order rotates and is reversed in every second step, so none always follows the same
    neighbour, and every call takes the next of `num_layers` independent inputs, so it finds what
    was touched longest ago. The bandwidth of a shared machine moves by a factor of two within a
    minute: only ratios within one step hold. Steps in which the kernel took a core away are dropped
    while enough others are left.
    """
    names = list(candidates)
    calls = itertools.count()
    for name in names:
        end = time.perf_counter() + WARM_UP_SECONDS
        candidates[name](next(calls) % num_layers)
        while time.perf_counter() < end:
            candidates[name](next(calls) % num_layers)
    steps: list[dict[str, float]] = []
    disturbed: list[bool] = []
    end = time.perf_counter() + seconds
    while len(steps) < MIN_STEPS or (time.perf_counter() < end and len(steps) < MAX_STEPS):
        shift = len(steps) // 2 % len(names)
        order = names[shift:] + names[:shift]
        if len(steps) % 2:
            order.reverse()
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        step = {}
        for name in order:
            layer = next(calls) % num_layers
            begin = time.perf_counter()
            candidates[name](layer)
            step[name] = time.perf_counter() - begin
        steps.append(step)
        disturbed.append(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw != switches)
    quiet = [step for step, bad in zip(steps, disturbed, strict=True) if not bad]
    noisy = len(quiet) < max(MIN_STEPS, KEEP_SHARE * len(steps))
    kept = steps if noisy else quiet
    return Samples({name: [step[name] for step in kept] for name in names}, noisy)


def quantile(values: Iterable[float], q: float) -> float:
    """Linear between neighbours; 0.5 is the median."""
    return float(torch.tensor(list(values), dtype=torch.float64).quantile(q))


def ratio(samples: Samples, peer: str, ours: str) -> float:
    """Median over the steps of time of `peer` / time of `ours`: how many times faster ours is."""
    pairs = zip(samples.times[peer], samples.times[ours], strict=True)
    return quantile((theirs / own for theirs, own in pairs), 0.5)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def environment() -> dict[str, str | int]:
    """What a figure depends on."""
    (compiler,) = (line for line in build.key_lines() if line.startswith("compiler "))
    return {
        "pa_hp": __version__,
        "key": build.key(),
        "compiler": compiler.removeprefix("compiler "),
        "host": cpu_name(),
        "simd": build.cpu_isa(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} x {len(names) or '?'}"


def l3_bytes() -> int:
    """Size of the last-level cache; 32 MiB, a common one, where the kernel does not say."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    try:
        return int(path.read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 32 << 20


def available_bytes() -> int:
    """Memory that can be had without swapping: of the machine, or of a cgroup that has less."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return min([int(line.split()[1]) * 1024, *cgroup_bytes()])
    raise OSError("pa_hp: expected MemAvailable in /proc/meminfo, got none")


def cgroup_bytes(
    table: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """What is left to every cgroup around this process that has a limit; v1 and v2."""
    for line in table.read_text().splitlines() if table.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        parts = Path(path).parts[1:]
        for depth in range(len(parts) + 1):
            group = mount.joinpath(*parts[:depth])
            try:
                limit, used = (int((group / name).read_text()) for name in names)
                stat = dict(re.findall(r"^(\w+) (\d+)$", (group / "memory.stat").read_text(), re.M))
            except (OSError, ValueError):  # a path from outside of this container; no limit: "max"
                continue
            # File pages count as used, but the kernel drops them for whoever asks.
            cached = int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)
            yield max(0, limit - used + cached)


def progress(text: str) -> None:
    """Show `text` in place of the last one, on a terminal only; "" wipes it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
