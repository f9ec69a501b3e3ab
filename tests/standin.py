"""A CANN that is not there: its directory, and a bisheng that checks how it is called.

What bisheng is given is then compiled for the simulator, so that the way from the hook to a running
kernel is walked.
"""

import os
import platform
import sys
from pathlib import Path

BISHENG = """\
#!{python}
import subprocess, sys
from pathlib import Path
if sys.argv[1:] == ["--version"]:
    print("bisheng stand-in 1.0")
    raise SystemExit(0)
home, compiler = Path({home!r}), {compiler!r}
words = sys.argv[1:]
def take(*wanted):
    at = words.index(wanted[0])
    assert words[at : at + len(wanted)] == list(wanted), words
    del words[at : at + len(wanted)]
for flag in ["-fPIC", "-shared", "-xcce", "-O2", "-std=c++17", "--cce-aicore-arch=dav-c220",
             "-D__aicore__=[aicore]"]:
    take(flag)
take(f"-L{{home}}/lib64"), take(f"-Wl,-rpath,{{home}}/lib64"), take("-lascendcl"), take("-lruntime")
include = [Path(word[2:]) for word in words if word.startswith("-I")]
assert (include[0] / "acl" / "acl.h").is_file(), include
assert (include[1] / "plan.h").is_file(), include
words = [word for word in words if not word.startswith("-I")]
at = words.index("-o")
output = words[at + 1]
del words[at : at + 2]
assert words[0] == "-include" and len(words) == 3, words
kernel, launch = Path(words[1]), Path(words[2])
assert kernel.name == "decode.cce" and launch.name == "launch.cpp", words
if (home / "broken").exists():
    print(f"{{kernel}}:1:1: error: a mistake of the stand-in")
    raise SystemExit(1)
sim = kernel.parent.parent / "sim"
extra = ["-x", "c++", str(home / "register.cpp")] if (home / "register.cpp").exists() else []
command = [compiler, "-fPIC", "-shared", "-O2", "-std=c++17", "-include",
           str(sim / "runtime" / "launch.h"), str(launch), *extra, "-x", "none",
           f"-L{{home}}/lib64", f"-Wl,-rpath,{{home}}/lib64", *{link!r}, "-o", output]
raise SystemExit(subprocess.run(command).returncode)
"""


def cann(home: Path, compiler: str, version: str = "8.5.0", link: tuple[str, ...] = ()) -> Path:
    """Make CANN's directory at `home`."""
    system = home / f"{platform.machine()}-linux"
    for folder in (home / "bin", home / "include/acl", home / "lib64", system):
        folder.mkdir(parents=True, exist_ok=True)
    (home / "include/acl/acl.h").touch()
    # Beside CANN's own version, files name the internal one of its parts.
    (home / "version.cfg").write_text(
        f"# version: 1.0\nruntime_running_version=[7.6.0:{version}]\n"
    )
    (system / "ascend_toolkit_install.info").write_text(
        f"package_name=Ascend-cann-toolkit\nversion={version}\narch={platform.machine()}\n"
    )
    bisheng = home / "bin" / "bisheng"
    bisheng.write_text(
        BISHENG.format(python=sys.executable, home=str(home), compiler=compiler, link=link)
    )
    bisheng.chmod(0o755)
    return home


def virtual_cann(home: Path, compiler: str, kernel) -> Path:
    """CANN's directory on the virtual NPU; the library registers `kernel` as bisheng's do."""
    cann(home, compiler, link=("-lascendcl",))
    for name in ("libascendcl.so", "libruntime.so"):
        (home / "lib64" / name).symlink_to(Path(os.environ["PA_HP_VNPU"]) / "libascendcl.so")
    (home / "register.cpp").write_text(f"""
#include <cstdint>
extern "C" int rtDevBinaryRegister(const void* binary, void** handle);
extern "C" int rtFunctionRegister(void*, const void*, const char*, const void*, uint32_t);
namespace {{
const char text[] = "vnpu {kernel.cores} {kernel.folder}";
struct {{ uint32_t magic, version; const void* data; uint64_t length; }} binary{{
    0, 0, text, sizeof(text) - 1}};
const int registered = [] {{
  void* handle = nullptr;
  return rtDevBinaryRegister(&binary, &handle) ||
         rtFunctionRegister(handle, text, "{kernel.entry}", nullptr, 0);
}}();
}}  // namespace
""")
    return home
