"""`python -m pa_hp selftest` where there is no NPU, and docs/on-hardware.md against its steps."""

import fnmatch
import importlib.util
import json
import re

import pytest
from pa_hp import build
from pa_hp.__main__ import main
from pa_hp.bench import selftest
from pa_hp.bench.selftest import steps

DOC = (build.ROOT / "docs" / "on-hardware.md").read_text()


def test_every_open_question_has_its_step():
    table = (build.ROOT / "docs" / "kernel.md").read_text()
    table = table.partition("## Open questions for hardware")[2].partition("\n## ")[0]
    asked = re.findall(r"^\| (.*?) \|", table, re.M)[2:]
    answered = re.findall(r"^\| (.*?) \| `question\.(\w+)` \|", DOC, re.M)
    assert len(asked) > 8
    for question in asked:
        steps_of = [name for words, name in answered if question.startswith(words)]
        assert len(steps_of) == 1, question
    assert sorted(name for _, name in answered) == sorted(steps.QUESTIONS)


def test_steps_named_in_the_document_exist():
    known = list(steps.all_steps())
    for name in re.findall(r"--step '?([a-z][\w.*-]+)", DOC):
        assert fnmatch.filter(known, name), name


def test_no_step_has_two_names():
    known = list(steps.all_steps())
    assert set(selftest.FIRST) | set(selftest.LONG) <= set(known)
    assert set(steps.all_steps(quick=True)) < set(known)


@pytest.mark.parametrize(
    "options",
    [["--step", "nothing"], ["--device", "cpu"], ["--out", "no/such/folder"]],
    ids=" ".join,
)
def test_bad_usage(options, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["selftest", *options])
    except SystemExit as ended:  # argparse's
        code = ended.code
    assert code == 2 and options[-1] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("torch_npu") is not None, reason="torch_npu is here")
def test_without_an_npu_the_report_says_so(python, tmp_path):
    done = python("-m", "pa_hp", "selftest", "--quick", check=False, cwd=tmp_path)
    (path,) = tmp_path.glob("pa_hp-selftest-unknown-*.json")
    first, *others = json.loads(path.read_text())["steps"]
    assert done.returncode == 1 and path.name in done.stdout
    assert first["status"] == "failed" and "torch_npu" in first["reason"]
    assert {(record["status"], record["reason"]) for record in others} == {
        ("skipped", "needs the step machine")
    }
