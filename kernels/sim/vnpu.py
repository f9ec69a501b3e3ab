"""The virtual NPU: the unmodified torch_npu wheel on a CANN runtime that is ours.

``python -m pa_hp vnpu -- CMD`` runs a command with it. torch_npu lives in an environment apart:
where it is installed, every ``import torch`` loads it. docs/virtual-npu.md tells the rest.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

from ... import build
from ..npu.toolchain import HOME_VARIABLES
from . import Kernel, toolchain
from .report import chip_names, chip_parameters

RUNTIME = Path(__file__).resolve().parent / "runtime"
TORCH = "2.13.0"
TORCH_NPU = "2.13.0"
# What the NPU tests need beside torch and torch_npu; pins come from constraints.txt where it is.
_PACKAGES = ["numpy", "pyyaml", "ninja", "pytest", "hypothesis", "expecttest", "setuptools"]

# Libraries that torch_npu names but of which it uses nothing here; each must exist under its name.
_EMPTY = ["hccl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel"]

_OFFER = """\
`python -m pa_hp vnpu -- CMD ...` runs CMD with device="npu" on this machine: the real torch_npu
{torch_npu} on a virtual CANN runtime. `python` and `pytest` in CMD are those of its environment.

  memory      512-byte aligned, guard pages, new memory full of NaN, freed memory without access
  streams     a worker thread each, in order; events; a missing synchronisation gives wrong values
  graphs      torch.npu.NPUGraph: capture, replay, task groups
  kernels     launched ones run in the simulator, checked for hazards
  operators   {operators} aclnn operators over ATen's CPU kernels; others fail with their name
  times       of events are modelled, never measured

  PA_HP_VNPU_TRACE=1        print every runtime call and task
  PA_HP_VNPU_LOG=3          print torch_npu's own log from this level on (0 debug to 3 errors)
  PA_HP_VNPU_JITTER_US=N    delay every task by up to N us, to shake races out
  PA_HP_VNPU_POISON=0       do not fill new memory
  PA_HP_VNPU_CHECK=0        do not look for hazards in kernels, which takes half of their time
  PA_HP_VNPU_CANN=8.5.0     CANN version to report

environment  {environment}
libraries    {libraries}"""


def refusal() -> str | None:
    """Why the wheel cannot run here; None if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"expected x86-64 Linux, which the wheel is for, got {platform.machine()}"
    if sys.version_info[:2] != (3, 11):
        return f"expected Python 3.11, which the wheel is for, got {platform.python_version()}"
    return None


def environment() -> Path:
    """The virtual environment with torch_npu, made on first use. Raises BuildError."""
    reason = refusal()
    if reason is not None:
        raise build.BuildError(f"pa_hp: the virtual NPU runs the torch_npu wheel: {reason}")
    # What this interpreter has installed is used from there: torch alone is hundreds of megabytes.
    outer = sysconfig.get_paths()["purelib"]
    constraints = build.ROOT / "constraints.txt"
    lines = [f"torch {TORCH}", f"torch_npu {TORCH_NPU}", *_PACKAGES, outer, sys.version]
    if constraints.is_file():
        lines += build.file_lines([constraints])
    with build.locked(f"vnpu-env-{_digest(lines)}") as folder:
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            print(
                f"pa_hp: setting up {folder} (once, a minute or two)", file=sys.stderr, flush=True
            )
            _make_environment(folder, outer, constraints)
            (folder / "complete").write_text("\n".join(lines) + "\n")
    return folder


def _make_environment(folder: Path, outer: str, constraints: Path) -> None:
    """Make the environment and install what it lacks."""
    _command([sys.executable, "-m", "venv", str(folder)])
    (_site_packages(folder) / "outer.pth").write_text(f"{outer}\n")
    pins = ["-c", str(constraints)] if constraints.is_file() else []
    wanted = [f"torch=={TORCH}", f"torch_npu=={TORCH_NPU}", *_PACKAGES]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    _command([*pip, "--quiet", *pins, *wanted])
    # A command in the environment must find its own pytest, whoever else has one.
    _command([*pip, "--quiet", "--ignore-installed", "--no-deps", *pins, "pytest"])


def _command(command: list[str]) -> None:
    """Run a step of the set-up. Raises BuildError with what it said."""
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        raise build.BuildError(
            f"pa_hp: setting up the virtual NPU failed\ncommand: {' '.join(command)}\n{said}\n"
            f"it needs the wheel torch_npu {TORCH_NPU}: a package index, or PIP_FIND_LINKS naming "
            f"a directory that has it"
        )


