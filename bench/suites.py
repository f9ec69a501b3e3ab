"""``python -m pa_hp bench``: its options, and the cases of every suite."""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..kernels.sim import chip_names
from . import decode, demo, plot, vllm
from .decode import Case

DEVICES = {"cpu": ("upstream", "cpu"), "sim": ("upstream", "ragged", "wide")}  # and their suites
SOC = "910B2"
SECONDS = 2.0
PEERS = {"upstream": "upstream", "ifa": "ifa", "atb": "atb_v1"}  # --json's name, published.json's

# Options that one device alone has a use for, with their defaults.
_ONLY: dict[str, dict[str, Any]] = {
    "cpu": {
        "threads": None,
        "seconds": SECONDS,
        "peer": list(decode.PEERS),
        "processes": 1,
        "plot": None,
    },
    "sim": {"soc": SOC, "shuffle": False, "check": False},
}


def cases(suite: str) -> dict[str, Case]:
    """Cases of a suite by name."""
    if suite == "upstream":
        return decode.published()
    chosen = {"ragged": _ragged, "wide": _wide, "cpu": _cpu}[suite]()
    return {case.name: case for case in chosen}


def _ragged() -> list[Case]:
    """Lengths that differ; 32 heads, 8 kv heads, head_dim and block size 128."""
    mixed = decode.published()["ragged_b16_h32kv8"]
    uniform = torch.randint(1, 8193, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    outlier = (512,) * 16 + (32768,) + (512,) * 15
    return [
        mixed,
        replace(mixed, name="uniform_b64_h32kv8_s1-8192", seq_lens=tuple(uniform), dtype="fp16"),
        replace(mixed, name="outlier_b32_h32kv8_s32768", seq_lens=outlier, dtype="fp16"),
    ]


def _wide() -> list[Case]:
    """Shapes away from head_dim 128, block size 128 and 32 heads over 8 kv heads."""
    return [
        Case("d64_b32_h32kv8_s4096", 32, 8, 64, 128, (4096,) * 32, "fp16"),
        Case("d256_b16_h32kv8_s2048", 32, 8, 256, 128, (2048,) * 16, "fp16"),
        Case("bs16_b16_h32kv8_s4096", 32, 8, 128, 16, (4096,) * 16, "fp16"),
        Case("b32_h40kv8_s2048", 40, 8, 128, 128, (2048,) * 32, "fp16"),
        Case("b32_h64kv8_s2048", 64, 8, 128, 128, (2048,) * 32, "fp16"),
        Case("mqa_b64_h16kv1_s8192", 16, 1, 128, 128, (8192,) * 64, "fp16"),
        Case("mha_b16_h32kv32_s1024", 32, 32, 128, 128, (1024,) * 16, "fp16"),
    ]


def _cpu() -> list[Case]:
    """Where a CPU's memory, its arithmetic or short rows are the limit; in float16 and bfloat16."""
    ragged = torch.randint(1, 4097, (32,), generator=torch.Generator().manual_seed(0)).tolist()
    shapes: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
        "b1_h32kv8_s4096": (32, 8, 128, 128, (4096,)),
        "b1_h32kv8_s32768": (32, 8, 128, 128, (32768,)),
        "b1_h32kv8_s300": (32, 8, 128, 128, (300,)),
        "b4_h32kv8_s2048": (32, 8, 128, 128, (2048,) * 4),
        "b16_h32kv8_s2048": (32, 8, 128, 128, (2048,) * 16),
        "b32_h32kv8_s1-4096": (32, 8, 128, 128, tuple(ragged)),
        "b8_h16kv1_s8192": (16, 1, 128, 128, (8192,) * 8),
        "b2_h32kv32_s2048": (32, 32, 128, 128, (2048,) * 2),
        "bs16_b4_h32kv8_s2048": (32, 8, 128, 16, (2048,) * 4),
        "d64_b4_h32kv8_s4096": (32, 8, 64, 128, (4096,) * 4),
        "d256_b4_h32kv8_s1024": (32, 8, 256, 128, (1024,) * 4),
    }
    chosen = [
        Case(f"{name}_{dtype}", *shape, dtype)
        for name, shape in shapes.items()
        for dtype in ("fp16", "bf16")
    ]
    plain = [case for case in chosen if case.name.startswith("b4_")]
    return chosen + [
        replace(case, name=f"heads_first_{case.name}", heads_first=True) for case in plain
    ]


