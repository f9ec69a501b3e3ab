"""The just-in-time build: its key, its cache, and what happens when something goes wrong.

Most tests build a small stand-in for the library: one source without torch headers.
"""

import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pa_hp import BuildError, build

PACKAGE = build.ROOT
TINY = {"tiny": ["kernels/tiny.cpp"]}

# A compiler that writes down every compilation and does not finish while the file `block` is there.
WRAPPER = """\
#!/bin/sh
case " $* " in *" -c "*)
  echo compiling >> {folder}/compilations
  while [ -e {folder}/block ]; do sleep 0.05; done
esac
exec {compiler} "$@"
"""

BUILD_TINY = """\
import sys
from pathlib import Path
from pa_hp import build
build.ROOT, build.TARGETS = Path(sys.argv[1]), {"tiny": ["kernels/tiny.cpp"]}
print("ready", flush=True)
sys.stdin.readline()
print(build.build("tiny"))
"""


class Tiny:
    """A package of one small source, a compiler that keeps count, and a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.cache = folder, folder / "package", folder / "cache"
        self.source = self.root / "kernels" / "tiny.cpp"
        self.header = self.root / "kernels" / "tiny.h"
        self.block = folder / "block"
        self.compiler = folder / "c++"
        self.source.parent.mkdir(parents=True)
        self.header.write_text("constexpr int kAnswer = 42;\n")
        self.source.write_text('#include "tiny.h"\nextern "C" int answer() { return kAnswer; }\n')
        self.compiler.write_text(WRAPPER.format(folder=folder, compiler=build.compiler()))
        self.compiler.chmod(0o755)

    @property
    def compilations(self) -> int:
        log = self.folder / "compilations"
        return len(log.read_text().splitlines()) if log.exists() else 0

    @property
    def entries(self) -> list[str]:
        """What lies in the cache, lock files apart."""
        return sorted(path.name for path in self.cache.iterdir() if path.suffix != ".lock")

    def start(self) -> subprocess.Popen:
        """A process that stands ready to build; a line on its stdin sets it off."""
        process = subprocess.Popen(
            [sys.executable, "-c", BUILD_TINY, str(self.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout.readline() == "ready\n"
        return process


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    stand_in = Tiny(tmp_path)
    monkeypatch.setattr(build, "ROOT", stand_in.root)
    monkeypatch.setattr(build, "TARGETS", TINY)
    monkeypatch.setattr(build, "loaded", {})
    monkeypatch.setenv("PA_HP_CACHE_DIR", str(stand_in.cache))
    monkeypatch.setenv("PA_HP_CXX", str(stand_in.compiler))
    for variable in ("PA_HP_JIT", "PA_HP_VERBOSE", "PA_HP_SANITIZE"):
        monkeypatch.delenv(variable, raising=False)
    return stand_in


def fake_entry(tiny, library: bytes = b"not a library") -> Path:
    """An entry that is whole by its checksum."""
    entry = tiny.cache / f"tiny-{build.key('tiny')}"
    tiny.cache.mkdir(mode=0o700, exist_ok=True)
    entry.mkdir()
    (entry / build.LIBRARY).write_bytes(library)
    digest = build.hashlib.sha256(library).hexdigest()
    (entry / "sha256").write_text(f"{digest} {build.LIBRARY}\n")
    return entry


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def test_build_then_cached_then_header_change(tiny):
    path = build.build("tiny")
    digest = build.key("tiny")
    assert path == tiny.cache / f"tiny-{digest}" / build.LIBRARY
    assert build.ctypes.CDLL(str(path)).answer() == 42
    assert tiny.cache.stat().st_mode & 0o777 == 0o700
    assert (path.parent / "key.txt").read_text().splitlines() == build.key_lines("tiny")
    assert "tiny.cpp" in (path.parent / "build.log").read_text()

    assert build.build("tiny") == path
    assert tiny.compilations == 1

    tiny.header.write_text("constexpr int kAnswer = 43;\n")
    changed = build.build("tiny")
    assert tiny.compilations == 2
    assert build.ctypes.CDLL(str(changed)).answer() == 43
    assert tiny.entries == sorted([path.parent.name, changed.parent.name])


def test_two_processes_race_for_an_empty_cache(tiny):
    tiny.block.touch()  # the first holds the lock until both are at it
    racers = [tiny.start(), tiny.start()]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    wait_for(lambda: tiny.compilations)
    time.sleep(0.5)
    tiny.block.unlink()
    paths = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0]
    assert paths == {str(tiny.cache / f"tiny-{build.key('tiny')}" / build.LIBRARY)}
    assert tiny.compilations == 1
    assert tiny.entries == [f"tiny-{build.key('tiny')}"]


@pytest.mark.parametrize("compiler_dies_too", [True, False])
def test_builder_killed_in_mid_build(tiny, compiler_dies_too):
    tiny.block.touch()
    victim = tiny.start()
    victim.stdin.write("go\n")
    victim.stdin.flush()
    wait_for(lambda: tiny.compilations)
    victim.kill()
    victim.wait()
    if compiler_dies_too:
        os.killpg(victim.pid, signal.SIGKILL)
    assert ".tmp-" in tiny.entries[0]
    tiny.block.unlink()
    assert build.ctypes.CDLL(str(build.build("tiny"))).answer() == 42
    if compiler_dies_too:  # else it may write a little longer
        assert tiny.entries == [f"tiny-{build.key('tiny')}"]


@pytest.mark.parametrize("damage", ["truncated", "altered", "no checksum"])
def test_damaged_entry_is_rebuilt_once(tiny, damage):
    entry = fake_entry(tiny)
    assert build.build("tiny").read_bytes() == b"not a library"  # whole: taken as it is
    if damage == "truncated":
        os.truncate(entry / build.LIBRARY, 5)
    elif damage == "altered":
        (entry / build.LIBRARY).write_bytes(b"not a Library")
    else:
        (entry / "sha256").unlink()
    for _ in range(2):
        assert build.ctypes.CDLL(str(build.build("tiny"))).answer() == 42
    assert tiny.compilations == 1
    assert tiny.entries == [entry.name]


def test_compile_error_tells_command_errors_and_log(tiny, monkeypatch, capfd):
    monkeypatch.setenv("PA_HP_VERBOSE", "1")
    tiny.source.write_text("int f() { return undeclared_name; }\n")
    with pytest.raises(BuildError) as caught:
        build.build("tiny")
    text = str(caught.value)
    assert text.startswith("pa_hp: building 'tiny' failed (exit status 1)\n")
    compiler = re.escape(str(tiny.compiler))
    assert re.search(rf"^command: .*{compiler} .* -c \S*/tiny\.cpp ", text, re.M)
    assert re.search(r"^\S*tiny\.cpp:1:18: error: .*undeclared_name", text, re.M)
    assert "PA_HP_CXX" in text
    log = Path(re.search(r"^whole log: (.*)$", text, re.M)[1])
    assert "undeclared_name" in log.read_text()
    assert "undeclared_name" in capfd.readouterr().err  # PA_HP_VERBOSE
    assert tiny.entries == [log.name]


def test_library_that_does_not_load_is_not_kept(tiny):
    tiny.source.write_text('int absent();\nextern "C" int answer() { return absent(); }\n')
    with pytest.raises(BuildError, match=r"undefined symbol: .*absent"):
        build.build("tiny")
    assert [name for name in tiny.entries if not name.endswith(".failed.log")] == []


def test_load_error(tiny):
    fake_entry(tiny)
    with pytest.raises(BuildError, match=r"\.so to load, got: .*python -m pa_hp build clean"):
        build.load("tiny")


def test_threads_load_once(tiny, monkeypatch):
    fake_entry(tiny)
    loads = []

    def load_library(path):
        time.sleep(0.1)
        loads.append(path)

    monkeypatch.setattr(build.torch.ops, "load_library", load_library)
    threads = [threading.Thread(target=build.load, args=("tiny",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_jit_off(tiny, monkeypatch):
    monkeypatch.setenv("PA_HP_JIT", "0")
    with pytest.raises(BuildError, match=r"PA_HP_JIT=0 forbids building\), got none; unset"):
        build.build("tiny")
    entry = fake_entry(tiny)
    assert build.build("tiny").parent == entry
    assert tiny.compilations == 0


@pytest.mark.parametrize("variable", ["PA_HP_CXX", "CXX"])
@pytest.mark.parametrize("value", ["/nonexistent/c++", "env c++", " "])
def test_compiler_that_is_not_there(tiny, monkeypatch, variable, value):
    monkeypatch.delenv("PA_HP_CXX")
    monkeypatch.setenv(variable, value)
    message = f"expected {variable} to name a C++ compiler, got '{value}'; set PA_HP_CXX"
    with pytest.raises(BuildError, match=re.escape(message)):
        build.build("tiny")


def test_no_compiler_on_the_path(tiny, monkeypatch):
    monkeypatch.delenv("PA_HP_CXX")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tiny.cache))
    with pytest.raises(BuildError, match=r"looked for c\+\+, g\+\+, clang\+\+\), got none"):
        build.build("tiny")


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 3\n", "#!/bin/sh\nexit 0\n", "no program\n"])
def test_compiler_that_is_none(tiny, script):
    tiny.compiler.write_text(script)
    with pytest.raises(BuildError, match=r"--version` to print a version, got: .*set PA_HP_CXX"):
        build.build("tiny")


def test_cache_that_others_can_write_is_refused(tiny):
    fake_entry(tiny)
    for mode in (0o770, 0o707, 0o720):
        tiny.cache.chmod(mode)
        with pytest.raises(BuildError, match=rf"writable by you alone, got mode {mode:04o}"):
            build.build("tiny")
    tiny.cache.chmod(0o755)
    build.build("tiny")


def test_cache_of_someone_else_is_refused(tiny, monkeypatch):
    fake_entry(tiny)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(BuildError, match=rf"to be yours \(uid {owner + 1}\), got owner {owner}"):
        build.build("tiny")


def test_cache_that_cannot_be_made(tiny, monkeypatch):
    (tiny.folder / "file").touch()
    monkeypatch.setenv("PA_HP_CACHE_DIR", str(tiny.folder / "file" / "cache"))
    with pytest.raises(BuildError, match=r"usable, got: .*Not a directory.*set PA_HP_CACHE_DIR"):
        build.build("tiny")


def test_cache_that_is_read_only(tiny, monkeypatch):
    def read_only(*_):  # root may write everywhere, so the mode alone would not do
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(build, "_lock", read_only)
    with pytest.raises(BuildError, match=r"to be writable, got: .*Permission denied"):
        build.build("tiny")


def test_full_disk(tiny, monkeypatch):
    def mkdtemp(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(build.tempfile, "mkdtemp", mkdtemp)
    with pytest.raises(BuildError, match=r"to be writable, got: .*No space left.*PA_HP_CACHE_DIR"):
        build.build("tiny")


def test_user_without_a_home(tiny, monkeypatch):
    def expanduser(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PA_HP_CACHE_DIR")
    monkeypatch.setattr(Path, "expanduser", expanduser)
    with pytest.raises(BuildError, match="set PA_HP_CACHE_DIR"):
        build.build("tiny")


def test_relative_cache_directory(tiny, monkeypatch):
    monkeypatch.chdir(tiny.folder)
    monkeypatch.setenv("PA_HP_CACHE_DIR", "elsewhere")
    assert build.build("tiny").is_relative_to(tiny.folder / "elsewhere")


def test_a_builder_that_hangs_is_named(tiny, monkeypatch):
    monkeypatch.setattr(build, "_LOCK_SECONDS", 0.2)
    tiny.cache.mkdir(mode=0o700)
    lock = tiny.cache / f"tiny-{build.key('tiny')}.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BuildError, match=rf"another process has held {lock}"):
            build.build("tiny")


def test_clean_removes_builds_and_nothing_else(tiny):
    entry = fake_entry(tiny)
    shutil.copytree(entry, f"{entry}.tmp-x1y2")
    Path(f"{entry}.failed.log").touch()
    foreign = [tiny.cache / "tiny-notes", tiny.cache / "photos"]
    foreign[0].touch()
    foreign[1].mkdir()
    (tiny.cache / "selftest-unfenced" / "pa_hp").mkdir(parents=True)
    assert build.clean() == tiny.cache
    assert tiny.entries == sorted(path.name for path in foreign)


def test_key_is_stable_and_covers_every_source(tmp_path, monkeypatch):
    before = build.key()
    assert re.fullmatch("[0-9a-f]{16}", before)
    assert before == build.key()
    for name in ("kernels", "bench"):
        shutil.copytree(PACKAGE / name, tmp_path / name)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    assert build.key() == before  # it does not matter where the package lies
    files = [
        path
        for folder in ("kernels", "kernels/cpu")
        for path in (tmp_path / folder).iterdir()
        if path.suffix in {".cpp", ".h", ".inl"}
    ]
    assert len(files) > 5
    seen = {before}
    for path in files:
        path.write_bytes(path.read_bytes() + b"\n")
        seen.add(build.key())
    assert len(seen) == len(files) + 1
    # The simulator is a library of its own: an edit there does not build the op anew.
    (tmp_path / "kernels" / "sim" / "core.h").write_text("")
    assert build.key() in seen
    monkeypatch.setenv("PA_HP_SANITIZE", "1")
    assert build.key() not in seen


IMPORT = """
import pathlib, sys, time, torch
start = time.perf_counter()
import pa_hp
print(time.perf_counter() - start)
hasattr(torch.ops, "pa_hp"), repr(torch.ops.pa_hp), dir(torch.ops.pa_hp)
assert not pathlib.Path(sys.argv[1]).exists()
"""


@pytest.mark.alone
def test_import_is_fast_and_builds_nothing(python, tmp_path):
    cache = tmp_path / "cache"
    seconds = []
    for _ in range(3):  # the first may compile bytecode, and the machine may be busy
        output = python("-c", IMPORT, cache, PA_HP_CACHE_DIR=str(cache), PATH="").stdout
        seconds.append(float(output))
        if min(seconds) < 0.05:
            return
    raise AssertionError(f"import pa_hp took {seconds} s beyond import torch")


def test_cli_key_and_clean(python, tmp_path):
    cache = tmp_path / "cache"
    printed = python("-m", "pa_hp", "build", "key", PA_HP_CACHE_DIR=str(cache))
    assert build.key() in printed.stdout
    assert all(line in printed.stdout for line in build.key_lines())
    entry = cache / f"cpu-{build.key()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    entry.mkdir()
    python("-m", "pa_hp", "build", "clean", PA_HP_CACHE_DIR=str(cache))
    assert not entry.exists()
