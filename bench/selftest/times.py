"""Times: kernel and host apart, ours beside the vendor's operators and the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...kernels.sim.report import chip_parameters
from ...ops.simulate import simulate
from .. import decode, harness, npu, suites
from ..decode import Case
from .device import DEVICE, Figures, Skipped, chip, first_line, for_peers, kind, torch_npu, virtual

COLD = 2  # caches are used again when this many times the L2 has passed through it
MAX_LAYERS = 512
MAX_CACHE_BYTES = 4 << 30  # of all layers together, where a few tokens lie in many pages
VIRTUAL_MB = 9  # K and V of a timed case on the virtual NPU, where 1 MB takes 4 ms of simulation


def timed_cases() -> list[Case]:
    """Those with published times, uneven lengths, other shapes; on the virtual NPU small ones."""
    if virtual():
        names = "qwen3-4b_b1_h32kv8_s2048", "mha_b1_h32kv32_s2048", "ragged_b16_h32kv8"
        return [decode.fit(decode.published()[name], VIRTUAL_MB) for name in names]
    known = decode.published().values()
    published = [case for case in known if any(suites.published_us(case).values())]
    more = [*suites.cases("ragged").values(), *suites.cases("wide").values()]
    return [*published, *(case for case in more if case not in published)]


def _percentiles(seconds: Sequence[float], what: str) -> Figures:
    figures: Figures = {
        f"p{round(100 * q)}": 1e6 * harness.quantile(seconds, q) for q in (0.1, 0.5, 0.9, 0.99)
    }
    return {**figures, "unit": "us", "kind": what, "samples": len(seconds)}


def time_host(call: Callable[[int], object], layers: int) -> Figures:
    """The call alone, and what a loop of calls takes on the device; nothing waits in between."""
    for layer in range(min(layers, 3)):
        call(layer)
    torch_npu().npu.synchronize()
    begin, end = (torch_npu().npu.Event(enable_timing=True) for _ in range(2))
    seconds = []
    begin.record()
    for number in range(4 if virtual() else 200):
        start = time.perf_counter()
        call(number % layers)
        seconds.append(time.perf_counter() - start)
    end.record()
    torch_npu().npu.synchronize()
    loop = 1e3 * begin.elapsed_time(end) / len(seconds)
    return {
        "host": _percentiles(seconds, "measured"),
        "loop": {"mean": loop, "unit": "us", "kind": kind()},
    }


def time_kernel(call: Callable[[int], object], layers: int) -> Figures:
    """Calls from a graph, where no host is in the way: a sample is the mean of one replay."""
    calls = 2 if virtual() else max(layers, 20)
    graph = torch_npu().npu.NPUGraph()
    with torch_npu().npu.graph(graph):
        for number in range(calls):
            call(number % layers)
    graph.replay()
    torch_npu().npu.synchronize()
    begin, end = (torch_npu().npu.Event(enable_timing=True) for _ in range(2))
    seconds = []
    for _ in range(2 if virtual() else 30):
        begin.record()
        graph.replay()
        end.record()
        torch_npu().npu.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3 / calls)
    return _percentiles(seconds, kind())


def _layers(case: Case) -> int:
    """Caches to rotate through, so that each is out of the L2 when its turn comes."""
    if virtual():
        return 2  # an event's model starts with a cold L2 whatever ran before
    (l2,) = chip_parameters(chip(), ["l2_size"])
    pages = sum(-(-length // case.block_size) for length in case.seq_lens)
    room = MAX_CACHE_BYTES // (pages * case.block_size * case.token_bytes)
    wanted = math.ceil(COLD * l2 * 2**20 / case.kv_bytes) + 1
    return max(2, min(MAX_LAYERS, room, wanted))


def _copies(inputs: Sequence[Tensor], layers: int) -> list[list[Tensor]]:
    """The same inputs `layers` times, the caches of each in memory of their own."""
    query, key_cache, value_cache, *rest = (tensor.to(DEVICE) for tensor in inputs)
    return [[query, key_cache.clone(), value_cache.clone(), *rest] for _ in range(layers)]


def time_decode(case: Case, shuffle: bool = False, check: bool = True) -> Figures:
    """Kernel and host apart, cold and warm, beside the model; with `check`, of right answers."""
    inputs = decode.make_inputs(case, max_layers=1, shuffle=shuffle).layer(0)
    layers = _copies(inputs, _layers(case))

    def call(layer: int) -> Tensor:
        return torch.ops.pa_hp.decode(*layers[layer])

    rows = torch.cat([decode.checked_rows(case), inputs[4].argmax()[None]]).unique()
    max_error, right = npu.compare(inputs, call(0).cpu(), rows)
    if check and not right:
        raise AssertionError(f"{case.name}: expected an answer within tolerance, got {max_error}")
    cold = time_kernel(call, len(layers))
    (hbm,) = chip_parameters(chip(), ["hbm"])
    us = cold["p50"]
    figures: Figures = {
        "dtype": case.dtype,
        "bytes": case.num_bytes,
        "layers": len(layers),
        "max_error": max_error if math.isfinite(max_error) else None,
        "right": right,
        "kernel_cold": cold,
        "gbps": case.num_bytes / us / 1e3,
        "share_of_hbm_limit": case.num_bytes / us / (hbm * 1e6),
        "published_us": suites.published_us(case),
        **time_host(call, len(layers)),
    }
    if not virtual():
        figures["kernel_warm"] = time_kernel(lambda _: call(0), 1)
    figures["modelled_us"] = None
    try:
        _, report = simulate(*inputs, soc=chip(), check=False)
        figures |= {"modelled_us": report.time_us, "over_modelled": us / report.time_us}
    except Exception as error:  # of whatever kind: the measured times are worth having without
        figures["model_error"] = str(error)
    return figures


def time_peer(case: Case, make: Callable[..., Callable[[], Tensor]]) -> Figures:
    """A vendor's operator on the same inputs, timed the same way."""
    inputs = decode.make_inputs(case, max_layers=1, shuffle=False).layer(0)
    layers = _copies(for_peers(inputs), _layers(case))
    lengths = list(case.seq_lens)
    try:
        calls = [make(layer, lengths, case.head_dim**-0.5) for layer in layers]
        figures = time_host(lambda layer: calls[layer](), len(calls))
    except (RuntimeError, AttributeError, ImportError) as error:
        raise Skipped(f"absent: {first_line(error)}") from error
    if virtual():
        del figures["loop"]
        return {**figures, "kernel_error": "the virtual NPU does not model the vendor's kernels"}
    try:
        figures["kernel_cold"] = time_kernel(lambda layer: calls[layer](), len(calls))
    except RuntimeError as error:
        figures["kernel_error"] = f"not captured: {first_line(error)}"
    return figures
