"""A model of an Ascend A2 chip that runs raw-CCE kernels on the CPU.

Right answers, a check of every synchronisation, and a modelled time; docs/simulator.md tells how to
read what it says.
"""

from __future__ import annotations

import ctypes
import json
import math
import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from . import toolchain as _toolchain
from .report import Finding, Report, Timeline, chip_names, chip_parameters

# The runtime has one running launch at a time, and ctypes lets other threads run meanwhile.
_running = threading.Lock()

_INTEGERS = "bhiqBHIQ"  # of pa_sim_signature, as numpy has them

__all__ = ["Finding", "Kernel", "Report", "chip_names"]


class Kernel:
    """A raw-CCE source, built for the simulator.

    Parameters
    ----------
    path : str or Path
        The source (``.cce``), as bisheng would compile it.
    entry : str
        Name of its ``__global__`` function.
    include_dirs : sequence of str or Path
        Searched for the source's own headers.
    defines : sequence of str
        Macros, ``NAME`` or ``NAME=VALUE``.
    cores : str
        What one block runs on: "mix" (a cube core and its two vector cores), "aic" or "aiv".
    strict : bool
        Build with clang and an address space per memory: pointers of different memories do not
        mix, and a plain dereference of ``__ubuf__`` works (x86-64).

    Raises
    ------
    pa_hp.BuildError
        The source does not compile, or there is no compiler.
    ValueError
        Unknown `cores`, or no such file.
    """

    def __init__(
        self,
        path: str | Path,
        entry: str,
        *,
        include_dirs: Sequence[str | Path] = (),
        defines: Sequence[str] = (),
        cores: str = "mix",
        strict: bool = False,
    ) -> None:
        if cores not in _toolchain.CORES:
            raise ValueError(f"sim.Kernel: expected cores to be mix, aic or aiv, got {cores!r}")
        self.path = Path(path).resolve()
        if not self.path.is_file():
            raise ValueError(f"sim.Kernel: expected path to be a file, got {str(path)!r}")
        self.entry = entry
        self.cores = cores
        folder, self._halves = _toolchain.kernel(
            self.path, entry, include_dirs, defines, cores, strict
        )
        self.folder = folder  # of the built halves
        # A letter an argument: p pointer, i integer, f float, d double.
        letters = next(iter(self._halves.values())).pa_sim_signature().decode()
        self.signature = re.findall(r"\w\+*", letters)  # one an argument

    def launch(
        self,
        block_dim: int,
        *args: Tensor | np.ndarray | int | float | None,
        soc: str | None = "910B2",
        check: bool = True,
        strict_visibility: bool = False,
        schedule_seed: int = 0,
        latest: bool = False,
        warm: bool = False,
        drop: str = "",
        blind: bool = False,
    ) -> Report:
        """Run the kernel; tensors are changed in place.

        Parameters
        ----------
        block_dim : int
            Number of blocks (clusters for "mix").
        *args : Tensor, numpy array, int, float or None
            One an argument of the entry. A tensor is a pointer to its first element, and the kernel
            may touch its storage and nothing else; None is a null pointer; the bytes of an array
            are a struct that is passed by value.
        soc : str or None
            Chip that the modelled time is for: 910B1, 910B2, 910B3 or 910B4. None models no time.
        check : bool
            Look for hazards. Bounds are always checked.
        strict_visibility : bool
            A store to GM reaches other cores only behind a fence (pipe_barrier, then dsb).
        schedule_seed : int
            Which ready core runs next: 0 round robin, else a fixed permutation.
        latest : bool
            Carry out every operation as late as its flags allow, so that a missing
            synchronisation shows as a wrong value too.
        warm : bool
            Model the time with the L2 cache as a first run leaves it.
        drop : str
            A synchronisation to leave out, as `Report.sync_sites` names it: for mutation tests.
        blind : bool
            A dropped wait still waits, but orders nothing: only the check of the order can notice.

        Returns
        -------
        Report

        Raises
        ------
        ValueError
            Arguments that do not fit the entry's, an unknown `soc`, or a `drop` that the launch
            has not come by.
        """
        runtime = _toolchain.runtime()
        words, regions = self._arguments(args)
        parameters = (
            []
            if soc is None
            else chip_parameters(soc, runtime.pa_sim_parameters().decode().split(","))
        )
        if block_dim < 1:
            raise ValueError(f"sim.Kernel: expected block_dim to be at least 1, got {block_dim}")
        options = _toolchain.Options(
            block_dim,
            _toolchain.CORES[self.cores],
            check,
            strict_visibility,
            latest,
            soc is not None,  # record for the timing pass
            0xFF,  # poison: NaN in every float type
            blind,
            schedule_seed,
            drop.encode(),
        )
        entries = [
            ctypes.cast(self._halves[half].pa_sim_entry, ctypes.c_void_p)
            if half in self._halves
            else None
            for half in _toolchain.HALVES
        ]
        count = len(regions)
        begins, ends, names = zip(*regions, strict=True) if regions else ((), (), ())
        with _running:
            handle = runtime.pa_sim_launch(
                ctypes.byref(options),
                *entries,
                (ctypes.c_uint64 * len(words))(*words),
                len(words),
                count,
                (ctypes.c_uint64 * count)(*begins),
                (ctypes.c_uint64 * count)(*ends),
                (ctypes.c_char_p * count)(*names),
            )
        try:
            facts = json.loads(runtime.pa_sim_report(handle))
            findings = [
                Finding(f["kind"], self._with_lines(f["message"]), f["count"])
                for f in facts["findings"]
            ]
            if facts["failure"]:
                kind = "deadlock" if facts["failure"].startswith("deadlock") else "stopped"
                findings.insert(0, Finding(kind, facts["failure"], 1))
            if drop and drop not in facts["sync_sites"] and not facts["failure"]:
                raise ValueError(
                    f"{self.entry}: expected drop to be one of Report.sync_sites, got {drop!r}"
                )
            report = Report(findings, facts["sync_sites"], facts["ops"], soc, warm, check)
            if soc is not None and not facts["failure"]:
                _add_time(runtime, handle, report, parameters)
        finally:
            runtime.pa_sim_free(handle)
        return report

    def _arguments(
        self, args: Sequence[Tensor | np.ndarray | int | float | None]
    ) -> tuple[list[int], list[tuple[int, int, bytes]]]:
        """The arguments' words, and (begin, end, name) of every tensor."""
        if len(args) != len(self.signature):
            raise ValueError(
                f"{self.entry}: expected {len(self.signature)} arguments, got {len(args)}"
            )
        words: list[int] = []
        regions: dict[int, tuple[int, int, bytes]] = {}
        for number, (arg, letter) in enumerate(zip(args, self.signature, strict=True)):
            if isinstance(arg, Tensor) and letter == "p" and arg.device.type == "cpu":
                storage = arg.untyped_storage()
                begin = storage.data_ptr()
                words.append(arg.data_ptr())
                if storage.nbytes() > 0:
                    name = f"argument {number}".encode()
                    regions.setdefault(begin, (begin, begin + storage.nbytes(), name))
            elif arg is None and letter == "p":
                words.append(0)
            elif isinstance(arg, int) and letter in _INTEGERS and _fits(arg, letter):
                words.append(arg & (2**64 - 1))
            elif isinstance(arg, int | float) and letter in "fd" and _fits(arg, letter):
                words.append(int.from_bytes(np.array(arg, letter).tobytes(), "little"))
            elif isinstance(arg, np.ndarray) and -(-arg.nbytes // 8) == letter.count("+") + 1:
                raw = arg.tobytes().ljust(8 * len(letter), b"\0")
                words += np.frombuffer(raw, np.uint64).tolist()
            else:
                wanted = {
                    "p": "a CPU tensor or None",
                    "s": f"a numpy array of {8 * len(letter)} bytes",
                    **dict.fromkeys(_INTEGERS, "an int"),
                    **dict.fromkeys("fd", "a number"),
                }[letter[0]]
                if letter in _INTEGERS + "fd":
                    wanted += f" of {np.dtype(letter)}"

                raise ValueError(
                    f"{self.entry}: expected argument {number} to be {wanted}, got {arg!r}"
                )
        return words, list(regions.values())

    def _with_lines(self, message: str) -> str:
        """File and line for the places of scalar accesses, which come as library+offset."""

        def place(match: re.Match[str]) -> str:
            addr2line = shutil.which("addr2line")
            if addr2line is None:
                return match[0]
            done = subprocess.run(
                [addr2line, "-e", str(self.folder / match[1]), match[2]],
                capture_output=True,
                text=True,
                check=False,
            )
            where = done.stdout.strip().rsplit("/", 1)[-1].split(" ")[0]
            return where if where and not where.startswith("?") else match[0]

        return re.sub(r"(\w+\.so)\+(0x[0-9a-f]+)", place, message)


def _fits(number: float, letter: str) -> bool:
    """Whether a type holds a number; a float may be rounded."""
    if letter in _INTEGERS:
        limits = np.iinfo(letter)
        return limits.min <= number <= limits.max
    size = abs(number)
    return not size > float(np.finfo(letter).max) or size == math.inf


def _add_time(
    runtime: ctypes.CDLL, handle: int, report: Report, parameters: Sequence[float]
) -> None:
    """Run the timing pass and add its result to the report."""
    values = (ctypes.c_double * len(parameters))(*parameters)
    timing = json.loads(runtime.pa_sim_time(handle, values, report.warm))
    if "failure" in timing:
        report.add_timing(timing)
        return
    count = runtime.pa_sim_num_events(handle)
    start, end = np.empty(count), np.empty(count)
    fields = np.empty((count, 6), np.int32)
    edges = np.empty((runtime.pa_sim_edges(handle, None), 2), np.int64)
    runtime.pa_sim_events(handle, start.ctypes.data, end.ctypes.data, fields.ctypes.data)
    runtime.pa_sim_edges(handle, edges.ctypes.data)
    names = [core["name"] for core in timing["cores"]]
    labels = [tuple(label) for label in timing["labels"]]
    report.add_timing(timing, Timeline(names, labels, start, end, fields, edges))
