"""What the wheel holds, and that it works where nothing else of the project is."""

import subprocess
import zipfile

import pytest
from pa_hp import build

ROOT = build.ROOT
if not (ROOT / "pyproject.toml").exists():
    pytest.skip("needs the source tree", allow_module_level=True)


@pytest.fixture(scope="module")
def wheel(python, tmp_path_factory):
    """The wheel, built from a copy of the files under version control."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    git = ("git", "ls-files", "-z", "--error-unmatch", "pyproject.toml", ".")
    try:
        listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the list of files under version control: {error}")
    for name in filter(None, listed.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = ("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder)
    python(*pip, source)
    return next(folder.glob("pa_hp-*.whl"))


def test_file_list(wheel):
    packaged = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {"__init__.py", "__main__.py", "_version.py", "build.py", "py.typed"}
    for folder, suffixes in {
        "ops": {".py"},
        "tiling": {".py"},
        "bench": {".py", ".cpp", ".json"},
        "kernels": {".py", ".cpp", ".h", ".inl", ".cce", ".json"},
    }.items():
        files = (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
        wanted |= {path.relative_to(ROOT).as_posix() for path in files}
    assert packaged == {f"pa_hp/{name}" for name in wanted}


def test_wheel_works_and_its_import_builds_nothing(wheel, python, tmp_path):
    site, cache = tmp_path / "site", tmp_path / "cache"
    python("-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"pa_hp"}
    place = {"cwd": tmp_path, "PYTHONPATH": str(site), "PA_HP_CACHE_DIR": str(cache)}
    imported = python("-c", "import pa_hp; print(pa_hp.__file__)", **place).stdout
    assert imported.strip() == str(site / "pa_hp" / "__init__.py")
    assert not cache.exists()
    # The same sources give the same key, so the wheel finds what the tree has built.
    printed = python("-m", "pa_hp", "build", "key", **place).stdout
    assert f"key {build.key()}" in printed.splitlines()
