"""Operators on the virtual NPU against the same on the CPU."""

import math

import pytest
import torch
import torch.nn.functional as F


def _inputs():
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(6, 8, generator=generator)
    y = torch.rand(6, 8, generator=generator) + 0.5
    index = torch.randint(0, 6, (6, 8), generator=generator)
    return x, y, index, x > 0


# Each takes a matrix, a positive one, indices below 6 and a mask.
CASES = {
    "arithmetic": lambda x, y, i, m: x * y - x / y + 2 * x - 3 / y + (1 - x) + x // y + x % y,
    "floor_divide": lambda x, y, i, m: x // 0.3 + i // 2,
    "divide_rounding": lambda x, y, i, m: torch.div(x, y, rounding_mode="trunc"),
    "powers": lambda x, y, i, m: y**x + y**2 + 2**x + y.sqrt() + y.rsqrt() + y.reciprocal(),
    "comparisons": lambda x, y, i, m: torch.stack([x < y, x >= y, x == x, x != y, x > 0, i <= 3]),
    "logic": lambda x, y, i, m: (m & (y > 1)) | ~m ^ m,
    "bits": lambda x, y, i, m: (i & 3) + (i | 8) + (i ^ 5),
    "exponentials": lambda x, y, i, m: x.exp() + y.log() + y.log2() + y.log1p() + x.expm1(),
    "trigonometry": lambda x, y, i, m: x.sin() + x.cos() + x.tanh() + x.atan() + x.erf(),
    "rounding": lambda x, y, i, m: x.floor() + x.ceil() + x.round() + x.trunc() + x.sign(),
    "activations": lambda x, y, i, m: F.relu(x) + F.silu(x) + F.gelu(x) + x.sigmoid(),
    "leaky_softplus": lambda x, y, i, m: F.leaky_relu(x, 0.1) + F.softplus(x),
    "clamp": lambda x, y, i, m: x.clamp(-0.5, 0.5) + x.clamp(min=0) + x.clamp(max=1),
    "in_place": lambda x, y, i, m: x.clone().add_(y).mul_(2).sub_(1).div_(y).neg_().abs_(),
    "addcmul": lambda x, y, i, m: torch.addcmul(x, x, y, value=2) + torch.addcdiv(x, x, y),
    "lerp": lambda x, y, i, m: torch.lerp(x, y, 0.3) + torch.lerp(x, y, y),
    "where": lambda x, y, i, m: torch.where(m, x, y),
    "masked_fill": lambda x, y, i, m: x.masked_fill(m, -math.inf),
    "mask": lambda x, y, i, m: x[m],
    "masked_select": lambda x, y, i, m: torch.masked_select(x, m),
    "nonzero": lambda x, y, i, m: m.nonzero(),
    "where_nonzero": lambda x, y, i, m: torch.stack(torch.where(m)),
    "maximum": lambda x, y, i, m: torch.maximum(x, y) + torch.minimum(x, y),
    "sums": lambda x, y, i, m: x.sum() + x.sum(0) + x.sum(1, keepdim=True) + x.mean() + y.mean(0),
    "sum_of_ints": lambda x, y, i, m: i.sum(),
    "extremes": lambda x, y, i, m: x.max() + x.min() + x.amax(0) + x.amin(1, keepdim=True),
    "max_of_dim": lambda x, y, i, m: x.max(1),
    "min_of_dim": lambda x, y, i, m: x.min(0),
    "argmax": lambda x, y, i, m: x.argmax() + x.argmax(0) + x.argmin(0),
    "all_any": lambda x, y, i, m: torch.stack([m.all(), m.any(), m.any(0).all()]),
    "prod": lambda x, y, i, m: y.prod() + y.prod(0),
    "moments": lambda x, y, i, m: x.var() + x.std() + x.var(0) + x.std(0),
    "norms": lambda x, y, i, m: x.norm() + x.norm(dim=0) + torch.linalg.vector_norm(x, dim=0),
    "logsumexp": lambda x, y, i, m: x.logsumexp(1),
    "cumsum": lambda x, y, i, m: x.cumsum(0) + y.cumprod(1),
    "sort": lambda x, y, i, m: x.sort(1),
    "sort_descending": lambda x, y, i, m: torch.sort(x, stable=True, dim=0, descending=True),
    "argsort": lambda x, y, i, m: x.argsort(1),
    "topk": lambda x, y, i, m: x.topk(3, dim=1),
    "median": lambda x, y, i, m: x.median(),
    "kthvalue": lambda x, y, i, m: x.kthvalue(2, 1),
    "gather": lambda x, y, i, m: x.gather(0, i),
    "index": lambda x, y, i, m: x[i[0], i[1]] + x[i[0]],
    "index_put": lambda x, y, i, m: _with(x, lambda z: z.__setitem__((i[:, 0], 3), 9.0)),
    "index_put_add": lambda x, y, i, m: x.clone().index_put_((i[0],), y[0], accumulate=True),
    "index_select": lambda x, y, i, m: x.index_select(0, i[0]),
    "index_copy": lambda x, y, i, m: x.index_copy(0, torch.tensor([2, 0], device=x.device), y[:2]),
    "index_add": lambda x, y, i, m: x.index_add(0, i[0][:6], y),
    "scatter": lambda x, y, i, m: x.scatter(0, i[:1], y) + x.scatter(0, i[:1], 3.0),
    "scatter_add": lambda x, y, i, m: x.scatter_add(0, i, y),
    "embedding": lambda x, y, i, m: F.embedding(i, x),
    "one_hot": lambda x, y, i, m: F.one_hot(i, 6),
    "take": lambda x, y, i, m: torch.take(x, i),
    "cat": lambda x, y, i, m: torch.cat([x, y, x[:2]]),
    "stack": lambda x, y, i, m: torch.stack([x, y], 1),
    "split": lambda x, y, i, m: [part + 1 for part in x.split([2, 3, 3], 1)],
    "repeat": lambda x, y, i, m: x.repeat(2, 3),
    "repeat_interleave": lambda x, y, i, m: x.repeat_interleave(2, 0),
    "repeat_interleave_by": lambda x, y, i, m: x.repeat_interleave(i[:, 0], 0),
    "flip_roll": lambda x, y, i, m: x.flip(0) + x.roll(2, 1),
    "triangles": lambda x, y, i, m: x.tril() + x.triu(1),
    "pad": lambda x, y, i, m: F.pad(x, (1, 2, 3, 0), value=4.0),
    "arange": lambda x, y, i, m: torch.arange(3, 40, 5, device=x.device),
    "linspace": lambda x, y, i, m: torch.linspace(0, 1, 7, device=x.device),
    "eye": lambda x, y, i, m: torch.eye(4, 5, device=x.device),
    "full": lambda x, y, i, m: torch.full_like(x, 3) + torch.ones_like(x) + torch.zeros_like(x),
    "matmul": lambda x, y, i, m: x @ y.t(),
    "batched_matmul": lambda x, y, i, m: torch.bmm(x.view(2, 3, 8), y.view(2, 8, 3)),
    "matrix_vector": lambda x, y, i, m: torch.mv(x, y[0]) + torch.dot(x[0], y[0]),
    "addmm": lambda x, y, i, m: torch.addmm(x[:, :6], x, y.t(), beta=0.5, alpha=2),
    "linear": lambda x, y, i, m: F.linear(x, y, y[:, 0]),
    "baddbmm": lambda x, y, i, m: torch.baddbmm(
        x[:, :3].reshape(2, 3, 3), x.view(2, 3, 8), y.view(2, 8, 3)
    ),
    "einsum": lambda x, y, i, m: torch.einsum("ij,kj->ik", x, y),
    "softmax": lambda x, y, i, m: x.softmax(1) + x.log_softmax(0),
    "layer_norm": lambda x, y, i, m: F.layer_norm(x, (8,), y[0], y[1]),
    "layer_norm_plain": lambda x, y, i, m: F.layer_norm(x, (6, 8)),
    "rms_norm": lambda x, y, i, m: F.rms_norm(x, (8,), y[0], 1e-6),
    "isfinite": lambda x, y, i, m: (x / (x * 0)).isfinite() | (y / 0).isinf(),
    "searchsorted": lambda x, y, i, m: torch.searchsorted(x[0].sort()[0], y),
    "histc": lambda x, y, i, m: torch.histc(x, 5, -2, 2),
    "lgamma_on_the_host": lambda x, y, i, m: y.lgamma(),
}


