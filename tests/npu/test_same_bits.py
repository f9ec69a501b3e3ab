"""The same bits in any workspace and whatever lies in the cache. (Schedules: test_clean.py.)"""

import pytest
import torch
from npu.shapes import RAGGED, VARIED, NpuCase, build, run
from pa_hp.bench.cases import live_slots
from pa_hp.bench.checks import bits
from pa_hp.kernels.sim.report import chip_parameters
from pa_hp.tiling import plan


def both(case: NpuCase, **options) -> tuple[bytes, bytes]:
    out, lse = run(case, build(case), case.soc, **options)
    return bits(out), bits(lse)


def workspace_bytes(case: NpuCase) -> int:
    (clusters,) = map(int, chip_parameters(case.soc, ["cube_cores"]))
    return plan.workspace_bytes(case.value_dim, clusters)


def test_one_workspace_for_all_shapes():
    """It is never cleared; NaN at first, then whatever the shapes before have left."""
    want = [both(case) for case in VARIED]
    size = max(workspace_bytes(case) for case in VARIED)
    workspace = torch.full((size,), 0xFF, dtype=torch.uint8)
    for order in (range(len(VARIED)), reversed(range(len(VARIED))), (3, 0, 3, 3, 7, 0, 5, 9, 1)):
        for i in order:
            assert both(VARIED[i], workspace=workspace) == want[i], VARIED[i].id


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0xFF])
def test_contents_of_the_workspace_do_not_change_bits(byte):
    for case in VARIED[:4]:
        workspace = torch.full((workspace_bytes(case),), byte, dtype=torch.uint8)
        assert both(case, workspace=workspace) == both(case), case.id


def test_dead_slots_do_not_change_bits():
    case = VARIED[7]
    inputs = build(case)
    want = both(case)
    dead = ~live_slots(inputs)
    assert dead.any()
    for filler in (0.0, 1e4, torch.inf, -torch.inf):
        inputs.key_cache[dead] = filler
        inputs.value_cache[dead] = filler
        assert tuple(map(bits, run(case, inputs))) == want, filler


def test_places_of_blocks_do_not_change_bits():
    """Blocks that lie behind each other are loaded at once; that does not show."""
    base = NpuCase("places", RAGGED, torch.float16, heads=12, kv_heads=3, head_dim=128)
    inputs = build(base)
    want = tuple(map(bits, run(base, inputs)))
    num_blocks = inputs.key_cache.size(0)
    ids = torch.arange(num_blocks)
    shuffled = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1))
    for place in (ids, ids.flip(0), shuffled):  # of the old block i
        moved = [torch.empty_like(cache) for cache in inputs[1:3]]
        for new, old in zip(moved, inputs[1:3], strict=True):
            new[place] = old
        table = inputs.block_table.clone()
        used = table < num_blocks
        table[used] = place[table[used].long()].int()
        got = run(base, inputs._replace(
            key_cache=moved[0], value_cache=moved[1], block_table=table))  # fmt: skip
        assert tuple(map(bits, got)) == want
