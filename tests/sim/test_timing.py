"""Modelled times of small kernels against values derived by hand from the table of chips."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pa_hp import sim
from pa_hp.kernels.sim import report as report_module
from pa_hp.kernels.sim import toolchain

HERE = Path(__file__).parent
TABLE = json.loads((HERE.parents[1] / "kernels/sim/chips.json").read_text())
TILE = 16384
SOC = "910B1"
LOAD, STORE, COPY, COPY_DOUBLE, SPARSE, SCALAR_WAITS, UNEVEN = range(7)
TRANSFER = 30  # cycles that every transfer between GM and UB takes besides its traffic (move.cpp)


def chip(name, soc=SOC):
    return (TABLE[soc].get(name) or TABLE["all"][name])["value"]


CLOCK = chip("clock") * 1e3  # cycles a us
HIT = TILE / chip("gm_to_ub_l2")
MISS = TILE / chip("gm_to_ub_hbm")
OUT = TILE / chip("ub_to_gm")


@pytest.fixture(scope="module")
def kernel():
    return sim.Kernel(HERE / "timing.cce", "timing", cores="aiv")


@pytest.fixture
def launch(kernel):
    def run(mode, tiles, block_dim=1, soc=SOC, **options):
        x = torch.zeros(block_dim * tiles * TILE, dtype=torch.uint8)
        y = torch.zeros_like(x)
        report = kernel.launch(block_dim, x, y, mode, tiles, soc=soc, check=False, **options)
        assert not report.hazards, report.hazards
        return report

    return run


@pytest.fixture
def small_l2(monkeypatch):
    """An L2 of 1 MiB: the same behaviour with less to move."""
    monkeypatch.setitem(report_module._chip_tables()[SOC]["l2_size"], "value", 1)


# ---- The table --------------------------------------------------------------------------------


def test_every_number_names_its_source():
    sources = ("CANN 8.1.RC1 ", "ini ", "pto-isa ", "Ascend C ", "24 cores x ", "assumed", "fitted")
    for group, entries in TABLE.items():
        for name, entry in entries.items():
            assert set(entry) == {"value", "unit", "source"}, (group, name)
            assert entry["value"] > 0
            assert entry["unit"]
            assert entry["source"].startswith(sources), (group, name)


def test_the_table_is_what_the_pass_takes():
    names = set(toolchain.runtime().pa_sim_parameters().decode().split(","))
    assert sim.chip_names() == ["910B1", "910B2", "910B3", "910B4"]
    for soc in sim.chip_names():
        assert set(TABLE["all"]) | set(TABLE[soc]) == names
        assert not set(TABLE["all"]) & set(TABLE[soc])


def test_unknown_chip(kernel):
    x = torch.zeros(TILE, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"expected soc to be one of 910B1, .* got '910A'"):
        kernel.launch(1, x, x, LOAD, 1, soc="910A")


# ---- One core ---------------------------------------------------------------------------------


def test_a_load_that_misses_the_l2(launch):
    report = launch(LOAD, 1)
    cycles = chip("issue") + TRANSFER + MISS + chip("l2_miss_latency")
    assert report.time_us * CLOCK == pytest.approx(cycles)
    assert report.bytes["hbm_read"] == report.bytes["gm_read"] == TILE


def test_a_load_that_hits_the_l2(launch):
    report = launch(LOAD, 1, warm=True)
    cycles = chip("issue") + TRANSFER + HIT + chip("l2_hit_latency")
    assert report.time_us * CLOCK == pytest.approx(cycles)
    assert report.bytes["hbm_read"] == 0
    assert report.bytes["l2_read"] == TILE


def test_loads_in_a_row_pay_the_latency_once(launch):
    cycles = chip("issue") + 10 * (TRANSFER + MISS) + chip("l2_miss_latency")
    assert launch(LOAD, 10).time_us * CLOCK == pytest.approx(cycles)


def test_two_buffers_against_one(launch):
    tiles = 20
    # One buffer: a tile is loaded, then stored. Two: a ring of that length holds two tiles, unless
    # the slower pipe is the limit.
    ring = 2 * TRANSFER + MISS + OUT + chip("l2_miss_latency") + chip("l2_hit_latency")
    one = launch(COPY, tiles).time_us * CLOCK / tiles
    two = launch(COPY_DOUBLE, tiles).time_us * CLOCK / tiles
    assert ring < one < ring * 1.05
    assert max(ring / 2, TRANSFER + MISS) < two < ring / 2 * 1.1


def test_scalar_waits_are_paid_every_time(launch):
    report = launch(SCALAR_WAITS, 10)
    tile = TRANSFER + MISS + chip("l2_miss_latency")
    assert 10 * tile < report.time_us * CLOCK < 10 * (tile + 10)
    stalls = report.stalls["AIV 0.0"]["S"]
    assert stalls["flag from MTE2"] == pytest.approx(stalls["barrier of all pipes"], rel=0.01)


def test_small_bursts_cost_more_than_their_bytes(launch):
    report = launch(SPARSE, 1)
    # 32-byte bursts, 64 bytes apart: each takes a burst unit, and the lines hold twice the bytes.
    assert report.bytes["gm_read"] == TILE / 2
    assert report.bytes["l2_read"] == TILE / 64 * chip("burst_unit")
    assert report.bytes["hbm_read"] == TILE
    assert report.time_us == pytest.approx(launch(LOAD, 1).time_us)


# ---- Shared memory ----------------------------------------------------------------------------


def test_two_cores_leave_each_other_alone_and_all_share_hbm(launch):
    one, two, all_cores = (launch(LOAD, 8, block_dim=n) for n in (1, 2, 48))
    assert two.time_us == pytest.approx(one.time_us)
    floor = 48 * 8 * TILE / (chip("hbm") * 1e6)
    assert floor < all_cores.time_us < floor * 1.05 + one.time_us / 8
    assert all_cores.time_us > 2 * one.time_us
    waiting = sum(core["MTE2"]["bandwidth"] for core in all_cores.stalls.values())
    assert waiting > 0.4 * 48 * all_cores.time_us


def test_all_cores_share_the_l2(launch):
    warm = launch(LOAD, 8, block_dim=48, warm=True)
    assert warm.time_us > 48 * 8 * TILE / (chip("l2") * 1e6)
    assert warm.time_us < launch(LOAD, 8, block_dim=48).time_us / 3


@pytest.mark.parametrize(("tiles", "again"), [(60, 0), (128, 128)])
def test_what_fits_the_l2_is_not_read_again(launch, small_l2, tiles, again):
    """1 MiB holds 64 tiles; of a longer ring the least recently used are always the next ones."""
    report = launch(LOAD, tiles, warm=True)
    assert report.bytes["gm_read"] == tiles * TILE
    assert report.bytes["hbm_read"] == again * TILE


def test_stores_reach_hbm_when_they_are_pushed_out(launch, small_l2):
    report = launch(STORE, 128)
    assert report.bytes["l2_write"] == report.bytes["gm_write"] == 128 * TILE
    assert report.bytes["hbm_write"] == 64 * TILE
    assert report.bytes["hbm_read"] == TILE  # the tile that is stored; no store reads its line


# ---- Chips, blocks ----------------------------------------------------------------------------


def test_chips_differ_by_clock_and_memory(launch):
    alone = {soc: launch(LOAD, 8, soc=soc).time_us for soc in sim.chip_names()}
    assert alone["910B2"] == pytest.approx(alone["910B1"] * 1.85 / 1.8)
    assert alone["910B3"] == pytest.approx(alone["910B2"])
    assert alone["910B4"] == pytest.approx(alone["910B1"] * 1.85 / 1.5)
    full = {soc: launch(LOAD, 8, block_dim=40, soc=soc).time_us for soc in sim.chip_names()}
    assert full["910B4"] > 1.9 * full["910B1"]


def test_more_blocks_than_cores_run_one_after_the_other(launch):
    once, twice = (launch(LOAD, 4, block_dim=n) for n in (48, 96))
    assert twice.time_us == pytest.approx(2 * once.time_us, rel=0.1)
    assert twice.stalls["AIV 48.0"]["MTE2"]["earlier blocks"] > 0


def test_balance_is_slowest_over_mean(launch):
    assert launch(LOAD, 8, block_dim=4).balance == pytest.approx(1.0)
    assert launch(UNEVEN, 64, block_dim=4).balance == pytest.approx(4.0, rel=0.01)


# ---- The whole picture ------------------------------------------------------------------------


def mixed():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(64, 128, generator=generator).half()
    k = torch.randn(7 * 128, 128, generator=generator).half()
    out = torch.zeros(7, 64, 128, dtype=torch.float16)
    workspace = torch.zeros(2, 2, 64, 128)
    return [q, k, out, workspace, 128**-0.5, 7]


@pytest.fixture(scope="module")
def score_exp():
    return sim.Kernel(HERE / "kernels/score_exp.cce", "score_exp")


@pytest.fixture(scope="module")
def report(score_exp):
    return score_exp.launch(2, *mixed(), soc=SOC)


def test_a_pipe_works_on_one_thing_at_a_time_and_in_order(report):
    timeline = report.timeline
    for core in range(len(timeline.core_names)):
        for pipe in range(7):
            mine = (timeline.fields[:, 0] == core) & (timeline.fields[:, 1] == pipe)
            start, end = timeline.start[mine], timeline.end[mine]
            assert (end >= start).all()
            assert (start[1:] >= end[:-1]).all()
    assert timeline.end.max() <= report.time_us


def test_waits_end_after_what_they_wait_for(report):
    timeline = report.timeline
    source, wait = timeline.edges.T
    assert (timeline.end[wait] > timeline.start[source]).all()
    across = timeline.fields[source, 0] != timeline.fields[wait, 0]
    assert across.sum() > 20
    delay = (timeline.end[wait] - timeline.end[source])[across] * CLOCK
    assert delay.min() >= chip("signal") - 1e-6


def test_busy_and_stalls_add_up_to_all_of_the_time(report):
    for core, pipes in report.busy.items():
        for pipe, share in pipes.items():
            stalls = report.stalls[core][pipe].values()
            assert min(stalls) > 0
            total = share * report.time_us + sum(stalls)
            assert total == pytest.approx(report.time_us), (core, pipe)


def test_the_critical_path_is_all_of_the_time(report):
    shares = [part["share"] for part in report.critical_path]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert sum(part["us"] for part in report.critical_path) == pytest.approx(report.time_us)
    assert any(part["builtin"] == "cross-core signal" for part in report.critical_path)


def test_equal_launches_take_equal_time(score_exp, report):
    for seed in (0, 5):
        again = score_exp.launch(2, *mixed(), soc=SOC, schedule_seed=seed)
        assert again.time_us == report.time_us
        assert again.critical_path == report.critical_path
        assert again.stalls == report.stalls
        assert np.array_equal(again.timeline.start, report.timeline.start)
        assert np.array_equal(again.timeline.end, report.timeline.end)
