"""A pytest plugin: the root of the repository is not a package of tests.

It is the package pa_hp, so pytest would import it once more, under the name of its directory.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collect_directory(path, parent):
    return pytest.Dir.from_parent(parent, path=path) if path.resolve() == ROOT else None
