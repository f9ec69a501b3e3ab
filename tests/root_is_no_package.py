"""A pytest plugin. The root of the repository is the package pa_hp, so pytest would take it for a package
of tests and import it under another name."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collect_directory(path, parent):
    return pytest.Dir.from_parent(parent, path=path) if path.resolve() == ROOT else None
