"""What the wheel holds, and that it works where nothing else of the project is."""

import os
import subprocess
import sys
import zipfile

import pytest
from pa_hp import build

ROOT = build.ROOT
if not (ROOT / "pyproject.toml").exists():
    pytest.skip("needs the source tree", allow_module_level=True)


def run(*command, **changes):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, **changes
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the files under version control."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = ("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder)
    run(*pip, source)
    return next(folder.glob("pa_hp-*.whl"))


def test_file_list(wheel):
    packaged = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {"__init__.py", "__main__.py", "_version.py", "build.py", "py.typed"}
    for folder, suffixes in {
        "ops": {".py"},
        "bench": {".py", ".cpp", ".json"},
        "kernels": {".cpp", ".h", ".inl"},
    }.items():
        files = (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
        wanted |= {path.relative_to(ROOT).as_posix() for path in files}
    assert packaged == {f"pa_hp/{name}" for name in wanted}


def test_wheel_works_and_its_import_builds_nothing(wheel, tmp_path):
    site, cache = tmp_path / "site", tmp_path / "cache"
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"pa_hp"}
    environment = {**os.environ, "PYTHONPATH": str(site), "PA_HP_CACHE_DIR": str(cache)}
    place = {"env": environment, "cwd": tmp_path}
    assert run("-c", "import pa_hp; print(pa_hp.__file__)", **place).strip() == str(
        site / "pa_hp" / "__init__.py"
    )
    assert not cache.exists()
    # The same sources give the same key, so the wheel finds what the tree has built.
    assert f"key {build.key()}" in run("-m", "pa_hp", "build", "key", **place).splitlines()
