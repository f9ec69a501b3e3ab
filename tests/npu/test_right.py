"""The NPU kernel on the modelled chip: the reference's answers, and no check finds anything."""

import re

import pa_hp
import pytest
import torch
from npu.shapes import AXES, NpuCase, build, crossed, pairwise, run
from pa_hp.bench.cases import DTYPES, IMPOSSIBLE_ID, DecodeCase, Inputs, make
from pa_hp.bench.checks import bits, check_against_peer, check_lse, check_out
from pa_hp.bench.tolerance import out_limits

HALVES = DTYPES[:2]
FEW = 64  # elements of `out`: the largest of fewer errors, ours or PyTorch's, is luck


def check(case: DecodeCase, inputs: Inputs, **options) -> None:
    want, want_lse = pa_hp.reference(*inputs, scale=case.scale)
    assert want.isfinite().all(), "the reference itself met a poisoned slot"
    out, lse = run(case, inputs, **options)
    check_out(case, inputs, out, want, weights_dtype=case.dtype)
    check_lse(case, inputs, lse, want_lse)
    if out.numel() >= FEW:
        check_against_peer(case, inputs, out, want)


@pytest.mark.parametrize("case", pairwise(), ids=lambda case: case.id)
def test_matches_reference(case):
    check(case, build(case), soc=case.soc)


@pytest.mark.full
@pytest.mark.parametrize("block_size", AXES["block_size"])
@pytest.mark.parametrize("dims", AXES["dims"], ids=lambda dims: f"{dims[0]}_{dims[1]}")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_full_cross(dtype, dims, block_size):
    for case in crossed(3, dtype=dtype, dims=dims, block_size=block_size):
        check(case, build(case), soc=case.soc)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dim", range(16, 257, 16))
def test_every_head_dim(dtype, dim):
    """Each multiple of 16 as head_dim, with another as head_dim_v."""
    case = DecodeCase(
        "head_dim", (1, 300), dtype, heads=6, head_dim=dim, head_dim_v=272 - dim, block_size=48
    )
    check(case, make(case))


def test_every_group():
    for group in range(1, 65):
        dtype = HALVES[group % 2]
        case = DecodeCase(f"group_{group}", (130,), dtype, heads=group, kv_heads=1, head_dim=32)
        check(case, make(case))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "lengths",
    [(), (0,), (0, 0, 0), (1,), tuple(i * 37 % 50 for i in range(300)), (20000,)],
    ids=len,
)
def test_batches(lengths, dtype):
    """None, nothing but empty rows, many more rows than cores, one row on all clusters."""
    case = DecodeCase("batch", lengths, dtype, block_size=128)
    check(case, make(case))


def spaced(tensor: torch.Tensor, **strides: int) -> torch.Tensor:
    """The same values with other strides; NaN in between."""
    names = ("block", "token", "head", "lane") if tensor.dim() == 4 else ("batch", "head", "lane")
    steps = list(tensor.stride())
    for name, step in strides.items():
        steps[names.index(name)] = step
    room = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, steps, strict=True))
    view = tensor.new_full((room,), torch.nan).as_strided(tensor.shape, steps)
    return view.copy_(tensor)


@pytest.mark.parametrize("far", [65535, 65536, 70001, 131072])
@pytest.mark.parametrize("axis", ["token", "head", "query", "both"])
def test_far_strides(axis, far):
    """Strides that the loads' 16 bits do not hold, and the last ones that they do."""
    case = DecodeCase(f"far_{axis}_{far}", (0, 1, 17, 35), torch.float16, heads=9, kv_heads=3)
    inputs = make(case)
    query, key_cache, value_cache, *rest = inputs
    if axis == "token":
        key_cache = spaced(key_cache, token=far, block=16 * far)
        value_cache = spaced(value_cache, token=far, block=16 * far)
    elif axis == "head":
        key_cache = spaced(key_cache, head=far, token=64, block=3 * far)
        value_cache = spaced(value_cache, head=far, token=64, block=3 * far)
    elif axis == "both":
        key_cache = spaced(key_cache, head=16 * far, token=far, block=48 * far)
    else:
        query = spaced(query, head=far, batch=9 * far)
    check(case, Inputs(query, key_cache, value_cache, *rest))


