"""The steps of ``python -m pa_hp selftest`` by name: each checks or times one thing.

They run in a worker process. AssertionError says that an answer is wrong.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ... import build
from ..._version import __version__
from ...kernels.sim.report import chip_parameters
from ...ops.reference import reference
from .. import cases, checks, decode, harness
from ..cases import DecodeCase
from ..decode import Case
from .accuracy import (
    accuracy,
    accuracy_cases,
    against_ifa,
    bad_rows,
    expect_bits,
    ifa_takes,
    replay,
    replayed_cases,
    run,
    same_bits,
)
from .device import (
    DEVICE,
    Figures,
    Skipped,
    atb_call,
    chip,
    first_line,
    ifa_call,
    kind,
    on_device,
    torch_npu,
    virtual,
)
from .times import time_decode, time_kernel, time_peer, timed_cases

FENCE = "dsb(DSB_DDR);"


def all_steps(quick: bool = False) -> dict[str, Callable[[], Figures]]:
    """Every step by name, in the order in which they run."""
    part = functools.partial
    steps: dict[str, Callable[[], Figures]] = {"machine": machine, "build": first_use}
    for case in accuracy_cases():
        steps[f"accuracy.{case.id}"] = part(accuracy, case)
    steps["accuracy.bad_rows"] = bad_rows
    for case in accuracy_cases():
        if ifa_takes(case):
            steps[f"ifa.{case.id}"] = part(against_ifa, case)
    steps["repeat.same_bits"] = same_bits
    for case in replayed_cases():
        steps[f"replay.{case.id}"] = part(replay, case)
    for timed in timed_cases():
        name = f"time.{timed.name}"
        steps[name] = part(time_decode, timed)
        steps[f"{name}.ifa"] = part(time_peer, timed, ifa_call)
        steps[f"{name}.atb"] = part(time_peer, timed, atb_call)
    steps |= {f"question.{name}": step for name, step in QUESTIONS.items()}
    if not quick:
        return steps
    first = next(iter(timed_cases())).name
    wanted = re.compile(
        r"machine|build|accuracy\.(block_edges|group_7|everything_strided|bad_rows).*"
        r"|ifa\.group_7-float16|repeat\..*|replay\.gqa-.*"
        rf"|time\.{re.escape(first)}(\..*)?|question\.(?!fence|nd2nz|queue_depth).*"
    )
    return {name: step for name, step in steps.items() if wanted.fullmatch(name)}


# ---- The machine and the first use ---------------------------------------------------------------


def machine() -> Figures:
    """Versions and names; what cannot be read says why."""

    def first_lines(path: str) -> str:
        return " ".join(Path(path).read_text().split("\n")[:3])

    module = torch_npu()
    torch.zeros(1, device=DEVICE)  # what follows asks for a device in use
    toolkit = os.environ.get("ASCEND_HOME_PATH") or "/usr/local/Ascend/ascend-toolkit/latest"
    readers: dict[str, Callable[[], Any]] = {
        "cann": module.npu.utils.get_cann_version,
        "toolkit": lambda: first_lines(f"{toolkit}/version.info"),
        "driver": lambda: first_lines("/usr/local/Ascend/driver/version.info"),
        "properties": lambda: str(module.npu.get_device_properties(0)),
        "cpu": harness.cpu_name,
    }
    facts: Figures = {
        "pa_hp": __version__,
        "torch": torch.__version__,
        "torch_npu": module.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "task_queue": os.environ.get("TASK_QUEUE_ENABLE", "1 (default)"),
        "soc": module.npu.get_device_name(),
        "model": chip(),
        "hbm_limit_gbps": 1e3 * chip_parameters(chip(), ["hbm"])[0],
    }
    for name, read in readers.items():
        try:
            facts[name] = read()
        except Exception as error:  # each is worth having without the others
            facts[name] = f"not readable: {first_line(error)}"
    return facts


def first_use() -> Figures:
    """Build the libraries, if need be, and load them; an empty batch launches nothing."""
    begin = time.perf_counter()
    run(cases.make(cases.named("no_rows", torch.float16)))
    facts: Figures = {"seconds": time.perf_counter() - begin}
    for target in ("cpu", "npu"):
        try:
            lines = build.key_lines(target)
            facts[f"{target}_key"] = build.key(target)
            facts[f"{target}_tools"] = [line for line in lines if not line.startswith("file ")]
        except Exception as error:
            facts[f"{target}_key"] = f"not readable: {first_line(error)}"
    return facts


# ---- Open questions of docs/kernel.md ------------------------------------------------------------


def _even(batch: int, length: int, kv_heads: int = 8, block_size: int = 128) -> Case:
    name = f"b{batch}_kv{kv_heads}_s{length}_bs{block_size}"
    return Case(name, 32, kv_heads, 128, block_size, (length,) * batch, "fp16")


def _pair(case: Case, shuffle: bool = False, check: bool = True) -> Figures:
    """Median of the kernel, cold, and the model's time."""
    figures = time_decode(case, shuffle, check)
    us, modelled = figures["kernel_cold"]["p50"], figures["modelled_us"]
    over = figures.get("over_modelled")
    return {
        "us": us,
        "kind": kind(),
        "modelled_us": modelled,
        "over_modelled": over,
        "right": figures["right"],
    }


def scalar_loads() -> Figures:
    """What 240 more lengths cost, beyond the model, in which scalar loads cost nothing."""
    rows = 32 if virtual() else 256
    many, few = (_pair(_even(batch, 1, block_size=16)) for batch in (rows, 16))
    figures: Figures = {f"b{rows}": many, "b16": few, "limit_us": 2.0}
    if many["over_modelled"] and few["over_modelled"]:
        modelled = many["modelled_us"] - few["modelled_us"]
        figures["excess_us"] = many["us"] - few["us"] - modelled
    return figures


