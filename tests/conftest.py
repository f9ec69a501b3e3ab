"""Shared set-up: the modules beside the tests, hypothesis, compilers, the thread count."""

import ctypes
import os
import subprocess
import sys
import textwrap
from pathlib import Path

# Threads that wait shall sleep: spinning costs minutes where the machine has other work. The OpenMP
# runtime reads it when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pa_hp
import pytest
import torch
from pa_hp import build
from pa_hp.kernels.sim import toolchain

# The root of the repository is the package, so pytest takes it for a test package and imports it
# under the directory's name: a second pa_hp in the process, which would fight over torch.ops.pa_hp.
sys.modules.setdefault(Path(__file__).parent.parent.name, pa_hp)
sys.path.insert(0, str(Path(__file__).parent))  # standin.py is a plain module

# The same examples in every run: a failure must be there again the next time.
hypothesis.settings.register_profile(
    "pa_hp", deadline=None, derandomize=True, database=None, max_examples=150
)
hypothesis.settings.load_profile("pa_hp")


@pytest.fixture(scope="session")
def python():
    """Run another interpreter, beside the tests; keywords are environment variables."""

    def run(*arguments, check=True, cwd=Path(__file__).parent, **environment):
        result = subprocess.run(
            [sys.executable, *(textwrap.dedent(str(argument)) for argument in arguments)],
            env={**os.environ, **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def compile_library(tmp_path_factory):
    """Compile one C++ source with the host's compiler and load it."""

    def compile_and_load(source):
        library = tmp_path_factory.mktemp("library") / f"{source.stem}.so"
        flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
        command = [build.compiler(), *flags, "-o", library, source]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return ctypes.CDLL(str(library))

    return compile_and_load


@pytest.fixture(scope="session")
def clang():
    """The compiler of strict builds."""
    try:
        return toolchain.clang()
    except pa_hp.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def set_threads():
    """`torch.set_num_threads`, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """No test sees another's compiled code."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
