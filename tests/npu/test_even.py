"""All clusters end at about the same time, however lengths differ: modelled, on a 910B2."""

import random

import pa_hp
import pytest
import torch

BLOCK = 128
DRAW = random.Random(0)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "lengths"),
    [
        pytest.param(8, 1, 128, [1] * 1023 + [12288], id="ones_and_a_long_one"),
        pytest.param(8, 8, 128, [1] * 172 + [1280], id="ones_and_a_long_one_of_8_heads"),
        pytest.param(8, 1, 128, [DRAW.randrange(60) for _ in range(1024)], id="many_short"),
    ],
)
def test_clusters_end_together(heads, kv_heads, dim, lengths):
    pages = [-(-length // BLOCK) for length in lengths]
    table = torch.zeros(len(lengths), max(pages), dtype=torch.int32)
    ids = iter(range(sum(pages)))
    for row, count in enumerate(pages):
        table[row, :count] = torch.tensor([next(ids) for _ in range(count)])
    query = torch.zeros(len(lengths), heads, dim).half()
    cache = torch.zeros(sum(pages), BLOCK, kv_heads, dim).half()
    seq_lens = torch.tensor(lengths, dtype=torch.int32)
    _, report = pa_hp.simulate(query, cache, cache, table, seq_lens, check=False)
    assert report.balance <= 1.05
