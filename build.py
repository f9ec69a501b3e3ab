"""Just-in-time build of the native library: key, lock, compile, load.

An entry of the cache is a directory named after a key: the SHA-256 of a printed list of everything
that decides the binary (sources, flags, compiler, torch). It appears by one rename, complete or not
at all: one builder at a time (flock, which the kernel releases if its holder dies), compile in a
temporary directory beside the entry, checksum, fsync, rename. A damaged entry is rebuilt.

Environment variables are read here, at call time; ``docs/env.md`` lists them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ._version import __version__

ROOT = Path(__file__).resolve().parent
LIBRARY = "libpa_hp.so"
_FLAGS = [
    "-O3",
    "-fopenmp",  # at::parallel_for is a template that runs serially without it
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility-inlines-hidden",
    "-Wno-psabi",
]
_SANITIZE_FLAGS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
_LOCK_SECONDS = 900.0  # a build takes about a minute; a waiter gives up after fifteen

# Where `compiler` looks, in this order.
COMPILER_VARIABLES = ("PA_HP_CXX", "CXX")
COMPILERS = ("c++", "g++", "clang++")

# Sources per target, relative to the package; every source and header beside them counts into the
# key. The simulator adds entries of its own (kernels/sim): "sim" and "kernel".
TARGETS = {
    "cpu": [
        "kernels/bind.cpp",
        "kernels/proxy.cpp",
        "kernels/cpu/entry.cpp",
        "kernels/cpu/decode.cpp",
        "kernels/cpu/isa_baseline.cpp",
        "kernels/cpu/isa_avx2.cpp",
        "kernels/cpu/isa_avx512.cpp",
        "kernels/cpu/isa_avx512_bf16.cpp",
        "kernels/cpu/isa_amx_bf16.cpp",
        "kernels/cpu/isa_neon_bf16.cpp",
    ],
    "bench": ["bench/read_pages.cpp"],
    "npu": ["kernels/npu/entry.cpp"],
}

# Commands to build with: those of one list run side by side, the lists one after the other.
Stages = Callable[[Path], list[list[list[str]]]]


class BuildError(RuntimeError):
    """The native library could not be built or loaded; the message says why and what to do."""


def cache_dir() -> Path:
    """Directory of all cached builds: ``$PA_HP_CACHE_DIR``, else ``~/.cache/pa_hp``."""
    try:
        wanted = Path(os.environ.get("PA_HP_CACHE_DIR") or "~/.cache/pa_hp").expanduser()
    except RuntimeError as error:  # this user has no home
        raise BuildError(
            f"pa_hp: expected a home directory to cache builds in, got: {error}; "
            f"set PA_HP_CACHE_DIR"
        ) from error
    return wanted.absolute()


def compiler() -> str:
    """C++ compiler to build with: ``$PA_HP_CXX``, else ``$CXX``, else one on the path.

    Raises BuildError if there is none.
    """
    for variable in COMPILER_VARIABLES:
        wanted = os.environ.get(variable)
        if wanted:
            if shutil.which(wanted) is None:
                raise BuildError(
                    f"pa_hp: expected {variable} to name a C++ compiler, got {wanted!r}; set "
                    f"PA_HP_CXX to the path or name of one program, without a launcher or options"
                )
            return wanted
    for name in COMPILERS:
        found = shutil.which(name)
        if found is not None:
            return found
    raise BuildError(
        f"pa_hp: expected a C++17 compiler on the path (looked for {', '.join(COMPILERS)}), got "
        f"none; install one or set PA_HP_CXX"
    )


def flags() -> list[str]:
    """Compiler flags; ``PA_HP_SANITIZE=1`` adds AddressSanitizer and UBSan."""
    return _FLAGS + (_SANITIZE_FLAGS if os.environ.get("PA_HP_SANITIZE") == "1" else [])


def key_lines(target: str = "cpu") -> list[str]:
    """Everything that decides the binary of `target`, one fact a line."""
    folders = sorted({(ROOT / source).parent for source in TARGETS[target]})
    lines = [
        f"target {target}",
        f"torch {torch.__version__}",
        *tool_lines(compiler(), flags()),
        *file_lines(path for folder in folders for path in sources_in(folder)),
    ]
    if target == "npu":
        from .kernels.npu import toolchain

        lines += toolchain.key_lines(toolchain.find(), toolchain.torch_npu())
    return lines


def sources_in(folder: Path) -> list[Path]:
    """C++ and CCE sources and headers of `folder`, not of the folders in it."""
    suffixes = {".cpp", ".h", ".inl", ".cce"}
    return [path for path in sorted(folder.iterdir()) if path.suffix in suffixes]


def tool_lines(cxx: str, flags: Sequence[str]) -> list[str]:
    """Key lines of a compiler and its flags. Raises BuildError if it does not run."""
    try:
        version = subprocess.run(
            [cxx, "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        said = getattr(error, "stderr", None) or error
        raise BuildError(
            f"pa_hp: expected `{cxx} --version` to print a version, got: {said}; "
            f"set PA_HP_CXX to a C++ compiler"
        ) from error
    return [
        f"pa_hp {__version__}",
        f"machine {platform.machine()}",
        f"compiler {cxx}: {version}",
        f"flags {' '.join(flags)}",
    ]


def file_lines(paths: Iterable[Path]) -> list[str]:
    """Key lines of source files: name below the package if it is there, and SHA-256."""
    lines = []
    for path in paths:
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        lines.append(f"file {name} {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return lines


def key(target: str = "cpu") -> str:
    """First 16 hex digits of the SHA-256 of `key_lines`."""
    return _digest(key_lines(target))


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def build(target: str = "cpu") -> Path:
    """Build `target` unless the cache has it; return the path of the library.

    Raises
    ------
    BuildError
        No compiler, a compile error (the message holds the command, the first errors and the path
        of the whole log), a cache directory that cannot be written or that others could write, or
        ``PA_HP_JIT=0`` and nothing in the cache.
    """
    name = LIBRARY.removesuffix(".so")
    sources = [str(ROOT / source) for source in TARGETS[target]]

    def stages(work: Path) -> list[list[list[str]]]:
        if target != "npu":
            return [[_extension(name, work, sources, flags())]]
        from .kernels.npu import toolchain

        found = toolchain.find()
        extra, link = toolchain.flags(found, toolchain.torch_npu())
        launch = [*found.compile, "-o", str(work / toolchain.LAUNCH)]
        return [[launch], [_extension(name, work, sources, [*flags(), *extra], link)]]

    return cached(target, key_lines(target), stages) / LIBRARY


def cached(name: str, lines: list[str], stages: Stages) -> Path:
    """Directory of the build that `lines` describe; made by `stages` unless the cache has it.

    Parameters
    ----------
    name : str
        First part of the directory's name: a target, "sim" or "kernel".
    lines : list of str
        Everything that decides the result, one fact a line; their SHA-256 is the key.
    stages : callable
        Gets the temporary directory to build in and returns the commands, see `Stages`. Every
        ``.so`` they leave is a result.

    Raises
    ------
    BuildError
        As :func:`build`.
    """
    root = _private_cache_dir()
    entry = root / f"{name}-{_digest(lines)}"
    if _is_whole(entry):
        return entry
    if os.environ.get("PA_HP_JIT") == "0":
        raise BuildError(
            f"pa_hp: expected a prebuilt library in {entry} (PA_HP_JIT=0 forbids building), got "
            f"none; unset PA_HP_JIT or copy the cache directory of a machine with the same key"
        )
    try:
        with _lock(entry):
            if not _is_whole(entry):
                _build_entry(name, lines, stages, entry)
    except OSError as error:  # a disk that is full, a directory that is read-only
        raise BuildError(
            f"pa_hp: expected the cache directory {root} to be writable, got: {error}; "
            f"set PA_HP_CACHE_DIR"
        ) from error
    return entry


def clean() -> Path:
    """Remove every cached build; return the cache directory.

    Nothing but builds is touched, whatever PA_HP_CACHE_DIR names. The lock files stay: a lock on a
    file that another process has unlinked keeps nobody out.
    """
    root = _private_cache_dir()
    names = "|".join([*TARGETS, "sim", "kernel", "vnpu", "vnpu-ops", "vnpu-env", "vnpu-path"])
    entry = rf"(?:{names})-[0-9a-f]{{16}}|selftest-unfenced"
    builds = re.compile(rf"({entry})(\.tmp-\w+|\.failed\.log)?")
    for path in root.iterdir():
        match = builds.fullmatch(path.name)
        if match is None:
            continue
        with _lock(root / match[1]):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return root


_load_lock = threading.Lock()
loaded: dict[str, Path] = {}  # library of every target that is in this process

# OpenMP's pool of threads does not survive a fork: a parallel region in the child would wait for
# threads that are gone. The library notices a fork after it was loaded; this is for one before.
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


def load(target: str = "cpu") -> None:
    """Build `target` if need be and load it, once per process. Thread-safe. Raises BuildError."""
    if target in loaded:
        return
    if target == "npu":
        load("cpu")  # which has the schemas
    with _load_lock:
        if target in loaded:
            return
        path = build(target)
        try:
            if target == "npu":
                from .ops import npu

                npu.provide(ctypes.CDLL(str(loaded["cpu"])), ctypes.CDLL(str(path)))
            else:
                torch.ops.load_library(str(path))
        except OSError as error:
            raise BuildError(
                f"pa_hp: expected {path} to load, got: {error}; run `python -m pa_hp build clean` "
                f"and retry"
            ) from error
        if target == "cpu":
            from .ops import fake, namespace, npu

            library = ctypes.CDLL(str(path))
            if _forked:
                library.pa_hp_cpu_run_alone()
            npu.install(library)
            fake.register()
            namespace.uninstall()
        loaded[target] = path


# torch.compile runs this when it traces and does not look inside (the attribute is what
# torch.compiler.assume_constant_result sets; calling that would import all of Dynamo).
load._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cpu_isa() -> str:
    """Instruction set that the CPU kernel chose on this machine.

    Raises BuildError if ``PA_HP_CPU_ISA`` names one that it has not.
    """
    load("cpu")
    function = ctypes.CDLL(str(loaded["cpu"])).pa_hp_cpu_isa
    function.restype = ctypes.c_char_p
    name = function()
    if name is None:
        raise BuildError(
            f"pa_hp: expected PA_HP_CPU_ISA to name an instruction set of this machine, got "
            f"{os.environ.get('PA_HP_CPU_ISA')!r}; unset it to have the best one"
        )
    return name.decode()


def _private_cache_dir() -> Path:
    root = cache_dir()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = root.resolve()  # what is checked is what is used, even if a link is turned meanwhile
        status = root.stat()
    except OSError as error:
        raise BuildError(
            f"pa_hp: expected the cache directory {root} to be usable, got: {error}; "
            f"set PA_HP_CACHE_DIR"
        ) from error
    # What lies here is loaded as code, so nobody else may be able to put it here.
    if status.st_uid != os.geteuid():
        raise BuildError(
            f"pa_hp: expected the cache directory {root} to be yours (uid {os.geteuid()}), got "
            f"owner {status.st_uid}; set PA_HP_CACHE_DIR"
        )
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise BuildError(
            f"pa_hp: expected the cache directory {root} to be writable by you alone, got mode "
            f"{stat.S_IMODE(status.st_mode):04o}; remove it (others may have put code there) or "
            f"set PA_HP_CACHE_DIR"
        )
    return root


def _is_whole(entry: Path) -> bool:
    """True if the libraries are there and have the checksums that their builder wrote down."""
    try:
        expected = (entry / "sha256").read_text()
        return expected != "" and all(
            hashlib.sha256((entry / name).read_bytes()).hexdigest() == digest
            for digest, name in map(str.split, expected.splitlines())
        )
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def locked(name: str) -> Iterator[Path]:
    """Path `name` in the cache directory, held alone; it need not exist. Raises BuildError."""
    entry = _private_cache_dir() / name
    with _lock(entry):
        yield entry


@contextlib.contextmanager
def _lock(entry: Path) -> Iterator[None]:
    """Hold the lock of `entry`; the kernel gives it back if this process dies."""
    path = entry.with_name(f"{entry.name}.lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BuildError(
                        f"pa_hp: another process has held {path} for {_LOCK_SECONDS:.0f} s; "
                        f"see who it is with fuser, then retry"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _extension(
    name: str, work: Path, sources: list[str], flags: list[str], link: list[str] | None = None
) -> list[str]:
    """Command that builds a torch extension; with `link` it is linked and not loaded."""
    shared = [flag for flag in flags if flag.startswith(("-fsanitize", "-fopenmp"))]
    loads = link is None and not any(flag.startswith("-fsanitize") for flag in shared)
    facts = [name, str(work), sources, flags, shared + (link or []), loads]
    return [sys.executable, "-c", _CHILD, json.dumps(facts)]


# Runs in a child: a crash or a kill of the compiler cannot hurt the caller, and all output is ours.
# cpp_extension loads what it built, so a library with a symbol missing is never kept. A sanitized
# one cannot be loaded into a process that started without the sanitizer's runtime, nor the NPU's
# where there is no NPU.
_CHILD = """
import json
import sys
import torch
from torch.utils.cpp_extension import load
name, directory, sources, flags, link, loads = json.loads(sys.argv[1])
if not loads:
    torch.ops.load_library = lambda path: None
