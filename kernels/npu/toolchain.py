"""The NPU's library, and who compiles the kernel for it: found, not configured.

CANN's compiler bisheng where there is one, else the simulator's if the virtual NPU is active.
Either makes one library of ``launch.cpp`` and ``decode.cce``, which exports ``pa_hp_npu_launch``;
the torch extension (``entry.cpp``) is linked with it.

How bisheng is called is what public kernels in raw CCE for the same chips do: one translation unit
with the kernel and its launch, ``-xcce``, which includes the language's headers
(learning-chip/atb_standalone, compile.sh; huawei-csl/pto-dsl, examples/aot; ``__aicore__`` is the
one word that those headers lack). ``--cce-aicore-arch=dav-c220``, both halves at once, is what the
manual has: CANN 8.5, "CCE Intrinsic", cceprogram_0031 on hiascend.com. Struct arguments by value:
hicann/catlass, kernel_adapter.hpp.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ... import build

ROOT = Path(__file__).resolve().parent
HOME_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
PREFIXES = (
    "/usr/local/Ascend/ascend-toolkit/latest",
    "/usr/local/Ascend/cann",
    "/usr/local/Ascend/latest",
    "~/Ascend/ascend-toolkit/latest",
    "~/Ascend/cann",
)
# Chips of the architecture dav-c220, by the beginning of what aclrtGetSocName calls them. There is
# an "Ascend910B" too: of the first generation, as Ascend910A (torch_npu, NpuVariables.cpp).
SOCS = re.compile("Ascend910(B[1-4]|_93)")
LAUNCH = "libpa_hp_launch.so"


@dataclass(frozen=True)
class Toolchain:
    """Who compiles the kernel.

    Attributes
    ----------
    name : str
        "bisheng" or "simulator".
    facts : tuple of str
        What the key of the build has to name.
    compile : tuple of str
        Command that makes `LAUNCH`; its output file is to be added.
    link : tuple of str
        Flags for linking with the CANN runtime.
    """

    name: str
    facts: tuple[str, ...]
    compile: tuple[str, ...]
    link: tuple[str, ...]


def find() -> Toolchain:
    """Who compiles the kernel for the device "npu". Raises BuildError if nobody does."""
    for variable in HOME_VARIABLES:
        if os.environ.get(variable):
            return _bisheng(Path(os.environ[variable]), variable)
    if os.environ.get("PA_HP_VNPU"):
        return _simulator(Path(os.environ["PA_HP_VNPU"]))
    for prefix in PREFIXES:
        home = Path(os.path.expanduser(prefix))
        if home.is_dir():
            return _bisheng(home, "default prefix")
    raise build.BuildError(
        f"pa_hp: expected CANN for the device npu, got none (looked at {', '.join(HOME_VARIABLES)} "
        f"and {', '.join(PREFIXES)}); source CANN's set_env.sh, or run in `python -m pa_hp vnpu`"
    )


def _bisheng(home: Path, found_by: str) -> Toolchain:
    """CANN's compiler. Raises BuildError with what is missing."""

    def expect(good: bool, what: str, value: object) -> None:
        if not good:
            raise build.BuildError(
                f"pa_hp: expected {what}, got {value} (CANN by {found_by}: {home}); install the "
                f"CANN toolkit, 8.0 or later, and source its set_env.sh"
            )

    expect(home.is_dir(), "CANN's directory", "none")
    machine = f"{platform.machine()}-linux"
    folders = ["bin", "compiler/bin", "compiler/ccec_compiler/bin"]
    folders += [f"{machine}/ccec_compiler/bin", "tools/bisheng_compiler/bin"]
    where = os.pathsep.join(str(home / folder) for folder in folders)
    program = shutil.which("bisheng", path=where)
    expect(program is not None, f"bisheng in one of {where}", "none")
    assert program is not None
    expect((home / "include/acl/acl.h").is_file(), "CANN's header include/acl/acl.h", "none")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"`{program} --version` to print a version", done.stderr)
    command = [program, "-fPIC", "-shared", "-xcce", "-O2", "-std=c++17"]
    command += ["--cce-aicore-arch=dav-c220", "-D__aicore__=[aicore]"]
    command += [f"-I{home}/include", f"-I{ROOT}"]
    command += ["-include", str(ROOT / "decode.cce"), str(ROOT / "launch.cpp")]
    link = (f"-L{home}/lib64", f"-Wl,-rpath,{home}/lib64", "-lascendcl", "-lruntime")
    said = done.stdout.partition("\n")[0]
    facts = (f"cann {_version(home / machine)}", f"bisheng {program}: {said}")
    return Toolchain("bisheng", facts, (*command, *link), link)


def _version(system: Path) -> str:
    """CANN's version, such as 8.5.0. Other files of an installation number its parts."""
    try:
        text = (system / "ascend_toolkit_install.info").read_text(errors="replace")
    except OSError:
        text = ""
    found = re.search(r"(?m)^version=(\S+)", text)
    return found[1] if found else "of unknown version"


def _simulator(runtime: Path) -> Toolchain:
    """The host's compiler; the kernel is built when it is registered."""
    cxx = build.compiler()
    launch = ROOT.parent / "sim" / "runtime" / "launch.h"
    command = (cxx, "-fPIC", "-shared", "-O2", "-std=c++17", "-include", str(launch))
    link = (f"-L{runtime}", "-lascendcl")
    facts = (f"simulator {runtime.name}", *build.file_lines([launch]))
    return Toolchain("simulator", facts, (*command, str(ROOT / "launch.cpp"), *link), link)


def torch_npu() -> Path:
    """Directory of torch_npu, which need not be imported. Raises BuildError if there is none."""
    spec = importlib.util.find_spec("torch_npu")
    if spec is None or spec.origin is None:
        raise build.BuildError(
            "pa_hp: expected torch_npu to be installed for the device npu, got none; "
            "pip install torch_npu, in the version of torch"
        )
    return Path(spec.origin).parent


def expect_soc(name: str) -> None:
    """Raise BuildError unless a chip, as aclrtGetSocName calls it, can run the kernel."""
    if not SOCS.match(name):
        raise build.BuildError(
            f"pa_hp: expected a chip Ascend910B1 to B4 (A2) or Ascend910_93* (A3) for the device "
            f"npu, got {name}"
        )


def key_lines(toolchain: Toolchain, package: Path) -> list[str]:
    """What decides the library beside what build.py names for every target, one fact a line."""
    version = package / "version.py"
    # Where the sources lie is no part of it, what they are is.
    command = " ".join(toolchain.compile).replace(str(build.ROOT), "pa_hp")
    return [
        *build.file_lines([version] if version.is_file() else []),
        *toolchain.facts,
        f"command {command}",
        f"extension {flags(toolchain, package)}",
        *build.file_lines(build.sources_in(ROOT.parent)),
    ]


def flags(toolchain: Toolchain, package: Path) -> tuple[list[str], list[str]]:
    """Flags of the torch extension: to compile and to link."""
    include = package / "include"
    system = [include, include / "third_party" / "acl" / "inc"]
    compile_flags = [word for folder in system for word in ("-isystem", str(folder))]
    link = [f"-L{package / 'lib'}", f"-Wl,-rpath,{package / 'lib'}", "-ltorch_npu"]
    # Beside the extension, wherever the finished cache entry is; ninja and a shell read the dollar.
    link += ["-L.", f"-l:{LAUNCH}", "-Wl,-rpath,'$$ORIGIN'", *toolchain.link]
    link += ["-Wl,-z,defs"]  # the build does not load it: only here does a missing symbol show
    return compile_flags, link