def test_value_is_a_part_of_the_key():
    """Latent attention keeps one cache: its values are the first lanes of its keys."""
    case = DecodeCase(
        "shared", (700, 33), torch.bfloat16, heads=16, kv_heads=1, head_dim=192, head_dim_v=128
    )
    inputs = make(case)
    check(case, inputs._replace(value_cache=inputs.key_cache[..., :128]))


def test_kv_heads_that_are_one():
    """A stride of 0: a cache of one kv head, expanded to several."""
    case = DecodeCase("expanded", (700, 33, 16), torch.float16, heads=12, kv_heads=3, head_dim=48)
    inputs = make(case)
    caches = {
        name: getattr(inputs, name)[:, :, :1].expand(-1, -1, 3, -1)
        for name in ("key_cache", "value_cache")
    }
    check(case, inputs._replace(**caches))


def test_no_blocks():
    """No block and no column: right as long as every length is 0."""
    cache = torch.empty(0, 16, 2, 64, dtype=torch.float16)
    query = torch.randn(3, 4, 64).half()
    empty = torch.zeros(3, dtype=torch.int32)
    case = DecodeCase("no_blocks", (), torch.float16)
    for columns in (0, 2):
        table = torch.zeros(3, columns, dtype=torch.int32)
        out, lse = run(case, Inputs(query, cache, cache, table, empty))
        assert (out == 0).all() and (lse == -torch.inf).all()
        out, lse = run(case, Inputs(query, cache, cache, table, empty + 1))
        assert out.isnan().all() and lse.isnan().all()


def test_table_with_spare_columns():
    """A table cut out of a wider one, as a runtime that allots for the longest sequence has it."""
    case = DecodeCase("wide_table", (700, 33, 0, 5), torch.float16, head_dim=128)
    inputs = make(case)
    columns = inputs.block_table.size(1)
    wide = torch.full((4, columns + 7), IMPOSSIBLE_ID, dtype=torch.int32)
    wide[:, 3 : 3 + columns] = inputs.block_table
    check(case, inputs._replace(block_table=wide[:, 3 : 3 + columns]))


BIG = 2**31  # elements: offsets from here on need 64 bits


@pytest.fixture
def sparse(tmp_path):
    """Storage of any size that takes memory only where it is written; the rest reads as zeros."""

    def storage(size: int) -> torch.Tensor:
        path = tmp_path / "cache"
        tensor = torch.from_file(str(path), shared=True, size=size, dtype=torch.float16)
        path.unlink()
        return tensor

    return storage