def _site_packages(folder: Path) -> Path:
    return folder / "lib" / "python3.11" / "site-packages"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _package(folder: Path, name: str) -> Path:
    """Directory of a package as the environment finds it. Raises BuildError."""
    outer = (_site_packages(folder) / "outer.pth").read_text().strip()
    for site in (_site_packages(folder), Path(outer)):
        if (site / name / "__init__.py").is_file():
            return site / name
    raise build.BuildError(f"pa_hp: expected {name} in {folder}, got none; remove it and retry")


_SHARED = ["-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall"]


def _link(cxx: str, work: Path, name: str, *inputs: str) -> list[str]:
    file = f"lib{name}.so"
    return [cxx, "-shared", f"-Wl,-soname,{file}", "-o", str(work / file), *inputs]


def _compile(cxx: str, work: Path, sources: Sequence[Path], flags: list[str]) -> list[list[str]]:
    return [[cxx, *flags, "-c", str(p), "-o", str(work / f"{p.stem}.o")] for p in sources]


def runtime(folder: Path) -> Path:
    """Directory of libascendcl and of the libraries beside it, built on first use."""
    cxx = build.compiler()
    torch_npu = _package(folder, "torch_npu")
    flags = ["-std=c++17", *_SHARED, "-isystem", str(torch_npu / "include")]
    sources = sorted(RUNTIME.glob("*.cpp"))

    def stages(work: Path) -> list[list[list[str]]]:
        stubs = [work / "stubs.cpp", work / "atb.cpp"]
        for path in stubs:
            path.write_text(_stubs(torch_npu, atb=path.stem == "atb"))
        objects = [str(work / f"{path.stem}.o") for path in [*sources, stubs[0]]]
        ours = [f"-L{work}", "-Wl,--no-as-needed", "-lascendcl", "-Wl,-rpath,$ORIGIN"]
        return [
            [*_compile(cxx, work, sources, flags), *_compile(cxx, work, stubs, ["-fPIC"])],
            [_link(cxx, work, "ascendcl", *objects, "-lpthread", "-ldl")],
            [
                *(_link(cxx, work, name, *ours) for name in _EMPTY),
                _link(cxx, work, "atb", str(work / "atb.o"), *ours),
            ],
        ]

    lines = [
        *build.tool_lines(cxx, flags),
        f"torch_npu {TORCH_NPU}",
        *build.file_lines([Path(__file__), *sources, *sorted(RUNTIME.glob("*.h"))]),
        *build.file_lines([RUNTIME.parent / "api.h"]),
    ]
    return build.cached("vnpu", lines, stages)


def operators(folder: Path, runtime: Path) -> Path:
    """Directory of libopapi, the aclnn operators, built on first use."""
    cxx = build.compiler()
    torch = _package(folder, "torch")
    includes = [torch / "include", torch / "include/torch/csrc/api/include"]
    flags = [
        "-std=c++20",
        *_SHARED,
        *(word for path in includes for word in ("-isystem", str(path))),
    ]
    sources = sorted((RUNTIME / "opapi").glob("*.cpp"))
    # libascendcl is in the process when this is loaded: its name is enough, wherever it lies.
    libraries = [f"-L{runtime}", "-lascendcl", f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]

    def stages(work: Path) -> list[list[list[str]]]:
        objects = [str(work / f"{path.stem}.o") for path in sources]
        return [
            _compile(cxx, work, sources, flags),
            [_link(cxx, work, "opapi", *objects, "-Wl,--no-as-needed", *libraries)],
        ]

    headers = [RUNTIME / "vnpu.h", *sorted((RUNTIME / "opapi").glob("*.h"))]
    lines = [
        *build.tool_lines(cxx, flags),
        f"torch {TORCH}",
        *build.file_lines([*sources, *headers]),
    ]
    return build.cached("vnpu-ops", lines, stages)