@functools.cache
def _published_us() -> dict[str, dict[str, float]]:
    data = json.loads(Path(__file__).with_name("published.json").read_text())
    return {entry["case"]: entry["published_us"] for entry in data["cases"]}


def published_us(case: Case) -> dict[str, float | None]:
    """Published times of the case as it stands: none for one cut down or in another dtype."""
    same = decode.published().get(case.name) == case
    times = _published_us().get(case.name, {}) if same else {}
    return {ours: times.get(theirs) for ours, theirs in PEERS.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``bench``; those in _ONLY are None until `settle` has looked at the device."""
    decode.add_arguments(parser, SECONDS, cases=str)
    parser.set_defaults(seconds=None)
    parser.add_argument(
        "--suite",
        choices=sorted({suite for suites in DEVICES.values() for suite in suites}),
        default="upstream",
        help="upstream: the published cases (default); with --device cpu also cpu: what limits a "
        "CPU, and without --case the demo's decoder against dense SDPA; with --device sim also "
        "ragged: lengths that differ, and wide: other head_dims, block sizes and numbers of heads",
    )
    parser.add_argument(
        "--device",
        choices=list(DEVICES),
        default="cpu",
        help="cpu: measured on this machine (default); sim: the NPU kernel, modelled",
    )
    parser.add_argument("--dtype", choices=list(decode.DTYPES), help="instead of the case's")
    parser.add_argument(
        "--peer",
        type=decode.peer_list,
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(decode.PEERS)} (both) and, where it is installed "
        f"({vllm.INSTALL}), vllm",
    )
    parser.add_argument(
        "--processes",
        type=decode.positive_int,
        help="fresh processes per case: medians over them, and the spread (1: this one)",
    )
    parser.add_argument("--plot", type=plot.picture, metavar="PNG", help="draw all cases")
    group = parser.add_argument_group(
        "with --device sim",
        "No NPU is used: all figures are modelled, with a cold L2, except the published times. "
        "max err is against float64, of the longest row and of others that take about a second. "
        "--threads, --seconds, --peer, --processes and --plot belong to --device cpu.",
    )
    group.add_argument("--soc", choices=chip_names(), help=f"chip ({SOC})")
    group.add_argument(
        "--shuffle",
        action="store_true",
        default=None,
        help="pages in random order (ascending, as in the published benchmark)",
    )
    group.add_argument(
        "--check",
        action="store_true",
        default=None,
        help="look for all hazards, not for bounds alone, and compare all rows; slower",
    )


def settle(arguments: argparse.Namespace) -> None:
    """Fill in what depends on device and suite.

    Raises
    ------
    argparse.ArgumentTypeError
        A suite, an option, a dtype or a case that the device or the suite does not have.
    """
    device = arguments.device
    if arguments.suite not in DEVICES[device]:
        raise argparse.ArgumentTypeError(
            f"expected --suite {' or '.join(DEVICES[device])} with --device {device}, "
            f"got {arguments.suite}"
        )
    for owner, options in _ONLY.items():
        for option, default in options.items():
            if getattr(arguments, option) is None:
                setattr(arguments, option, default)
            elif owner != device:
                raise argparse.ArgumentTypeError(f"expected no --{option} with --device {device}")
    if arguments.plot and not arguments.peer:
        raise argparse.ArgumentTypeError("expected a peer to draw with --plot, got none")
    if device == "sim" and arguments.dtype == "fp32":
        raise argparse.ArgumentTypeError(
            "expected --dtype fp16 or bf16 with --device sim, got fp32"
        )
    # The decoder is no case: it comes where nobody has chosen among them.
    arguments.decoder = arguments.suite == "cpu" and arguments.case == "*"
    chosen = decode.case_list(arguments.case, cases(arguments.suite))
    arguments.case = [replace(case, dtype=arguments.dtype or case.dtype) for case in chosen]


def command(arguments: argparse.Namespace) -> int:
    """The ``bench`` subcommand on the CPU; returns the exit code."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    right = decode.run_cases(
        arguments.case,
        peers=arguments.peer,
        small_mb=arguments.small,
        seconds=arguments.seconds,
        as_json=arguments.json,
        facts={"suite": arguments.suite, "device": arguments.device},
        processes=arguments.processes,
        plot=arguments.plot,
    )
    if arguments.decoder:
        row, line = demo.run_context()
        print(json.dumps(row) if arguments.json else line, flush=True)
        right = right and row["ok"]
    return 0 if right else 1
