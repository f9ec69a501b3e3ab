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


@pytest.mark.parametrize("version", ["8.0.RC2.alpha001", "8.5.0"])
def test_the_version_is_that_of_the_toolkit(version, home, monkeypatch):
    cann(home, build.compiler(), version)
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home))
    assert toolchain.find().facts[0] == f"cann {version}"
    # It decides nothing: a toolkit that does not tell it compiles as well.
    next(home.glob("*-linux/*.info")).unlink()
    assert toolchain.find().facts[0] == "cann of unknown version"


def test_bisheng_gets_every_flag_and_makes_the_launch_library(tmp_path, home, monkeypatch):
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


@pytest.mark.parametrize("name", ["Ascend910B2", "Ascend910B2C", "Ascend910B4-1", "Ascend910_9382"])
def test_chips_of_the_architecture(name):
    toolchain.expect_soc(name)


@pytest.mark.parametrize(
    "name", ["Ascend310P3", "Ascend910A", "Ascend910B", "Ascend910_9589", "none"]
)
def test_other_chips_are_refused(name):
    with pytest.raises(BuildError, match=rf"expected a chip Ascend910B1 to B4 .*, got {name}"):
        toolchain.expect_soc(name)


@pytest.fixture
def extension(home, monkeypatch, tmp_path):
    """`build.build("npu")` of a text in the place of entry.cpp, with a torch_npu of its own."""
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home))
    monkeypatch.setenv("PA_HP_CACHE_DIR", str(tmp_path / "cache"))
    package, source, stub = tmp_path / "torch_npu", tmp_path / "entry.cpp", tmp_path / "stub.cpp"
    header = package / "include/third_party/acl/inc/acl/acl.h"
    for path in (package / "lib", header.parent):
        path.mkdir(parents=True)
    header.write_text('extern "C" int from_torch_npu();\n')
    stub.write_text("""
        extern "C" int from_torch_npu() { return 40; }
        extern "C" int rtGetC2cCtrlAddr(unsigned long*, unsigned*) { return 2; }
        extern "C" int vnpu_launch() { return 0; }
    """)
    libraries = [package / "lib/libtorch_npu.so", home / "lib64/libruntime.so"]
    for path in [*libraries, home / "lib64/libascendcl.so"]:
        command = [build.compiler(), "-shared", "-fPIC", f"-Wl,-soname,{path.name}"]
        subprocess.run([*command, str(stub), "-o", str(path)], check=True)
    monkeypatch.setattr(toolchain, "torch_npu", lambda: package)
    monkeypatch.setitem(build.TARGETS, "npu", [str(source)])

    def make(text):
        source.write_text(f"#include <acl/acl.h>\n{text}")
        return build.build("npu")

    return make


def test_from_bisheng_to_a_library_that_calls_the_launch(extension, python):
    path = extension("""
        extern "C" int pa_hp_npu_launch(const void*, const void*, void*, unsigned, void*);
        extern "C" int answer() {
          return from_torch_npu() + pa_hp_npu_launch(nullptr, nullptr, nullptr, 1, nullptr);
        }
    """)
    # Loaded from the cache, by the paths in it; the launch hands on the runtime's error.
    called = python("-c", f"import torch, ctypes; print(ctypes.CDLL('{path}').answer())")
    assert called.stdout == "42\n"


def test_a_library_that_lacks_a_symbol_is_not_kept(extension, tmp_path):
    with pytest.raises(BuildError, match=r"undefined reference to `nowhere\(\)"):
        extension("int nowhere(); int answer() { return nowhere(); }")
    assert not list((tmp_path / "cache").glob("npu-*/*.so"))


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
