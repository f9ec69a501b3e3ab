"""Command line: ``python -m pa_hp {demo,info,bench,build,selftest,sim,vnpu}``."""

from __future__ import annotations

import argparse
import json
import platform
import sys

import numpy
import torch

from . import __version__, build
from .bench import decode, demo, npu, selftest, suites
from .kernels.npu import toolchain
from .kernels.sim import cli as sim
from .kernels.sim import vnpu


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pa_hp", description="Paged-attention decode as a PyTorch operator."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    demo_parser = add("demo", "Check and time published shapes, then run a small decoder.")
    decode.add_arguments(demo_parser, seconds=0.5)

    info_parser = add("info", "Print versions, the compiler found, SIMD level, cache directory.")
    info_parser.add_argument("--json", action="store_true", help="one JSON object a line")

    bench_text = "Time decode against its peers, or model the NPU kernel's time."
    bench_parser = add("bench", bench_text)
    suites.add_arguments(bench_parser)

    build_parser = add("build", "Build a native library, print the key, or empty the cache.")
    build_parser.add_argument(
        "what", nargs="?", choices=["cpu", "npu", "clean", "key"], default="cpu"
    )

    selftest_text = "Check and time the op on this machine's NPU; write one report to send back."
    selftest.add_arguments(add("selftest", selftest_text))

    sim_parser = add("sim", "Run a kernel on the modelled chip; nothing is measured.")
    sim_commands = sim_parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    run_text = "Run a raw-CCE kernel on the simulated chip."
    sim.add_arguments(sim_commands.add_parser("run", help=run_text, description=run_text))
    decode_text = "Run the NPU kernel on the simulated chip: modelled time, hazards, max error."
    npu.add_arguments(sim_commands.add_parser("decode", help=decode_text, description=decode_text))

    vnpu_text = "Run a command with torch_npu on a virtual NPU; alone, tell what it offers."
    vnpu.add_arguments(add("vnpu", vnpu_text))

    arguments = parser.parse_args(argv)
    if arguments.command == "bench":
        try:
            suites.settle(arguments)
        except argparse.ArgumentTypeError as error:
            bench_parser.error(str(error))
    try:
        if arguments.command == "demo":
            return demo.command(arguments)
        if arguments.command == "bench":
            return (npu.bench if arguments.device == "sim" else suites.command)(arguments)
        if arguments.command == "info":
            return _info(arguments.json)
        if arguments.command == "selftest":
            return selftest.command(arguments)
        if arguments.command == "sim":
            return (npu if arguments.what == "decode" else sim).command(arguments)
        if arguments.command == "vnpu":
            return vnpu.command(arguments)
        return _build(arguments.what)
    except build.BuildError as error:
        print(error, file=sys.stderr)
        return 1


def _build(what: str) -> int:
    if what == "key":
        print("\n".join([*build.key_lines(), f"key {build.key()}"]))
    elif what == "clean":
        print(f"emptied {build.clean()}")
    else:
        print(build.build(what))
    return 0


def _info(as_json: bool) -> int:
    """Print what a bug report needs, also where nothing can be built."""
    problem: build.BuildError | None = None
    facts: dict[str, str | int] = {
        "pa_hp": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cache": str(build.cache_dir()),
        "looked_for": ", ".join([*build.COMPILER_VARIABLES, *build.COMPILERS]),
    }
    try:
        facts["compiler"] = build.compiler()
        facts["key"] = build.key()
        facts["simd"] = build.cpu_isa()
    except build.BuildError as error:
        problem = error
    try:
        found = toolchain.find()
        facts["npu"] = ", ".join([found.name, *found.facts])
    except build.BuildError as error:
        facts["npu"] = str(error).removeprefix("pa_hp: ")
    print(json.dumps(facts) if as_json else "\n".join(f"{k:<12}{v}" for k, v in facts.items()))
    if problem is not None:
        raise problem
    return 0


if __name__ == "__main__":
    sys.exit(main())
