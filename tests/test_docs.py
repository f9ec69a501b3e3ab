"""The documents say what the code does."""

import doctest
import re
import subprocess
import sys

import pa_hp
import pytest
from pa_hp import build
from pa_hp.ops import compat, decode, reference

ROOT = build.ROOT
README = (ROOT / "README.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def test_readme_example_runs_as_it_is(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in example.splitlines() if line]) <= 10
    printed = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert printed.strip() == example.rstrip().rpartition("# ")[2]


@pytest.mark.parametrize("module", [decode, compat, reference], ids=lambda m: m.__name__)
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


def test_there_is_a_doctest():
    assert doctest.testmod(decode).attempted > 0


def test_environment_variables_are_documented():
    rows = re.findall(r"^\| `(PA_HP_\w+)` \|", (ROOT / "docs" / "env.md").read_text(), re.M)
    sources = [
        path for folder in ("ops", "kernels", "bench") for path in (ROOT / folder).rglob("*")
    ]
    text = "".join(
        path.read_text()
        for path in [*sources, *ROOT.glob("*.py")]
        if path.suffix in {".py", ".cpp", ".h", ".inl"}
    )
    # A quoted name is one that is read; macros are not quoted.
    assert sorted(rows) == sorted(set(re.findall(r'"(PA_HP_[A-Z_]+)"', text)))


def test_every_argument_of_the_drop_ins_is_in_the_readme():
    section = README.partition("## Drop-ins")[2].partition("\n## ")[0]
    for function in (pa_hp.npu_incre_flash_attention, pa_hp.npu_paged_attention):
        table = section.partition(f"`pa_hp.{function.__name__}`")[2].partition("\n\n`pa_hp.")[0]
        named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.M)))
        assert set(named) == set(function.__annotations__) - {"return"}


def test_make_targets_and_links_exist():
    makefile = (ROOT / "Makefile").read_text()
    for document in DOCUMENTS:
        text = document.read_text()
        for target in re.findall(r"\bmake ([a-z-]+)(?=`|\s{2,}#|\n)", text):
            assert re.search(rf"^{target}:", makefile, re.M), f"{document.name}: make {target}"
        for link in re.findall(r"\]\(([^):#]+)\)", text):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
