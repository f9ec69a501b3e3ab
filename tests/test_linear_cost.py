"""Time grows with the bytes of K and V and with nothing else."""

import pytest
import torch
from pa_hp import build
from pa_hp.bench import harness
from pa_hp.bench.decode import Case, make_inputs

TOLERANCE = 0.1
SECONDS = 60.0
LARGE = 64 << 20  # below this, other cores' caches and the call itself have a part in the time
SHAPES = [(1, 1024 << i) for i in range(8)] + [(1 << i, 512) for i in range(9)]


@pytest.mark.full
def test_cost_is_linear_in_the_bytes(capsys):
    """Time per byte of K and V over that of `read` on the same pages: the machine's moods cancel.

    Every step times all cases, 2.3 GB of them, all decodes behind each other and all reads: so a
    mood meets all of them, and a call finds nothing in the cache that it left there.
    """
    build.load("cpu")
    build.load("bench")
    cases = [Case(f"b{b}_s{s}", 32, 8, 128, 128, (s,) * b, "fp16") for b, s in SHAPES]
    assert sum(case.kv_bytes for case in cases) > 2 * harness.l3_bytes(), "calls would find theirs"
    inputs = {case.name: make_inputs(case, max_layers=1).layer(0) for case in cases}
    calls = {
        **{
            name: lambda _, args=args: torch.ops.pa_hp.decode(*args)
            for name, args in inputs.items()
        },
        **{
            f"{name} read": lambda _, args=args: torch.ops.pa_hp_bench.read(*args[1:])
            for name, args in inputs.items()
        },
    }
    samples = harness.interleave(calls, 1, SECONDS)
    costs = {name: harness.ratio(samples, name, f"{name} read") for name in inputs}
    large = {case.name for case in cases if case.kv_bytes > LARGE}
    median = harness.quantile((costs[name] for name in large), 0.5)
    with capsys.disabled():
        steps = len(samples.times[cases[0].name])
        print(f"\nmedians of {steps} steps{' (noisy)' if samples.noisy else ''}")
        for case in cases:
            us, read_us = (
                1e6 * harness.quantile(samples.times[name], 0.5)
                for name in (case.name, f"{case.name} read")
            )
            note = f"{costs[case.name] / median - 1:+.1%}" if case.name in large else "not judged"
            print(
                f"{case.name:<10} {case.kv_bytes / 1e6:6.1f} MB {us:7.0f} us, "
                f"read {read_us:7.0f} us, ratio {costs[case.name]:.3f}, {note}"
            )
    assert len(large) > 2
    for name in large:
        assert abs(costs[name] / median - 1) <= TOLERANCE, name
