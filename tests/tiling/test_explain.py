"""What explain() says about a decode, in text and as a picture."""

import builtins
import doctest
import re
import sys

import numpy as np
import pa_hp
import pytest
import torch
from pa_hp.tiling import explain
from pa_hp.tiling.plan import plan

LENGTHS = [4000, 0, 17, -3, 1, 2048, 5000, 0, *[1000] * 8]


@pytest.fixture(scope="module")
def explanation(make_desc):
    return explain(make_desc(), LENGTHS)


def test_text_says_what_was_chosen_and_what_comes_next(explanation, make_desc):
    text, p = str(explanation), plan(make_desc())
    assert text.startswith("bfloat16, batch 16, 32 query heads on 8 kv heads, head_dim 128,\n")
    (chosen,) = re.findall(r"  chosen +(\d+) kv heads x +(\d+) tokens, loaded +(\d+) at", text)
    assert [int(n) for n in chosen] == [p.tile_heads, p.tile_tokens, p.chunk_tokens]
    assert "tiles: modelled cycles for a token of a kv head" in text
    slower = [float(share) for share in re.findall(r"  next .*\+([\d.]+)%", text)]
    assert len(slower) == 3
    assert slower == sorted(slower)
    cycles = [cost for _, cost in explanation.candidates]
    assert cycles == sorted(cycles)


def test_text_has_every_buffer_with_its_share(explanation):
    lines = str(explanation).splitlines()
    for memory in explanation.memories:
        head = next(i for i, line in enumerate(lines) if line.startswith(f"{memory.name}, "))
        used = 0.0
        for line, buffer in zip(lines[head + 1 :], memory.buffers, strict=False):
            assert re.match(rf" +{buffer.offset} {buffer.name} ", line)
            used += float(line.split()[-1].removesuffix("%"))
        assert lines[head].endswith("% used")
        assert used == pytest.approx(float(lines[head].split()[-2].removesuffix("%")), abs=0.5)


def test_buffers_are_the_plans(explanation):
    memories = {memory.name: memory for memory in explanation.memories}
    sizes = {"L1": 512, "L0A": 64, "L0B": 64, "L0C": 128, "UB": 192}
    assert {name: memories[name].bytes >> 10 for name in sizes} == sizes
    for memory in memories.values():
        at = 0
        for buffer in memory.buffers:
            assert buffer.offset >= at
            at = buffer.offset + buffer.copies * buffer.bytes
        assert at <= memory.bytes
    p = explanation.plan
    assert [b.offset for b in memories["UB"].buffers] == [
        p.ub_scores, p.ub_weights, p.ub_output, p.ub_acc, p.ub_fold, p.ub_result, p.ub_stats,
        p.ub_merge_weights, p.ub_merge,
    ]  # fmt: skip
    (workspace,) = (m for name, m in memories.items() if name.startswith("workspace"))
    assert workspace.bytes == p.ws_bytes
    assert f"of 24 clusters: {24 * p.ws_bytes / 1024:.1f} KiB" in str(explanation)


def test_text_has_the_partition(explanation):
    text, groups = str(explanation), explanation.plan.head_groups
    total = groups * (4000 + 17 + 1 + 2048 + 8000)
    assert explanation.tokens.shape == (24,)
    assert explanation.tokens.sum() == total
    assert f"12 sequences of 1 to 4000 tokens, mean {total / groups / 12:.1f}:" in text
    assert f"{12 * groups} items" in text
    assert "lengths of 0: 2, rows become zeros; out of range: 2, rows become NaN" in text
    tokens = explanation.tokens
    assert f"min {tokens.min()}, mean {total / 24:.1f}, max {tokens.max()}" in text
    assert "clusters without work: 0 of 24" in text
    pieces = explanation.partition.pieces
    assert f"{len(pieces)} pieces in " in text
    parts = len(pieces) - 12 * groups
    cut = len({(p["seq"], p["head_group"]) for p in pieces[pieces["begin"] > 0]})
    merged = "merged by all clusters that have any"
    assert f"items cut: {cut}, with {parts} parts behind the first; {merged}" in text


def test_text_of_little_work(make_desc):
    desc = make_desc(batch=2, heads=8, kv_heads=1)
    text = str(explain(desc, [0, 10]))
    assert "clusters without work: 23 of 24" in text
    assert "1 sequences of 10 to 10 tokens" in text
    assert text.endswith("items cut: 0, with 0 parts behind the first")
    text = str(explain(desc, [0, 0]))
    assert "clusters without work: 24 of 24" in text
    assert "0 pieces in 0 tiles" in text


def test_head_dims_that_differ(make_desc):
    text = str(explain(make_desc(head_dim=192, head_dim_v=128), LENGTHS))
    assert "head_dim 192 and 128 of V" in text


def test_tensors_and_arrays_are_lists(explanation, make_desc):
    for lengths in (np.array(LENGTHS, np.int32), torch.tensor(LENGTHS, dtype=torch.int32)):
        assert str(explain(make_desc(), lengths)) == str(explanation)


def test_example():
    module = sys.modules["pa_hp.tiling.explain"]
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
    assert pa_hp.tiling.explain is module.explain


def test_import_of_the_package_imports_no_tiling(python):
    code = """
        import sys, pa_hp
        assert "pa_hp.tiling" not in sys.modules
        pa_hp.tiling.explain
        assert "matplotlib" not in sys.modules
    """
    python("-c", code)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1] * 15, r"expected seq_lens to be integers of shape \[16\], got int64 of shape \[15\]"),
        ([0.5] * 16, "expected seq_lens to be integers of shape .*, got float64"),
    ],
)
def test_bad_lengths(lengths, message, make_desc):
    with pytest.raises(ValueError, match=f"^pa_hp.tiling: {message}"):
        explain(make_desc(), lengths)


def test_bad_desc(make_desc):
    with pytest.raises(TypeError, match=r"^pa_hp.tiling: expected desc to be a DecodeDesc, got D"):
        explain(plan(make_desc()), LENGTHS)
    with pytest.raises(ValueError, match=r"^pa_hp.tiling: expected heads to be 1 to 64"):
        explain(make_desc(heads=65, kv_heads=1), LENGTHS)


# ---- Picture ------------------------------------------------------------------------------------


def test_plot(explanation, make_desc, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "picture"
    explanation.plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = image.imread(path, format="png")
    assert pixels.shape[1] > 1000
    palette = {tuple(pixel) for pixel in pixels[::2, ::2, :3].reshape(-1, 3).tolist()}
    assert len(palette) > 10  # a colour a sequence
    explain(make_desc(batch=300), [100] * 300).plot(str(path))  # more than there are colours
    explain(make_desc(batch=1, clusters=1), [0]).plot(path)
    assert image.imread(path, format="png").shape[0] < pixels.shape[0]


def test_plot_without_matplotlib(explanation, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    match = r"^pa_hp.tiling: Explanation.plot needs matplotlib; pip install 'pa_hp\[plot\]'"
    with pytest.raises(ImportError, match=match):
        explanation.plot(tmp_path / "x.png")
