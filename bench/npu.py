"""The NPU kernel on the modelled chip: ``bench --device sim`` and ``sim decode``.

No NPU is used: times, and what follows from them, are modelled. Answers are real, and compared with
float64.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._version import __version__
from ..kernels.sim import Report, chip_names
from ..kernels.sim.report import chip_parameters
from ..ops.reference import reference
from ..ops.simulate import simulate
from ..tiling.plan import workspace_bytes
from . import decode, harness, suites
from .decode import Case
from .tolerance import bound, out_limits


class Result(NamedTuple):
    row: dict[str, Any]  # --json's
    report: Report
    num_rows: int  # compared with float64
    right: bool

    @property
    def ok(self) -> bool:
        return self.right and not self.report.hazards


def run(
    case: Case, soc: str, *, shuffle: bool = False, check: bool = True, all_rows: bool = False
) -> Result:
    """Simulate a case with a cold L2; compare all rows, or the longest and a second's work more."""
    inputs = decode.make_inputs(case, max_layers=1, shuffle=shuffle).layer(0)
    out, report = simulate(*inputs, soc=soc, check=check)
    hbm, cube_cores = chip_parameters(soc, ["hbm", "cube_cores"])

    some = torch.cat([decode.checked_rows(case), inputs[4].argmax()[None]]).unique()
    rows = torch.arange(case.batch) if all_rows else some
    max_err, right = compare(inputs, out, rows)
    us = report.time_us
    row = {
        "case": case.name,
        "modelled_us": us,
        "gbps": None if us is None else case.num_bytes / us / 1e3,
        "share_of_limit": None if us is None else case.num_bytes / (hbm * 1e6) / us,
        "balance": report.balance,
        "workspace_bytes": workspace_bytes(case.head_dims[1], int(cube_cores)),
        "hazards": sum(finding.count for finding in report.hazards),
        "max_err": max_err if math.isfinite(max_err) else None,
    }
    return Result(row, report, len(rows), right)


def compare(inputs: Sequence[Tensor], out: Tensor, rows: Tensor) -> tuple[float, bool]:
    """Largest error of `rows` against float64; if it is within the limits and all of `out` finite.

    `inputs` are the arguments of `pa_hp.decode`, `out` is what the NPU kernel made of them.
    """
    query, key_cache, value_cache, block_table, seq_lens = inputs
    expected, _ = reference(query[rows], key_cache, value_cache, block_table[rows], seq_lens[rows])
    error = (out[rows].double() - expected).abs()
    limits = [
        out_limits(out.dtype, query.size(2), length, weights_dtype=out.dtype)
        for length in seq_lens[rows].tolist()
    ]
    right = (error <= bound(expected, limits)).all() and out.isfinite().all()
    return float(error.max()), bool(right)


def _compared(result: Result, batch: int) -> str:
    error = result.row["max_err"]
    text = "not finite" if error is None else f"{error:.1e}"
    notes = [f"{result.num_rows} of {batch} rows"] if result.num_rows < batch else []
    notes += [] if result.right else ["WRONG"]
    return text + (f" ({', '.join(notes)})" if notes else "")


# ---- bench --device sim --------------------------------------------------------------------------

_COLUMNS = (
    ("case", 36),
    ("modelled us", 17),
    ("modelled GB/s", 13),
    ("% of modelled limit", 19),
    ("modelled balance", 16),
    ("workspace bytes", 15),
    ("upstream us", 11),
    ("IFA us", 6),
    ("ATB v1 us", 9),
    ("hazards", 7),
    ("max err", 0),
)


def _join(cells: Sequence[str]) -> str:
    pairs = [(cell, width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)]
    (name, width), *others = pairs
    return " | ".join([f"{name:<{width}}", *(f"{cell:>{wide}}" for cell, wide in others)])


def _line(result: Result, case: Case) -> str:
    row = result.row
    if row["modelled_us"] is None:
        modelled = ["not modelled", "-", "-", "-"]
    else:
        modelled = [
            f"modelled {row['modelled_us']:.1f}",
            f"{row['gbps']:.1f}",
            f"{100 * row['share_of_limit']:.0f}",
            f"{row['balance']:.3f}",
        ]
    published = ["-" if us is None else f"{us:.1f}" for us in row["published"].values()]
    return _join(
        [
            f"{case.name} {case.dtype}",
            *modelled,
            str(row["workspace_bytes"]),
            *published,
            str(row["hazards"]),
            _compared(result, case.batch),
        ]
    )


def _header(arguments: argparse.Namespace) -> str:
    (hbm,) = chip_parameters(arguments.soc, ["hbm"])
    pages = "in random order" if arguments.shuffle else "ascending"
    checker = "on" if arguments.check else "off (hazards: bounds only)"
    return (
        f"suite {arguments.suite}  device sim  soc {arguments.soc}  L2 cold  pages {pages}  "
        f"checker {checker}  pa_hp {__version__}\n"
        "No NPU was used: modelled is not measured. The limit is that of the modelled HBM, "
        f"{1e3 * hbm:.0f} GB/s.\n"
        "upstream, IFA, ATB v1: published times, measured by others on a 910B-class device of 24 "
        "cube cores.\nThey contain the launch, which the model leaves out: about 70 us. ATB v1 is "
        "another run, with a larger launch in small batches.\n"
        + _join([name for name, _ in _COLUMNS])
    )