def queue_depth() -> Figures:
    """A batch that loads all the time: a short queue would make it slower than the model."""
    return _pair(_large())


def _large() -> Case:
    return _even(2 if virtual() else 16, 2048)


def signals() -> Figures:
    """The shortest decode, one without work, and the smallest kernel there is."""
    one = torch.zeros(1, device=DEVICE)
    empty = time_kernel(lambda _: one.add_(1), 1)
    figures: Figures = {"b1_s128": _pair(_even(1, 128)), "empty": empty}
    inputs = decode.make_inputs(_even(1, 128), max_layers=1).layer(0)
    tensors = [tensor.to(DEVICE) for tensor in inputs]
    tensors[4].zero_()
    figures["no_tokens"] = time_kernel(lambda _: torch.ops.pa_hp.decode(*tensors), 1)
    return figures


def nd2nz() -> Figures:
    """Pages in no order, so that a load is one page of 4 heads: 16 to 128 KiB."""
    batch = 1 if virtual() else 16
    sizes = (16, 32, 64, 128)
    return {f"{size}_KiB": _pair(_even(batch, 2048, 4, size), shuffle=True) for size in sizes}


def fence() -> Figures:
    """The same kernel built without its fences: only the time means something."""
    case = _large()
    # In a place that does not change, or its path would ask for another build every time.
    with build.locked("selftest-unfenced") as folder:
        shutil.rmtree(folder, ignore_errors=True)
        copy = folder / "pa_hp"
        skipped = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "tests", "docs")
        shutil.copytree(build.ROOT, copy, ignore=skipped)
        removed = 0
        for header in (copy / "kernels" / "npu").glob("*.h"):
            text = header.read_text()
            removed += text.count(FENCE)
            header.write_text(text.replace(FENCE, ""))
        if removed == 0:
            raise AssertionError(f"expected {FENCE} in kernels/npu/*.h, got none")
        search = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-c", _UNFENCED],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            check=False,
        )
        shutil.rmtree(folder)
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"without {FENCE}: {last}\n{done.stderr[-2000:]}")
    return {"removed": removed, "with": _pair(case), **json.loads(done.stdout.splitlines()[-1])}


# Wrong answers are to be expected there: they are told, and timed all the same.
_UNFENCED = """
import json
from pa_hp.bench.selftest import steps
print(json.dumps({"without": steps._pair(steps._large(), check=False)}))
"""


def dsb_on_a3() -> Figures:
    """Many launches on an A3; every other step runs there as well."""
    name = torch_npu().npu.get_device_name()
    if not name.startswith("Ascend910_93"):
        raise Skipped(f"this is no A3: {name}")
    return same_bits()


def unaligned_rows() -> Figures:
    """Groups of 3 query heads start at any multiple of 32 bytes in L1."""
    case = DecodeCase("group_3", (33, 300, 1, 1500), torch.float16, 12, 4, 128, block_size=128)
    return accuracy(case)


def odd_depth() -> Figures:
    """Every length from 1 to 33, NaN behind it."""
    lengths = tuple(range(1, 34))
    return accuracy(DecodeCase("odd", lengths, torch.float16, 8, 2, 128, block_size=128))


def expanded_query() -> Figures:
    """One query for the batch, with a row stride of 0."""
    case = DecodeCase("expanded", (300, 33, 1), torch.float16, 8, 2, 128)
    inputs = cases.make(case)
    query = inputs.query[:1].expand(3, -1, -1)
    out, lse = run(inputs._replace(query=query))
    copied, copied_lse = run(inputs._replace(query=query.contiguous()))
    expect_bits("out of an expanded query", out, copied)
    expect_bits("lse of an expanded query", lse, copied_lse)
    want, _ = reference(*inputs._replace(query=query))
    checks.check_out(case, inputs, out, want, case.dtype)
    return {"rows": 3}


def scalar_cache() -> Figures:
    """A graph whose first kernel lengthens every sequence by a token, replayed."""
    case = replayed_cases()[0]
    inputs = cases.make(case)
    start = inputs.seq_lens // 2
    more = (inputs.seq_lens >= 64).int()
    static = [on_device(tensor) for tensor in inputs._replace(seq_lens=start)]
    step = more.to(DEVICE)
    torch.ops.pa_hp.decode(*static)
    graph = torch_npu().npu.NPUGraph()
    with torch_npu().npu.graph(graph):
        static[4].add_(step)
        out = torch.ops.pa_hp.decode(*static)
    replays = 4 if virtual() else 32  # half of the shortest that grows
    for number in range(replays):
        graph.replay()
        values = inputs._replace(seq_lens=start + (number + 1) * more)
        want, _ = reference(*values)
        checks.check_out(case, values, out.cpu(), want, case.dtype)
    return {"replays": replays}


# One for every row of the table in docs/kernel.md; docs/on-hardware.md says which is which.
QUESTIONS: dict[str, Callable[[], Figures]] = {
    "scalar_loads": scalar_loads,
    "queue_depth": queue_depth,
    "signals": signals,
    "nd2nz": nd2nz,
    "fence": fence,
    "dsb_on_a3": dsb_on_a3,
    "unaligned_rows": unaligned_rows,
    "odd_depth": odd_depth,
    "nan": bad_rows,
    "expanded_query": expanded_query,
    "scalar_cache": scalar_cache,
}