@pytest.mark.parametrize("axis", ["block", "token", "head"])
def test_offsets_of_64_bits(axis, sparse):
    case = DecodeCase("far", (300, 17), torch.float16, kv_heads=4, heads=8, head_dim=128)
    inputs = make(case)
    heads, dim = inputs.key_cache.shape[2:]
    plain = inputs.key_cache.stride()
    strides = {
        "block": (BIG // 8 + 1024, *plain[1:]),
        "token": (dim * heads, BIG // 8 + 4096, dim, 1),
        "head": (*plain[:2], BIG // 2 + 1024, 1),
    }[axis]
    where = torch.tensor(strides) * (torch.tensor(inputs.key_cache.shape) - 1)
    last = int(where.sum())
    assert last > BIG
    caches = []
    for cache in inputs[1:3]:
        caches.append(sparse(last + 1).as_strided(cache.shape, strides).copy_(cache))
    check(case, inputs._replace(key_cache=caches[0], value_cache=caches[1]))


def test_cache_of_many_blocks(sparse):
    """kv_cache[num_blocks, 2, ...] of 2^32 elements and more, as a device's memory holds it."""
    case = DecodeCase(
        "big", (640, 129, 1), torch.float16, heads=16, kv_heads=8, head_dim=128, block_size=128
    )
    inputs = make(case)
    shape = (2 * BIG // (2 * 128 * 8 * 128) + 9, 2, *inputs.key_cache.shape[1:])
    both = sparse(torch.Size(shape).numel()).view(shape)
    ids = torch.tensor([0, 8191, 8192, 8193, 16383, 16384, 16392, 5], dtype=torch.int32)
    table = inputs.block_table.clone()
    for row, count in ((0, 5), (1, 2), (2, 1)):
        old, new = table[row, :count].long(), ids[[0, 5, 7][row] :][:count]
        both[new.long(), 0], both[new.long(), 1] = inputs.key_cache[old], inputs.value_cache[old]
        table[row, :count] = new
    big = inputs._replace(key_cache=both[:, 0], value_cache=both[:, 1], block_table=table)
    check(case, big)
    # Which ids the blocks have shows in no bit.
    assert [bits(part) for part in run(case, big)] == [bits(part) for part in run(case, inputs)]


def test_one_token_copies_the_value():
    for dtype in HALVES:
        case = DecodeCase("one", (1,), dtype, heads=8, kv_heads=1)
        inputs = make(case)
        value = inputs.value_cache[inputs.block_table[0, 0], 0]
        assert bits(run(case, inputs)[0][0]) == bits(value.expand(8, -1))


def test_empty_rows_are_zero():
    case = DecodeCase("empty", (0, 40, 0), torch.float16)
    out, lse = run(case, make(case))
    assert bits(out[[0, 2]]) == bits(torch.zeros_like(out[[0, 2]]))  # +0.0, not -0.0
    assert (lse[[0, 2]] == -torch.inf).all()


def test_lse_is_optional():
    case = NpuCase("no_lse", (5000, 3, 0, 40), torch.bfloat16, heads=12, kv_heads=3)
    inputs = build(case)
    out, report = pa_hp.simulate(*inputs, timed=False, strict_visibility=True)
    assert report.hazards == []
    assert bits(out) == bits(run(case, inputs)[0])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_tolerance_notices(dtype):
    """The limits with rounded weights are still tight enough to see the mistakes of kernels."""
    case = DecodeCase("spoilt", (300,), dtype, heads=4, kv_heads=1)
    inputs = make(case)
    want = pa_hp.reference(*inputs)[0]
    key, value = (cache[inputs.block_table[0, :19].long()] for cache in inputs[1:3])
    key, value = (part.flatten(0, 1)[:300, 0].double() for part in (key, value))
    scores = inputs.query[0].double() @ key.T * case.head_dim**-0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()

    def answer(weights, rounded):
        return (rounded.double() @ value / weights.sum(-1, keepdim=True))[None].to(dtype)

    check_out(case, inputs, answer(weights, weights.to(dtype)), want, weights_dtype=dtype)
    mantissa, exponent = torch.frexp(weights)
    unit = 2 * torch.finfo(dtype).eps  # two bits less than the dtype has
    coarse = torch.ldexp((mantissa / unit).round() * unit, exponent)
    late = weights.clone()
    late[:, :256] *= 1 + 20 * torch.finfo(dtype).eps  # the first tile decays wrongly
    spoilt = {
        "coarse weights": answer(weights, coarse),
        "decay": answer(late, late),
        "token missing": pa_hp.reference(*inputs._replace(seq_lens=inputs.seq_lens - 1))[0],
        "heads swapped": want.flip(1),
    }
    for name, got in spoilt.items():
        with pytest.raises(AssertionError, match=r"times the tolerance|1 - cos"):
            check_out(case, inputs, got.to(dtype), want, weights_dtype=dtype)
            pytest.fail(name)


def test_weights_loosen_nothing_else():
    for dtype in HALVES:
        narrow = out_limits(dtype, 128, 256)
        assert out_limits(dtype, 128, 256, weights_dtype=torch.float32) == narrow
        atol, rtol = out_limits(dtype, 128, 256, weights_dtype=dtype)
        assert rtol == narrow[1] and narrow[0] < atol
        assert out_limits(dtype, 128, 1, weights_dtype=dtype) == out_limits(dtype, 128, 1)


def test_examples_of_tolerances():
    text = (pa_hp.build.ROOT / "docs" / "numerics.md").read_text()
    table = re.findall(r"^\| (\d+) tokens? \| (.*) \|$", text, re.M)
    assert len(table) == 4
    for length, cells in table:
        figures = [out_limits(dtype, 128, int(length), weights_dtype=dtype)[0] for dtype in HALVES]
        assert cells.split(" | ") == [f"{figure:.1e}" for figure in figures], length
