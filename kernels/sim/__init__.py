"""A model of an Ascend A2 chip that runs raw-CCE kernels on the CPU."""

from __future__ import annotations

import ctypes
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .report import Finding, Report, Timeline, chip_parameters

_ROOT = Path(__file__).resolve().parent
_SOURCES = [
    "api.cpp",
    "launch.cpp",
    "shadow.cpp",
    "sync.cpp",
    "move.cpp",
    "cube.cpp",
    "vector.cpp",
    "convert.cpp",
    "reduce.cpp",
    "timing.cpp",
]
_CORES = {"mix": 0, "aic": 1, "aiv": 2}
_HALVES = {"cube": "__DAV_C220_CUBE__", "vector": "__DAV_C220_VEC__"}


class _Options(ctypes.Structure):
    _fields_ = [
        ("block_dim", ctypes.c_int32),
        ("cores_kind", ctypes.c_int32),
        ("check", ctypes.c_int32),
        ("strict_visibility", ctypes.c_int32),
        ("latest", ctypes.c_int32),
        ("record", ctypes.c_int32),
        ("poison", ctypes.c_int32),
        ("blind", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("drop", ctypes.c_char_p),
    ]


_runtime: ctypes.CDLL | None = None
_CACHE: dict = {}


def _load_runtime() -> ctypes.CDLL:
    global _runtime
    if _runtime is None:
        out = Path(tempfile.mkdtemp()) / "libsim.so"
        jobs = []
        objects = []
        for source in _SOURCES:
            obj = out.parent / (source + ".o")
            objects.append(str(obj))
            jobs.append(
                subprocess.Popen(
                    ["g++", "-std=c++17", "-O2", "-mavx2", "-mfma", "-mf16c", "-g1", "-fPIC", "-c",
                     str(_ROOT / source), "-o", str(obj)]
                )
            )
        for job in jobs:
            if job.wait() != 0:
                raise RuntimeError("runtime does not compile")
        subprocess.run(["g++", "-shared", *objects, "-o", str(out)], check=True)
        _runtime = ctypes.CDLL(str(out), mode=ctypes.RTLD_GLOBAL)
        _runtime.pa_sim_launch.restype = ctypes.c_void_p
        _runtime.pa_sim_report.restype = ctypes.c_char_p
        _runtime.pa_sim_report.argtypes = [ctypes.c_void_p]
        _runtime.pa_sim_free.argtypes = [ctypes.c_void_p]
        _runtime.pa_sim_parameters.restype = ctypes.c_char_p
        _runtime.pa_sim_time.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
        _runtime.pa_sim_time.restype = ctypes.c_char_p
        _runtime.pa_sim_num_events.argtypes = [ctypes.c_void_p]
        _runtime.pa_sim_num_events.restype = ctypes.c_uint64
        _runtime.pa_sim_events.argtypes = [ctypes.c_void_p] * 4
        _runtime.pa_sim_edges.argtypes = [ctypes.c_void_p] * 2
        _runtime.pa_sim_edges.restype = ctypes.c_uint64
    return _runtime


class Kernel:
    """A raw-CCE source, built for the simulator."""

    def __init__(
        self,
        path: str | Path,
        entry: str,
        include_dirs: Sequence[str | Path] = (),
        defines: Sequence[str] = (),
        cores: str = "mix",
        strict: bool = False,
    ) -> None:
        self.cores = cores
        self.entry = entry
        self._halves: dict[str, ctypes.CDLL] = {}
        _load_runtime()
        work = Path(tempfile.mkdtemp())
        wrapper = work / "wrapper.cpp"
        wrapper.write_text(f'#include "{Path(path).resolve()}"\nPA_SIM_ENTRY({entry})\n')
        compiler = ["clang++-19", "-DPA_SIM_STRICT"] if strict else ["g++"]
        for half, macro in _HALVES.items():
            if (cores == "aic" and half == "vector") or (cores == "aiv" and half == "cube"):
                continue
            obj, lib = work / f"{half}.o", work / f"{half}.so"
            subprocess.run(
                [*compiler, "-std=c++17", "-O1", "-g1", "-fPIC", "-fsanitize=thread", "-w",
                 f"-D{macro}=1", *(f"-D{d}" for d in defines), f"-I{_ROOT / 'include'}",
                 *(f"-I{d}" for d in include_dirs), "-include", "cce.h", "-c", str(wrapper),
                 "-o", str(obj)],
                check=True,
            )  # fmt: skip
            subprocess.run([compiler[0], "-shared", str(obj), "-o", str(lib)], check=True)
            library = ctypes.CDLL(str(lib))
            library.pa_sim_signature.restype = ctypes.c_char_p
            self._halves[half] = library
        self.signature = next(iter(self._halves.values())).pa_sim_signature().decode()

    def launch(
        self,
        block_dim: int,
        *args: Tensor | int | float | None,
        check: bool = True,
        strict_visibility: bool = False,
        schedule_seed: int = 0,
        latest: bool = False,
        drop: str = "",
        blind: bool = False,
        soc: str | None = "910B2",
        warm: bool = False,
    ) -> Report:
        runtime = _load_runtime()
        assert len(args) == len(self.signature), (len(args), self.signature)
        words = (ctypes.c_uint64 * max(1, len(args)))()
        begins, ends, names = [], [], []
        for i, (arg, letter) in enumerate(zip(args, self.signature, strict=True)):
            if isinstance(arg, Tensor):
                words[i] = arg.data_ptr()
                begins.append(arg.data_ptr())
                ends.append(arg.data_ptr() + arg.untyped_storage().nbytes())
                names.append(f"argument {i}".encode())
            elif arg is None:
                words[i] = 0
            elif letter == "f":
                words[i] = ctypes.c_uint32.from_buffer(ctypes.c_float(arg)).value
            else:
                words[i] = int(arg) & (2**64 - 1)
        count = len(begins)
        options = _Options(block_dim, _CORES[self.cores], check, strict_visibility, latest,
                           soc is not None, 255, blind,
                           schedule_seed, drop.encode())
        entries = [
            ctypes.cast(self._halves[h].pa_sim_entry, ctypes.c_void_p) if h in self._halves else None
            for h in _HALVES
        ]
        handle = runtime.pa_sim_launch(
            ctypes.byref(options), *entries, words, len(args), count,
            (ctypes.c_uint64 * max(1, count))(*begins), (ctypes.c_uint64 * max(1, count))(*ends),
            (ctypes.c_char_p * max(1, count))(*names),
        )  # fmt: skip
        try:
            data = json.loads(runtime.pa_sim_report(handle))
            findings = [Finding(**f) for f in data["findings"]]
            if data["failure"]:
                kind = "deadlock" if data["failure"].startswith("deadlock") else "stopped"
                findings.insert(0, Finding(kind, data["failure"], 1))
            report = Report(findings, data["sync_sites"], data["ops"], soc, warm)
            if soc is not None and not data["failure"]:
                _time(runtime, handle, report)
        finally:
            runtime.pa_sim_free(handle)
        return report


def _time(runtime: ctypes.CDLL, handle: int, report: Report) -> None:
    """Runs the timing pass and adds its result to the report."""
    parameters = chip_parameters(report.soc, runtime.pa_sim_parameters().decode().split(","))
    timing = json.loads(
        runtime.pa_sim_time(handle, (ctypes.c_double * len(parameters))(*parameters), report.warm)
    )
    if "failure" in timing:
        return report.add_timing(timing)
    count = runtime.pa_sim_num_events(handle)
    start, end = np.empty(count), np.empty(count)
    fields = np.empty((count, 6), np.int32)
    edges = np.empty((runtime.pa_sim_edges(handle, None), 2), np.int64)
    runtime.pa_sim_events(handle, start.ctypes.data, end.ctypes.data, fields.ctypes.data)
    runtime.pa_sim_edges(handle, edges.ctypes.data)
    names = [core["name"] for core in timing["cores"]]
    labels = [tuple(label) for label in timing["labels"]]
    report.add_timing(timing, Timeline(names, labels, start, end, fields, edges))