def _with(x, change):
    x = x.clone()
    change(x)
    return x


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    inputs = _inputs()
    expected = CASES[name](*inputs)
    got = CASES[name](*(value.npu() for value in inputs))
    if isinstance(expected, torch.Tensor):
        expected, got = [expected], [got]
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.device.type == "npu" and ours.dtype == theirs.dtype
        torch.testing.assert_close(ours.cpu(), theirs, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    x, y = (value.to(dtype) for value in _inputs()[:2])
    got = (x.npu() @ y.npu().t()).softmax(-1)
    torch.testing.assert_close(got.cpu(), (x @ y.t()).softmax(-1))


def test_random_numbers():
    torch.npu.manual_seed(5)
    first = torch.rand(1000, device="npu")
    normal = torch.randn(1000, device="npu")
    torch.npu.manual_seed(5)
    assert torch.equal(torch.rand(1000, device="npu").cpu(), first.cpu())
    assert 0.4 < first.mean() < 0.6 and 0.9 < normal.std() < 1.1
    drawn = torch.randint(3, 7, (1000,), device="npu").cpu()
    assert drawn.min() == 3 and drawn.max() == 6
    assert torch.equal(torch.randperm(50, device="npu").cpu().sort()[0], torch.arange(50))


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
@pytest.mark.parametrize("paged", [False, True])
def test_incre_flash_attention(layout, paged):
    import torch_npu

    batch, heads, kv_heads, dim, page, lengths = 3, 8, 2, 16, 16, [40, 1, 17]
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(batch, heads, dim, generator=generator)
    k, v = (torch.randn(batch, 48, kv_heads, dim, generator=generator) for _ in range(2))
    shapes = {"BSH": (batch, 1, -1), "BSND": (batch, 1, heads, dim), "BNSD": (batch, heads, 1, dim)}

    def cache(x):
        if paged:  # the pages of a sequence lie backwards
            return x.reshape(batch * 3, page, -1).flip(0).contiguous()
        if layout == "BNSD":
            return x.transpose(1, 2).contiguous()
        return x.reshape(batch, 48, -1) if layout == "BSH" else x

    table = torch.arange(batch * 3, dtype=torch.int32).flip(0).reshape(batch, 3)
    options = {"block_table": table.npu(), "block_size": page} if paged else {}
    got = torch_npu.npu_incre_flash_attention(
        q.reshape(shapes[layout]).half().npu(),
        cache(k).half().npu(),
        cache(v).half().npu(),
        actual_seq_lengths=lengths,
        num_heads=heads,
        num_key_value_heads=kv_heads,
        scale_value=dim**-0.5,
        input_layout=layout,
        **options,
    )
    assert got.shape == q.reshape(shapes[layout]).shape
    for row, tokens in enumerate(lengths):
        keys, values = (
            x[row, :tokens].half().float().transpose(0, 1).repeat_interleave(heads // kv_heads, 0)
            for x in (k, v)
        )
        own = q[row].half().float().unsqueeze(1)
        expected = F.scaled_dot_product_attention(own, keys, values).flatten()
        torch.testing.assert_close(got[row].cpu().float().flatten(), expected, rtol=1e-3, atol=1e-3)