def bench(arguments: argparse.Namespace) -> int:
    """``bench --device sim``; returns 1 if anything was found or wrong."""
    as_json, good = arguments.json, True
    if not as_json:
        print(_header(arguments), flush=True)
    for number, whole in enumerate(arguments.case, 1):
        case = decode.fit(whole, arguments.small)
        if case != whole:
            text = f"scaled {whole.name} to {case.name}"
            print(text, file=sys.stderr if as_json else sys.stdout)
        harness.progress(f"{number}/{len(arguments.case)} {case.name}")
        check = arguments.check
        result = run(case, arguments.soc, shuffle=arguments.shuffle, check=check, all_rows=check)
        harness.progress("")
        result.row["published"] = suites.published_us(case)
        print(json.dumps(result.row) if as_json else _line(result, case), flush=True)
        for finding in result.report.hazards:
            print(f"{case.name}: {finding.message} (x{finding.count})", file=sys.stderr)
        good &= result.ok
    return 0 if good else 1


# ---- sim decode ----------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sim decode``."""
    size = decode.positive_int
    parser.add_argument("--batch", type=size, required=True, help="sequences")
    parser.add_argument("--heads", type=size, required=True, help="query heads")
    parser.add_argument("--kv-heads", type=size, required=True, help="heads of K and V")
    parser.add_argument("--seq", type=size, required=True, help="tokens of a sequence")
    parser.add_argument("--head-dim", type=size, default=128, help="of Q and K (128)")
    parser.add_argument("--head-dim-v", type=size, help="of V (as --head-dim)")
    parser.add_argument("--block-size", type=size, default=128, help="tokens of a page (128)")
    parser.add_argument(
        "--ragged", action="store_true", help="lengths uniform in 1 to --seq, always the same ones"
    )
    parser.add_argument("--dtype", choices=["fp16", "bf16"], default="fp16", help="(fp16)")
    parser.add_argument("--soc", choices=chip_names(), default=suites.SOC, help=f"({suites.SOC})")
    parser.add_argument("--shuffle", action="store_true", help="pages in random order (ascending)")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look for hazards; without, only bounds are checked (yes)",
    )
    parser.add_argument("--trace", type=Path, help="write a Chrome trace to this file")
    parser.add_argument("--plot", type=Path, help="write a timeline to this PNG")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def command(arguments: argparse.Namespace) -> int:
    """``sim decode``; returns 1 if anything was found or wrong, 2 for wrong arguments."""
    try:
        return _decode(arguments)
    except (ValueError, ImportError, OSError) as error:  # no matplotlib; a file not to be written
        print(f"python -m pa_hp sim decode: {error}", file=sys.stderr)
        return 2


def _case(arguments: argparse.Namespace) -> Case:
    batch, seq, heads, kv_heads = (
        getattr(arguments, name) for name in ("batch", "seq", "heads", "kv_heads")
    )
    generator = torch.Generator().manual_seed(0)
    lens = (seq,) * batch
    if arguments.ragged:
        lens = tuple(torch.randint(1, seq + 1, (batch,), generator=generator).tolist())
    dim, dim_v = arguments.head_dim, arguments.head_dim_v
    name = (
        f"b{batch}_h{heads}kv{kv_heads}_s{'1-' * arguments.ragged}{seq}_d{dim}"
        f"{'' if dim_v is None else f'v{dim_v}'}_bs{arguments.block_size}_{arguments.dtype}"
    )
    case = Case(name, heads, kv_heads, dim, arguments.block_size, lens, arguments.dtype, dim_v)
    pages = sum(-(-length // case.block_size) for length in lens)
    size = pages * case.block_size * case.token_bytes + case.num_bytes - case.kv_bytes
    free = harness.available_bytes()
    if size > free // 4:
        raise ValueError(
            f"expected the tensors to take at most a quarter of the free {free / 1e6:.0f} MB, "
            f"got {size / 1e6:.0f} MB"
        )
    return case


def _decode(arguments: argparse.Namespace) -> int:
    case, soc = _case(arguments), arguments.soc
    result = run(case, soc, shuffle=arguments.shuffle, check=arguments.check, all_rows=True)
    row, report = result.row, result.report
    if arguments.json:
        print(json.dumps(row))
        for finding in report.hazards:
            print(f"{finding.message} (x{finding.count})", file=sys.stderr)
    else:
        (hbm,) = chip_parameters(soc, ["hbm"])
        pages = "in random order" if arguments.shuffle else "ascending"
        print(f"decode {case.name} on the modelled {soc}; pages {pages}; no NPU was used")
        print(report)
        if row["gbps"] is not None:
            print(
                f"Q, K, V and O once: {case.num_bytes / 1e6:.1f} MB, modelled {row['gbps']:.1f} "
                f"GB/s, {row['share_of_limit']:.0%} of the modelled limit of {1e3 * hbm:.0f} GB/s"
            )
        print(f"workspace {row['workspace_bytes']} bytes")
        print(f"max error against float64 {_compared(result, case.batch)}")
    if report.timeline is not None and arguments.trace:
        report.save_trace(arguments.trace)
    if report.timeline is not None and arguments.plot:
        report.plot(arguments.plot)
    return 0 if result.ok else 1
