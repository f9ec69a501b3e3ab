"""`python -m pa_hp selftest` on the virtual NPU: what fails, crashes or hangs is in the report."""

import json
import re
import textwrap

import pytest
import torch
from pa_hp.bench.cases import CASES
from pa_hp.bench.selftest import steps

# The worker: the same command, spoilt by a test.
SPOILT = """
import os, sys, time
import torch, pa_hp
from pa_hp import build
from pa_hp.__main__ import main
from pa_hp.bench.selftest import accuracy
right, load = accuracy.run, build.load
{}
sys.exit(main(sys.argv[1:]))
"""
ONE = "accuracy.group_7-float16"
OTHER = "accuracy.group_7-bfloat16"
LAST = "question.odd_depth"


@pytest.fixture(scope="module")
def selftest_run(python, tmp_path_factory):
    """Run the command, the worker spoilt; return exit code, report and output."""

    def run(*options, spoilt="", seconds=300):
        folder = tmp_path_factory.mktemp("selftest")
        worker, report = folder / "worker.py", folder / "report.json"
        worker.write_text(SPOILT.format(textwrap.dedent(spoilt)))
        script = f"""
            import sys
            from pa_hp.__main__ import main
            from pa_hp.bench import selftest
            selftest.COMMAND = [sys.executable, {str(worker)!r}]
            selftest.SECONDS = {seconds}
            sys.exit(main(["selftest", *sys.argv[1:]]))
        """
        done = python("-c", script, *options, "--out", report, check=False, cwd=folder)
        assert report.exists(), done.stderr
        return done.returncode, json.loads(report.read_text()), done.stdout

    return run


@pytest.fixture(scope="module")
def quick(selftest_run):
    return selftest_run("--quick")


def records(report):
    return {record["step"]: record for record in report["steps"]}


def status(report, *names):
    return [records(report)[name]["status"] for name in names]


def test_right_answers_pass(quick):
    code, report, text = quick
    assert code == 0 and "2 skipped" in text, text
    assert list(records(report)) == list(steps.all_steps(quick=True))
    skipped = {name for name, record in records(report).items() if record["status"] == "skipped"}
    name = f"time.{steps.timed_cases()[0].name}"
    assert skipped == {f"{name}.atb", "question.dsb_on_a3"}
    assert 0 < records(report)[ONE]["figures"]["of_tolerance"] < 1
    assert report["virtual_npu"] is True


def test_times_are_called_modelled(quick):
    _, report, text = quick
    name = f"time.{steps.timed_cases()[0].name}"
    ours, ifa, atb = (records(report)[f"{name}{peer}"] for peer in ("", ".ifa", ".atb"))
    cold = ours["figures"]["kernel_cold"]
    assert cold["kind"] == ours["figures"]["loop"]["kind"] == "modelled"
    assert ours["figures"]["host"]["kind"] == "measured"
    assert "measured" not in json.dumps({**ours["figures"], "host": None})
    assert cold["p50"] == pytest.approx(ours["figures"]["modelled_us"], rel=1e-3)
    assert "kernel_cold" not in ifa["figures"] and ifa["figures"]["host"]["p50"] > 0
    assert atb["reason"].startswith("absent")
    assert report["times_of_events"] == "modelled" and "kernel, modelled" in text


def test_a_wrong_answer_fails_and_stops_nothing(selftest_run):
    spoilt = """
        def run(*arguments):
            out, lse = right(*arguments)
            return out * (1 + 2**-6), lse
        accuracy.run = run
    """
    code, report, text = selftest_run("--step", ONE, "--step", OTHER, spoilt=spoilt)
    assert code == 1 and status(report, "build", ONE, OTHER) == ["passed", "failed", "failed"]
    assert "times the tolerance" in records(report)[ONE]["reason"]
    assert re.search(rf"^failed +{ONE}", text, re.M)


def test_a_crash_a_hang_and_an_error_stop_no_other_step(selftest_run):
    spoilt = """
        def run(inputs, scale=None):
            if len(inputs[0]) == 2 and inputs[0].dtype == torch.float16:
                os.abort()
            if len(inputs[0]) == 2:
                time.sleep(600)
            if len(inputs[0]) == 9:
                raise RuntimeError("no such thing")
            return right(inputs, scale)
        accuracy.run = run
    """
    chosen = [ONE, OTHER, "accuracy.bad_rows", LAST]
    options = [word for name in chosen for word in ("--step", name)]
    code, report, _ = selftest_run(*options, spoilt=spoilt, seconds=15)
    assert code == 1 and status(report, *chosen) == ["failed"] * 3 + ["passed"]
    crash, hang, error, _ = (records(report)[name] for name in chosen)
    assert crash["reason"] == "the process ended"
    assert hang["reason"] == "not done after 15 s"
    assert error["reason"] == "RuntimeError: no such thing"
    assert "in bad_rows" in error["traceback"]


def test_without_a_library_the_rest_is_skipped(selftest_run):
    spoilt = """
        def no_npu(target="cpu"):
            if target == "npu":
                raise build.BuildError("expected bisheng, got none")
            load(target)
        build.load = no_npu
    """
    code, report, _ = selftest_run("--step", ONE, spoilt=spoilt)
    assert code == 1 and status(report, "machine", "build") == ["passed", "failed"]
    assert "expected bisheng, got none" in records(report)["build"]["reason"]
    assert records(report)[ONE] == {
        "step": ONE,
        "status": "skipped",
        "reason": "needs the step build",
    }


# What a step looks for, it finds.


@pytest.mark.parametrize("part", [0, 1])
def test_bad_rows_sees_a_number_and_a_changed_neighbour(monkeypatch, part):
    from pa_hp.bench.selftest import accuracy

    right = accuracy.run
    calls = []

    def run(inputs):
        out, lse = right(inputs)
        calls.append(inputs)
        if len(calls) == 1:
            (out if part == 0 else lse)[1 if part == 0 else 0] = 0.0
        return out, lse

    monkeypatch.setattr(accuracy, "run", run)
    with pytest.raises(AssertionError, match="expected NaN" if part == 0 else "same bits"):
        accuracy.bad_rows()


def test_ifa_sees_other_answers(monkeypatch):
    from pa_hp.bench.selftest import accuracy

    case = next(case for case in CASES if accuracy.ifa_takes(case) and case.dtype == torch.float16)
    accuracy.against_ifa(case)
    right = accuracy.run
    spoilt = lambda *a: [part * 1.01 for part in right(*a)]  # noqa: E731
    monkeypatch.setattr(accuracy, "run", spoilt)
    with pytest.raises(AssertionError, match="against IFA"):
        accuracy.against_ifa(case)


def test_replay_sees_a_graph_that_does_not_read_its_inputs(monkeypatch):
    from pa_hp.bench.selftest import accuracy

    monkeypatch.setattr(torch.npu.NPUGraph, "replay", lambda self: None)
    with pytest.raises(AssertionError, match="of replay 0"):
        accuracy.replay(accuracy.replayed_cases()[0])
