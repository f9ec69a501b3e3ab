"""The simulator's native parts: its runtime, and a kernel's two halves, built through build.py."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ... import build

ROOT = Path(__file__).resolve().parent
INCLUDE = ROOT / "include"

# The cores of one block: a cube core with two vector cores, or one of either.
CORES = {"mix": 0, "aic": 1, "aiv": 2}
# One source, compiled once per core type with the macro that bisheng sets for it.
HALVES = {"cube": "__DAV_C220_CUBE__", "vector": "__DAV_C220_VEC__"}


class Options(ctypes.Structure):
    """SimOptions of api.cpp."""

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


def _cpu_flags() -> list[str]:
    """AVX2 and its companions where this machine has them: mad and the vector unit use them."""
    wanted = {"avx2", "fma", "f16c"}
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return []
    has = found is not None and wanted <= set(found[1].split())
    return [f"-m{flag}" for flag in sorted(wanted)] if has else []


@functools.cache
def runtime() -> ctypes.CDLL:
    """The runtime library, built on first use. Kernels find its functions, so it is global."""
    cxx = build.compiler()
    flags = ["-std=c++17", "-O2", "-g1", "-fPIC", *_cpu_flags()]
    sources = sorted(ROOT.glob("*.cpp"))
    files = [*build.sources_in(ROOT), *build.sources_in(INCLUDE)]

    def stages(work: Path) -> list[list[list[str]]]:
        objects = [str(work / f"{source.stem}.o") for source in sources]
        compile_all = [
            [cxx, *flags, "-c", str(source), "-o", target]
            for source, target in zip(sources, objects, strict=True)
        ]
        return [compile_all, [[cxx, "-shared", *objects, "-o", str(work / "libpa_hp_sim.so")]]]

    lines = [*build.tool_lines(cxx, flags), *build.file_lines(files)]
    path = build.cached("sim", lines, stages) / "libpa_hp_sim.so"
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.pa_sim_launch.restype = ctypes.c_void_p
    library.pa_sim_report.restype = ctypes.c_char_p
    library.pa_sim_report.argtypes = [ctypes.c_void_p]
    library.pa_sim_free.argtypes = [ctypes.c_void_p]
    library.pa_sim_parameters.restype = ctypes.c_char_p
    library.pa_sim_time.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
    library.pa_sim_time.restype = ctypes.c_char_p
    library.pa_sim_num_events.argtypes = [ctypes.c_void_p]
    library.pa_sim_num_events.restype = ctypes.c_uint64
    library.pa_sim_events.argtypes = [ctypes.c_void_p] * 4
    library.pa_sim_edges.argtypes = [ctypes.c_void_p] * 2
    library.pa_sim_edges.restype = ctypes.c_uint64
    return library


def clang() -> str:
    """A clang++ for strict address spaces. Raises BuildError if there is none."""
    names = ["clang++", *(f"clang++-{version}" for version in range(22, 14, -1))]
    for name in [build.compiler(), *names]:
        path = shutil.which(name)
        if path is not None and "clang" in Path(path).resolve().name:
            return path
    raise build.BuildError(
        "pa_hp: expected clang++ on the path for strict=True (looked for clang++ and clang++-15 to "
        "-22), got none; install clang or use strict=False"
    )


def kernel(
    path: Path,
    entry: str,
    include_dirs: Sequence[str | Path],
    defines: Sequence[str],
    cores: str,
    strict: bool,
) -> tuple[Path, dict[str, ctypes.CDLL]]:
    """Build a kernel's halves; return their directory and libraries. Raises BuildError."""
    cxx = clang() if strict else build.compiler()
    halves = {"mix": ["cube", "vector"], "aic": ["cube"], "aiv": ["vector"]}[cores]
    # Without its runtime, -fsanitize=thread means a call for every load and store: that is how the
    # simulator sees the scalar unit's accesses to GM (api.cpp).
    flags = ["-x", "c++", "-std=c++17", "-O1", "-g1", "-fPIC", "-fsanitize=thread", "-w"]
    flags += ["-fvisibility=hidden", f"-I{INCLUDE}", "-include", "cce.h"]
    flags += [f"-I{folder}" for folder in include_dirs] + [f"-D{define}" for define in defines]
    flags += ["-DPA_SIM_STRICT=1"] if strict else []

    def stages(work: Path) -> list[list[list[str]]]:
        wrapper = work / "wrapper.cpp"
        wrapper.write_text(f'#include "{path}"\nPA_SIM_ENTRY({entry})\n')
        compile_all = [
            [cxx, *flags, f"-D{HALVES[half]}=1", "-c", str(wrapper), "-o", str(work / f"{half}.o")]
            for half in halves
        ]
        link = [
            [cxx, "-shared", str(work / f"{half}.o"), "-o", str(work / f"{half}.so")]
            for half in halves
        ]
        return [compile_all, link]

    lines = [
        *build.tool_lines(cxx, flags),
        f"entry {entry}",
        f"halves {' '.join(halves)}",
        f"source {path}",  # sites in reports carry the path
        *build.file_lines(_dependencies(cxx, flags, path, halves)),
    ]
    directory = build.cached("kernel", lines, stages)
    runtime()
    libraries = {half: ctypes.CDLL(str(directory / f"{half}.so")) for half in halves}
    for library in libraries.values():
        library.pa_sim_signature.restype = ctypes.c_char_p
    return directory, libraries


def _dependencies(cxx: str, flags: list[str], path: Path, halves: list[str]) -> list[Path]:
    """Every file that the source includes, system headers apart, as the compiler sees it."""
    files: set[Path] = set()
    for half in halves:
        command = [cxx, *flags, f"-D{HALVES[half]}=1", "-MM", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise build.BuildError(
                f"pa_hp: {path} does not compile\ncommand: {' '.join(command)}\n{done.stderr}"
            )
        rule = done.stdout.replace("\\\n", " ").split(":", 1)[1]
        files |= {Path(name).resolve() for name in rule.split()}
    return sorted(files)
