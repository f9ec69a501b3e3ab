"""The virtual NPU's command, where it need not run: what it says when it cannot."""

import platform
import subprocess
import sys

import pytest
from pa_hp import __main__ as cli
from pa_hp import build
from pa_hp.kernels.sim import vnpu


@pytest.mark.parametrize(
    ("machine", "version", "words"),
    [
        ("aarch64", (3, 11, 7), "expected x86-64 Linux"),
        ("x86_64", (3, 12, 1), "expected Python 3.11"),
        ("x86_64", (3, 11, 7), None),
    ],
)
def test_refusal(monkeypatch, machine, version, words):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "version_info", version)
    reason = vnpu.refusal()
    assert reason is None if words is None else words in reason
    if words is not None:
        with pytest.raises(build.BuildError, match=words):
            vnpu.environment()


def test_a_failing_step_of_the_set_up_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PA_HP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(vnpu, "refusal", lambda: None)

    def run(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "no matching distribution")

    monkeypatch.setattr(vnpu.subprocess, "run", run)
    with pytest.raises(build.BuildError, match=r"no matching distribution\n.*PIP_FIND_LINKS"):
        vnpu.environment()
    # What is half made is made anew, and `build clean` knows it.
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.suffix == ".lock")
    assert folder.name.startswith("vnpu-env-")


def test_device_tests_are_skipped_elsewhere(python):
    options = ("-q", "-rs", "-k", "two_devices", "-p", "no:cacheprovider")
    done = python("-m", "pytest", "npu_device", *options, PA_HP_VNPU="", check=False)
    assert "needs the virtual NPU: make test-npu" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--devices", "0"], "expected 1 to 16 devices, got 0"),
        (["--devices", "99"], "expected 1 to 16 devices, got 99"),
        (["--memory", "-1"], "expected GiB of memory, more than 0, got -1"),
        (["--memory", "nan"], "expected GiB of memory, more than 0, got nan"),
    ],
)
def test_bad_options_are_named(options, words, capsys):
    with pytest.raises(SystemExit):
        cli.main(["vnpu", *options, "--", "true"])
    assert words in capsys.readouterr().err
