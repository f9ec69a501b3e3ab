"""The documents say what the code does."""

import doctest
import json
import re

import pa_hp
import torch
from pa_hp import __main__ as cli
from pa_hp import build
from pa_hp.bench.tolerance import out_limits
from pa_hp.ops import decode
from test_bench_sim import KEYS

ROOT = build.ROOT
README = (ROOT / "README.md").read_text()
KERNEL = (ROOT / "docs" / "kernel.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def test_readme_example_runs_as_it_is(python, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in example.splitlines() if line]) <= 10
    printed = python("-c", example, cwd=tmp_path).stdout
    assert printed.strip() == example.rstrip().rpartition("# ")[2]


def test_kernel_example_runs_as_it_is(python, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", KERNEL, re.S)
    assert python("-c", example, cwd=tmp_path).stdout.startswith("modelled time ")


def test_keys_of_the_modelled_rows_are_documented():
    table = KERNEL.partition("| key | |\n|---|---|\n")[2].partition("\n\n")[0]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.M)))
    assert named == [*KEYS, "published"]


def test_keys_of_sim_run_are_documented(capsys):
    axpy = str(ROOT / "tests" / "sim" / "kernels" / "axpy.cce")
    tensors = ["--arg", "randn:fp32:4096"] * 2
    numbers = ["--arg", "0.5", "--arg", "1"]
    command = ["sim", "run", axpy, "--entry", "axpy", "--cores", "aiv", *tensors, *numbers]
    assert cli.main([*command, "--json"]) == 0
    text = (ROOT / "docs" / "simulator.md").read_text()
    sentence = text.partition("`sim run --json` prints")[2].partition(".\n")[0]
    assert re.findall(r"`(\w+)`", sentence) == list(json.loads(capsys.readouterr().out))


def test_doctests():
    result = doctest.testmod(decode)
    assert result.attempted > 0 and result.failed == 0


def test_examples_of_tolerances():
    text = (ROOT / "docs" / "numerics.md").read_text()
    table = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.M)
    assert len(table) == 5
    for length, cells in table:
        dtypes = torch.float16, torch.bfloat16, torch.float32
        limits = [out_limits(dtype, 128, int(length)) for dtype in dtypes]
        figures = [limits[2][0], *(rtol for _, rtol in limits)]
        assert cells.split(" | ") == [f"{figure:.1e}" for figure in figures], length


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
