"""The NPU kernel is clean under every schedule, and its bits do not depend on it."""

import pytest
from npu.shapes import VARIED, build, run
from pa_hp.bench.checks import bits

FEW = [(1, False), (2, True), (3, False), (0, True)]
MANY = [(seed, latest) for seed in range(20) for latest in (False, True)]


def check(case, schedules) -> None:
    inputs = build(case)
    want = [bits(part) for part in run(case, inputs, case.soc)]
    for seed, latest in schedules:
        got = run(case, inputs, case.soc, schedule_seed=seed, latest=latest)  # sees no finding
        assert [bits(part) for part in got] == want, (seed, latest)


@pytest.mark.parametrize("case", VARIED, ids=lambda case: case.id)
def test_a_few_schedules(case):
    check(case, FEW)


@pytest.mark.full
@pytest.mark.parametrize("case", VARIED, ids=lambda case: case.id)
def test_many_schedules(case):
    check(case, MANY)