def _stubs(torch_npu: Path, atb: bool) -> str:
    """C++ for every CANN function that the wheel links to; ours, which are not weak, replace it.

    A stub prints its name and returns an error: success without an effect is silent garbage.
    """
    wanted = r"_ZN3atb\w+" if atb else r"(?:acl|rt|Msprof)[A-Z]\w+|acl(?:op|rt|mdl)[A-Z]\w+"
    names: set[str] = set()
    for path in [*torch_npu.glob("*.so"), *torch_npu.glob("lib/*.so")]:
        done = subprocess.run(
            ["nm", "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise build.BuildError(f"pa_hp: expected nm to read {path}, got: {done.stderr}")
        names |= set(re.findall(rf"\bU ({wanted})\b", done.stdout))
    lines = ["// Generated: what torch_npu links to and the virtual NPU does not provide."]
    lines += ['extern "C" {', "int vnpu_missing(const char* name);"]
    for name in sorted(names):
        # Called when the wheel is loaded and when it goes; nothing depends on what they do.
        harmless = "DestroyContext" in name or "CreateContext" in name
        body = "return 0;" if harmless else f'return vnpu_missing("{name}");'
        lines.append(f"__attribute__((weak)) int {name}() {{ {body} }}")
    return "\n".join([*lines, "}", ""])


def settings(
    arguments: argparse.Namespace, folder: Path, libraries: Sequence[Path]
) -> dict[str, str]:
    """Environment variables of a command that runs on the virtual NPU."""
    # The package may have any directory name; a link beside no other package gives it its own.
    link = build.cache_dir() / f"vnpu-path-{_digest([str(build.ROOT)])}" / "pa_hp"
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(build.ROOT)

    def prepend(variable: str, *paths: Path) -> str:
        return os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get(variable)])])

    cores = int(chip_parameters(arguments.soc, ["cube_cores"])[0])
    simulator = toolchain.runtime()
    chip = chip_parameters(arguments.soc, simulator.pa_sim_parameters().decode().split(","))
    values = {
        "LD_LIBRARY_PATH": prepend("LD_LIBRARY_PATH", *libraries),
        "PATH": prepend("PATH", folder / "bin"),
        "PYTHONPATH": prepend("PYTHONPATH", link.parent),
        "VIRTUAL_ENV": str(folder),
        "PA_HP_VNPU": str(libraries[0]),
        "PA_HP_VNPU_SOC": arguments.soc,
        "PA_HP_VNPU_DEVICES": str(arguments.devices),
        "PA_HP_VNPU_MEMORY_GIB": str(arguments.memory),
        "PA_HP_VNPU_CUBE_CORES": str(cores),
        "PA_HP_VNPU_SIM": simulator._name,
        "PA_HP_VNPU_CHIP": ",".join(map(repr, chip)),
        # Streams are threads already, and a fault must stay on the thread of its task.
        "OMP_NUM_THREADS": "1",
    }
    return values


def register(kernel: Kernel) -> None:
    """Let the virtual NPU of this process launch a kernel: under its entry's name, and as its stub.

    Raises BuildError outside of ``python -m pa_hp vnpu``.
    """
    folder = os.environ.get("PA_HP_VNPU")
    if folder is None:
        raise build.BuildError("pa_hp: expected to run in `python -m pa_hp vnpu`, got none")
    library = ctypes.CDLL(str(Path(folder) / "libascendcl.so"))
    text = f"vnpu {kernel.cores} {kernel.folder}".encode()
    handle, name = ctypes.c_void_p(), kernel.entry.encode()
    binary = _Binary(0, 0, text, len(text))
    if library.rtDevBinaryRegister(ctypes.byref(binary), ctypes.byref(handle)) == 0:
        library.rtFunctionRegister(handle, ctypes.c_void_p(id(kernel)), name, None, 0)


class _Binary(ctypes.Structure):
    """CANN's description of a device binary."""

    _fields_ = [
        ("magic", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("data", ctypes.c_char_p),
        ("length", ctypes.c_uint64),
    ]


def _devices(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"expected 1 to 16 devices, got {text}")
    return int(text)


def _gib(text: str) -> float:
    try:
        if 0 < float(text) < 1 << 20:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected GiB of memory, more than 0, got {text}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--soc", default="910B2", choices=chip_names(), help="chip to report")
    parser.add_argument("--devices", type=_devices, default=1, metavar="N", help="how many NPUs")
    parser.add_argument(
        "--memory", type=_gib, default=8.0, metavar="GIB", help="memory of each NPU"
    )
    parser.add_argument("cmd", nargs="*", metavar="CMD", help="what to run, behind --")


def command(arguments: argparse.Namespace) -> int:
    """Run the command in the virtual NPU; this process becomes it."""
    folder = environment()
    library = runtime(folder)
    aclnn = operators(folder, library)
    if not arguments.cmd:
        text = (aclnn / "libopapi.so").read_bytes()
        names = set(re.findall(rb"\0(aclnn\w+)GetWorkspaceSize(?=\0)", text))
        print(
            _OFFER.format(
                torch_npu=TORCH_NPU,
                operators=len(names),
                environment=folder,
                libraries=f"{library}, {aclnn.name}",
            )
        )
        return 0
    values = {**os.environ, **settings(arguments, folder, [library, aclnn])}
    # An outer tool's hold on Python would take the environment's packages away.
    values.pop("PYTHONHOME", None)
    # A CANN of this machine compiles for the chip.
    for variable in HOME_VARIABLES:
        values.pop(variable, None)
    sys.stdout.flush()
    try:
        os.execvpe(arguments.cmd[0], arguments.cmd, values)
    except OSError as error:
        raise build.BuildError(
            f"pa_hp: expected CMD to be a program, got {arguments.cmd[0]!r}: {error.strerror}"
        ) from error
