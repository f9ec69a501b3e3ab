"""Tests with torch_npu, on the virtual NPU: `make test-npu`. Elsewhere they are skipped."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # virtual.py is a plain module


def pytest_collection_modifyitems(items):
    if os.environ.get("PA_HP_VNPU"):
        return
    skip = pytest.mark.skip(reason="needs the virtual NPU: make test-npu")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def runtime():
    """See virtual.Runtime."""
    import virtual

    return virtual.Runtime()


@pytest.fixture(scope="session")
def script(python):
    """Run a script in a process of its own; keywords are environment variables."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return lambda text, **options: python("-c", text, PYTHONPATH=path, **options)
