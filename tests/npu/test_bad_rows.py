"""Rows with a length or a block id out of range: NaN there, and nothing else changes."""

import dataclasses

import pa_hp
import pytest
import torch
from npu.shapes import NpuCase, build, run
from pa_hp.bench.cases import DecodeCase
from pa_hp.bench.checks import bits

HIGHEST, LOWEST = 2**31 - 1, -(2**31)
# Every second row is good; one shape for each way through the kernel.
SHAPES = {
    "gqa": NpuCase("gqa", (), heads=8, kv_heads=2, head_dim=128, block_size=128),
    "mha": NpuCase("mha", (), heads=8, kv_heads=8, head_dim=64, head_dim_v=48, block_size=16),
    "group_64": NpuCase("group_64", (), heads=64, kv_heads=1, head_dim=192, head_dim_v=128),
    "group_1": NpuCase("group_1", (), heads=1, kv_heads=1, block_size=48, pages="in_order"),
    "in_order": NpuCase("in_order", (), heads=16, kv_heads=4, block_size=32, pages="in_order"),
    "backwards": NpuCase("backwards", (), heads=21, kv_heads=3, pages="backwards", soc="910B4"),
}
LENGTHS = {
    "short": (5, 17, 40, 33, 1, 300, 64, 31, 100, 90, 16),
    "cut": (700, 900, 0, 2000, 1, 1500, 64, 800, 513, 640, 255),
    "one": (3000,),
}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.fixture(params=LENGTHS)
def lengths(request):
    return LENGTHS[request.param]


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=str)
def case(shape, lengths, request):
    return dataclasses.replace(shape, lengths=lengths, dtype=request.param)


def assert_only(case: DecodeCase, bad: list[int], got, good) -> None:
    """NaN in the rows `bad`, the bits of `good` in the others."""
    rows = torch.arange(len(case.lengths))
    others = rows[~torch.isin(rows, torch.tensor(bad))]
    for part, right in zip(got, good, strict=True):
        assert part[bad].isnan().all(), case.id
        assert bits(part[others]) == bits(right[others]), case.id


def test_bad_lengths(case):
    inputs = build(case)
    capacity = inputs.block_table.size(1) * case.block_size
    kinds = (-1, capacity + 1, LOWEST, HIGHEST, -case.block_size)
    bad = list(range(len(case.lengths)))[1::2] or [0]
    empty, wrong = inputs.seq_lens.clone(), inputs.seq_lens.clone()
    for i, row in enumerate(bad):
        empty[row], wrong[row] = 0, kinds[i % len(kinds)]
    # Such a row has no work, so the others are shared out as beside an empty one.
    good = run(case, inputs._replace(seq_lens=empty), case.soc)
    assert_only(case, bad, run(case, inputs._replace(seq_lens=wrong), case.soc), good)


@pytest.mark.parametrize("place", ["first", "middle", "last", "all"])
def test_bad_block_ids(case, place):
    inputs = build(case)
    good = run(case, inputs, case.soc)
    num_blocks = inputs.key_cache.size(0)
    kinds = (num_blocks, -1, HIGHEST, LOWEST, num_blocks + 1)
    bad = list(range(len(case.lengths)))[1::2] or [0]
    table = inputs.block_table.clone()
    for i, row in enumerate(bad):
        used = -(-case.lengths[row] // case.block_size)
        spoilt = {"first": 0, "middle": used // 2, "last": used - 1, "all": slice(0, used)}[place]
        table[row, spoilt] = kinds[i % len(kinds)]
    assert_only(case, bad, run(case, inputs._replace(block_table=table), case.soc), good)


def test_full_capacity(case):
    """A length that uses every column of the table is in range."""
    inputs = build(case)
    used = -(-max(case.lengths) // case.block_size)
    table = inputs.block_table[:, :used]
    length = used * case.block_size
    row = case.lengths.index(max(case.lengths))
    lengths = inputs.seq_lens.clone()
    lengths[row] = length
    for cache in (inputs.key_cache, inputs.value_cache):
        block = cache[int(table[row, -1])]  # its dead slots live now
        block.copy_(block.nan_to_num(0.5))
    exact = inputs._replace(block_table=table, seq_lens=lengths)
    for part in run(case, exact, case.soc):
        assert not part.isnan().any()
    lengths[row] = length + 1
    for part in run(case, exact, case.soc):
        assert part[row].isnan().all()


def test_nothing_but_bad_rows():
    case = NpuCase("all_bad", (40, 3, 300), torch.float16, heads=12, kv_heads=4)
    inputs = build(case)
    for spoilt in (
        inputs._replace(seq_lens=torch.tensor([-1, HIGHEST, LOWEST], dtype=torch.int32)),
        inputs._replace(block_table=torch.full_like(inputs.block_table, -1)),
    ):
        out, lse = run(case, spoilt)
        assert out.isnan().all() and lse.isnan().all()


def test_scores_of_minus_infinity_weigh_nothing():
    generator = torch.Generator().manual_seed(0)
    query = torch.full((2, 1, 16), 0.5).half()
    cache = torch.randn(2, 38, 16, 1, 16, generator=generator).half()
    cache[0, :16] = -torch.inf  # keys of the first row's first 256 of 300 tokens
    cache[0, 19:] = -torch.inf  # and of all of the second row's
    table = torch.arange(38, dtype=torch.int32).view(2, 19)
    lengths = torch.tensor([300, 300], dtype=torch.int32)
    lse = torch.empty(2, 1)
    inputs = (query, *cache, table, lengths)
    out, report = pa_hp.simulate(*inputs, lse=lse, timed=False)
    want, want_lse = pa_hp.reference(*inputs)
    assert not report.hazards
    assert (out[0].double() - want[0]).abs().max() < 1e-3
    assert (lse[0].double() - want_lse[0]).abs().max() < 1e-4
    assert out[1].isnan().all() and lse[1] == -torch.inf
