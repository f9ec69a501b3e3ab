"""Modelled on a 910B2: all clusters end together, however lengths differ; loads come early."""

import random

import numpy as np
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
    assert balance(heads, kv_heads, dim, lengths) <= 1.05


# The bar is 1.05: the limits only keep what is not there yet from growing. Constants were fitted to
# the first, and looked at with seeds 2 to 4.
@pytest.mark.full
@pytest.mark.parametrize(
    ("seeds", "most_over", "worst"),
    [([1], 5, 1.07), (range(2, 11), 70, 1.14)],
    ids=["fit", "other"],
)
def test_random_mixtures(seeds, most_over, worst, capsys):
    """At least 512 KV tokens a cluster; docs/kernel.md has the figures that this prints."""
    found = {shape: [] for shape in ((8, 1), (16, 1), (64, 1), (32, 4), (32, 8), (8, 8))}
    for seed in seeds:
        for heads, kv_heads, lengths in mixtures(random.Random(seed), list(found)):
            found[heads, kv_heads].append(balance(heads, kv_heads, 128, lengths))
    with capsys.disabled():
        for (heads, kv_heads), ratios in found.items():
            over = sum(ratio > 1.05 for ratio in ratios)
            figures = f"{over} of {len(ratios)} over 1.05, the worst {max(ratios):.3f}"
            print(f"\nmodelled balance, h{heads}/kv{kv_heads}: {figures}", end="")
    every = [one for drawn in found.values() for one in drawn]
    assert sum(one > 1.05 for one in every) <= most_over and max(every) <= worst


def mixtures(rng, shapes):
    """100 times heads, kv_heads and lengths: short and long ones in any order."""
    drawn = 0
    while drawn < 100:
        heads, kv_heads = rng.choice(shapes)
        few, short = rng.randint(1, 24), rng.choice([1, 16, 33, 65, 129, 256])
        lengths = [rng.randint(1, short) for _ in range(int(2 ** rng.uniform(0, 10)))]
        lengths += [int(2 ** rng.uniform(7, 13)) for _ in range(few)]
        rng.shuffle(lengths)
        if 512 * 24 <= sum(lengths) * kv_heads <= 1 << 18:
            drawn += 1
            yield heads, kv_heads, lengths


def test_values_of_the_only_tile_are_loaded_before_its_weights_are_there():
    timeline = run(8, 1, 128, [2048]).timeline
    names = np.array([builtin for builtin, _ in timeline.labels])[timeline.fields[:, 3]]
    core = timeline.fields[:, 0] == timeline.core_names.index("AIC 5")
    loads = timeline.start[core & (names == "copy_gm_to_cbuf_multi_nd2nz_b16")]
    weights = timeline.start[core & (names == "copy_gm_to_cbuf")]
    assert (loads < weights).sum() == 4  # query, keys, two of three parts of the values
    assert len(loads) == 5 and len(weights) == 1


def balance(heads, kv_heads, dim, lengths):
    """Modelled: the last cube core's end over the mean of all."""
    return run(heads, kv_heads, dim, lengths).balance


def run(heads, kv_heads, dim, lengths):
    pages = [-(-length // BLOCK) for length in lengths]
    table = torch.zeros(len(lengths), max(pages), dtype=torch.int32)
    ids = iter(range(sum(pages)))
    for row, count in enumerate(pages):
        table[row, :count] = torch.tensor([next(ids) for _ in range(count)])
    query = torch.zeros(len(lengths), heads, dim).half()
    cache = torch.zeros(sum(pages), BLOCK, kv_heads, dim).half()
    seq_lens = torch.tensor(lengths, dtype=torch.int32)
    _, report = pa_hp.simulate(query, cache, cache, table, seq_lens, check=False)
    return report
