"""Who compiles the NPU kernel: CANN's bisheng, a stand-in for it here, or a clear refusal."""

import subprocess
import sys

import pytest
from pa_hp import BuildError, build
from pa_hp.kernels.npu import toolchain
from standin import cann


@pytest.fixture(autouse=True)
def no_cann(monkeypatch, tmp_path):
    """None of this machine's, whatever it has."""
    for variable in (*toolchain.HOME_VARIABLES, "PA_HP_VNPU"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(toolchain, "PREFIXES", (str(tmp_path / "prefix"),))


@pytest.fixture
def home(tmp_path):
    return cann(tmp_path / "cann", build.compiler())


@pytest.mark.parametrize("variable", toolchain.HOME_VARIABLES)
def test_found_by_a_variable(variable, home, monkeypatch):
    monkeypatch.setenv(variable, str(home))
    found = toolchain.find()
    assert found.name == "bisheng"
    assert found.facts[0] == "cann 8.5.0"
    assert "bisheng stand-in 1.0" in found.facts[1]


def test_found_at_a_default_prefix(tmp_path):
    cann(tmp_path / "prefix", build.compiler())
    assert toolchain.find().name == "bisheng"


@pytest.mark.parametrize("version", ["8.0.RC3", "8.3.0", "8.5.0", "9.0.0"])
def test_bisheng_gets_every_flag_and_makes_the_launch_library(version, tmp_path, home, monkeypatch):
    cann(home, build.compiler(), version)  # the stand-in checks what it is given
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home))
    output = tmp_path / toolchain.LAUNCH
    done = subprocess.run(
        [*toolchain.find().compile, "-o", str(output)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(output)], capture_output=True, text=True, check=True
    )
    assert "pa_hp_npu_launch" in symbols.stdout


def test_the_virtual_npu_has_the_simulator(monkeypatch, tmp_path):
    monkeypatch.setenv("PA_HP_VNPU", str(tmp_path))
    assert toolchain.find().name == "simulator"


def test_cann_that_is_named_goes_before_the_virtual_npu(monkeypatch, tmp_path, home):
    monkeypatch.setenv("PA_HP_VNPU", str(tmp_path))
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(home))
    assert toolchain.find().name == "bisheng"


def test_without_cann():
    with pytest.raises(
        BuildError, match=r"expected CANN for the device npu, got none .*set_env.sh"
    ):
        toolchain.find()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("bin/bisheng", "expected bisheng in one of .*, got none"),
        ("include/acl/acl.h", "expected CANN's header include/acl/acl.h, got none"),
        ("version.cfg", "expected CANN's version in its version.cfg, got none"),
    ],
)
def test_with_a_part_missing(missing, message, home, monkeypatch):
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home))
    (home / missing).unlink()
    with pytest.raises(BuildError, match=message + r" \(CANN by ASCEND_HOME_PATH: .*install the"):
        toolchain.find()


def test_with_a_variable_that_leads_nowhere(home, monkeypatch):
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home / "nowhere"))
    with pytest.raises(BuildError, match="expected CANN's directory, got none"):
        toolchain.find()


def test_a_compile_error_comes_whole(home, monkeypatch, tmp_path):
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home))
    monkeypatch.setenv("PA_HP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(toolchain, "torch_npu", lambda: tmp_path)
    (home / "broken").touch()
    with pytest.raises(BuildError, match=r"(?s)building 'npu' failed.*bisheng.*error: a mistake"):
        build.build("npu")


@pytest.mark.parametrize("name", ["Ascend910B2", "Ascend910B4", "Ascend910_9382"])
def test_chips_of_the_architecture(name):
    toolchain.expect_soc(name)


@pytest.mark.parametrize("name", ["Ascend310P3", "Ascend910A", "Ascend950PR", "none"])
def test_other_chips_are_refused(name):
    with pytest.raises(BuildError, match=rf"expected a chip Ascend910B\* .*, got {name}"):
        toolchain.expect_soc(name)


def preprocessed(*flags):
    """What the compiler sees of decode.cce, defines apart."""
    include = toolchain.ROOT.parent / "sim" / "include"
    command = [build.compiler(), "-E", "-P", "-x", "c++", "-std=c++17", f"-I{include}"]
    command += ["-include", "cce.h", *flags, str(toolchain.ROOT / "decode.cce")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("core", ["CUBE", "VEC"])
def test_the_kernel_knows_a_core_by_the_old_and_the_new_name(core):
    old, new = preprocessed(f"-D__DAV_C220_{core}__"), preprocessed(f"-D__DAV_{core}__")
    assert old.returncode == new.returncode == 0, old.stderr + new.stderr
    assert f"class {core.capitalize()}" in new.stdout.replace("Vector", "Vec")
    assert old.stdout == new.stdout


def test_a_compiler_that_names_no_core_is_refused():
    assert preprocessed().returncode == 0  # the host's half
    done = preprocessed("-D__CCE_IS_AICORE__=1")
    assert done.returncode != 0 and "neither cube nor vector core" in done.stderr


def test_without_torch_npu(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    with pytest.raises(BuildError, match="expected torch_npu to be installed"):
        toolchain.torch_npu()


def test_the_key_names_what_decides(home, monkeypatch, tmp_path):
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home))
    monkeypatch.setattr(toolchain, "torch_npu", lambda: tmp_path)
    before = build.key("npu")
    cann(home, build.compiler(), "8.5.1")
    assert build.key("npu") != before
    text = "\n".join(build.key_lines("npu"))
    for word in (
        "cann 8.5.1",
        "bisheng stand-in",
        "decode.cce",
        "cube.h",
        "check.h",
        "-ltorch_npu",
    ):
        assert word in text, word