load(name=name, sources=sources, extra_cflags=flags, extra_ldflags=link, build_directory=directory,
     is_python_module=False, verbose=True)
"""


def _build_entry(name: str, lines: list[str], stages: Stages, entry: Path) -> None:
    """Build in a sibling directory, then rename it to `entry`. The lock is held."""
    for stale in entry.parent.glob(f"{entry.name}.tmp-*"):
        # Its builder died: nobody else holds the lock. A compiler that outlived it may still be
        # writing there; what that leaves goes with the next build.
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{entry.name}.tmp-", dir=entry.parent))
    verbose = os.environ.get("PA_HP_VERBOSE") == "1"
    if verbose or (sys.stderr.isatty() and name in TARGETS):
        print(f"pa_hp: building {entry.name} (once, about a minute)", file=sys.stderr, flush=True)
    try:
        status = _run_stages(stages(work), work)
        text = (work / "build.log").read_text(errors="replace")
        if verbose:
            print(text, file=sys.stderr)
        libraries = sorted(work.glob("*.so"))
        if status != 0 or not libraries:
            raise _compile_error(name, text, status, entry)
        (work / "key.txt").write_text("\n".join(lines) + "\n")
        sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.name}\n" for p in libraries]
        (work / "sha256").write_text("".join(sums))
        for leftover in work.glob("*.o"):
            leftover.unlink()
        for path in [*work.iterdir(), work]:
            _fsync(path)
        if entry.exists():
            shutil.rmtree(entry)  # damaged
        work.rename(entry)
        _fsync(entry.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _run_stages(stages: list[list[list[str]]], work: Path) -> int:
    """Run the commands, their output in build.log; return the first exit status that is not 0."""
    environment = {
        **os.environ,
        "CXX": compiler(),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "PATH": os.pathsep.join([_ninja_dir(), os.environ.get("PATH", os.defpath)]),
    }
    environment.pop("LD_PRELOAD", None)  # a sanitizer's runtime is for the caller, not for ninja

    def run(command: list[str]) -> tuple[int, bytes]:
        done = subprocess.run(
            command,
            cwd=work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode, done.stdout

    with (work / "build.log").open("wb") as log, ThreadPoolExecutor(os.cpu_count()) as pool:
        for stage in stages:
            for command, (status, output) in zip(stage, pool.map(run, stage), strict=True):
                log.write(f"$ {shlex.join(command)}\n".encode() + output)
                if status != 0:
                    return status
    return 0


def _compile_error(target: str, text: str, status: int, entry: Path) -> BuildError:
    kept = entry.parent / f"{entry.name}.failed.log"
    kept.write_text(text)
    lines = text.splitlines()
    # ninja's line of the failed object, else the last command that was run.
    command = next(
        (line for line in lines if line.startswith("[") and " -c " in line),
        next((line[2:] for line in reversed(lines) if line.startswith("$ ")), "see the log"),
    )
    words = ("error:", "undefined reference")
    errors = [line for line in lines if any(word in line.lower() for word in words)]
    errors = errors[:8] or lines[-8:]
    return BuildError(
        f"pa_hp: building {target!r} failed (exit status {status})\n"
        f"command: {command}\n" + "\n".join(errors) + f"\nwhole log: {kept}\n"
        f"PA_HP_CXX chooses another compiler, PA_HP_VERBOSE=1 prints the log"
    )


def _ninja_dir() -> str:
    """Directory of the ninja that pip installed; a virtual environment need not be on the path."""
    import ninja

    return ninja.BIN_DIR


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
