"""``python -m pa_hp sim run FILE.cce --entry NAME``: try a kernel without writing Python."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from . import Kernel, chip_names
from .toolchain import CORES

_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int32": torch.int32,
    "int8": torch.int8,
    "uint8": torch.uint8,
}


def argument(text: str) -> Any:
    """One argument of a kernel, such as ``randn:fp16:1024``, ``null``, ``7`` or ``0.5``."""
    if text == "null":
        return None
    parts = text.split(":")
    try:
        if len(parts) == 1:
            return float(text) if "." in text or "e" in text.lower() else int(text, 0)
        fill, dtype, count = parts
        shape, kind = (int(count),), _DTYPES[dtype]
        if fill == "zeros":
            return torch.zeros(shape, dtype=kind)
        if fill == "arange":
            return torch.arange(shape[0]).to(kind)
        if fill == "randn" and kind.is_floating_point:
            return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kind)
    except (KeyError, ValueError, RuntimeError):  # RuntimeError: torch, of a negative size
        pass
    raise argparse.ArgumentTypeError(
        f"expected null, a number, or FILL:DTYPE:COUNT with FILL zeros, arange or randn and DTYPE "
        f"one of {', '.join(_DTYPES)}, got {text!r}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sim run``."""
    parser.add_argument("file", type=Path, help="raw-CCE source")
    parser.add_argument("--entry", required=True, help="name of its __global__ function")
    parser.add_argument(
        "--arg",
        action="append",
        type=argument,
        default=[],
        metavar="ARG",
        help="one of the entry's arguments, in order: null, a number, or FILL:DTYPE:COUNT "
        "(zeros, arange or randn; fp32, fp16, bf16, int32, int8, uint8)",
    )
    parser.add_argument("--block-dim", type=int, default=1, help="number of blocks (1)")
    parser.add_argument("--cores", choices=CORES, default="mix", help="cores of a block (mix)")
    parser.add_argument("--soc", choices=chip_names(), default="910B2", help="chip (910B2)")
    parser.add_argument("-I", dest="include_dirs", action="append", default=[], metavar="DIR")
    parser.add_argument("-D", dest="defines", action="append", default=[], metavar="MACRO")
    parser.add_argument("--strict", action="store_true", help="clang, an address space per memory")
    parser.add_argument("--strict-visibility", action="store_true", help="stores need a fence")
    parser.add_argument("--latest", action="store_true", help="operations as late as flags allow")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule (0: round robin)")
    parser.add_argument("--trace", type=Path, help="write a Chrome trace to this file")
    parser.add_argument("--plot", type=Path, help="write a timeline to this PNG")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def command(arguments: argparse.Namespace) -> int:
    """Run a kernel and print its report; return 1 if anything was found, 2 for wrong arguments."""
    try:
        return _run(arguments)
    except ValueError as error:
        print(f"python -m pa_hp sim run: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    kernel = Kernel(
        arguments.file,
        arguments.entry,
        include_dirs=arguments.include_dirs,
        defines=arguments.defines,
        cores=arguments.cores,
        strict=arguments.strict,
    )
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments.arg]
    report = kernel.launch(
        arguments.block_dim,
        *arguments.arg,
        soc=arguments.soc,
        strict_visibility=arguments.strict_visibility,
        latest=arguments.latest,
        schedule_seed=arguments.seed,
    )
    changed = [
        number
        for number, (old, new) in enumerate(zip(before, arguments.arg, strict=True))
        if isinstance(old, torch.Tensor)
        and not torch.equal(old.view(torch.uint8), new.view(torch.uint8))
    ]
    if arguments.json:
        hazards = [{"kind": f.kind, "message": f.message, "count": f.count} for f in report.hazards]
        row = {
            "kernel": arguments.entry,
            "soc": arguments.soc,
            "modelled_us": report.time_us,
            "hazards": hazards,
            "changed_arguments": changed,
        }
        print(json.dumps(row))
    else:
        print(report)
        print(f"arguments written: {', '.join(map(str, changed)) or 'none'}")
    if report.timeline is not None and arguments.trace:
        report.save_trace(arguments.trace)
    if report.timeline is not None and arguments.plot:
        report.plot(arguments.plot)
    return 1 if report.hazards else 0
