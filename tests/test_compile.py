"""torch.compile and torch.export: one graph, few compiles, no copy of the caller's buffer."""

import pa_hp
import pytest
import torch
from pa_hp.bench.cases import DecodeCase, lay_out, make, named
from torch._dynamo.testing import CompileCounterWithBackend

BACKENDS = ("eager", "aot_eager", "inductor")


def batch_case(batch: int) -> DecodeCase:
    return DecodeCase(f"batch_{batch}", tuple(3 + 11 * row for row in range(batch)), block_size=32)


def same_cache(batches: tuple[int, ...]) -> list:
    """Inputs of several batch sizes over one cache; in service only the batch changes."""
    whole = make(batch_case(max(batches)))
    return [
        whole._replace(
            query=whole.query[:n].clone(),
            block_table=whole.block_table[:n].clone(),
            seq_lens=whole.seq_lens[:n].clone(),
        )
        for n in batches
    ]


@pytest.mark.parametrize(
    "name", ["block_edges", "everything_strided", "only_empty_rows", "no_rows"]
)
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_one_graph_same_bits(backend, name):
    inputs = make(named(name))

    @torch.compile(fullgraph=True, backend=backend)
    def step(*tensors):
        out, lse = torch.ops.pa_hp.decode_lse(*tensors)
        into = torch.zeros_like(out)
        torch.ops.pa_hp.decode_out(*tensors, scale=0.25, out=into)
        return torch.ops.pa_hp.decode(*tensors), out, lse, into

    with torch.no_grad():
        out, lse = torch.ops.pa_hp.decode_lse(*inputs)
        want = (out, out, lse, torch.ops.pa_hp.decode(*inputs, scale=0.25))
        for got, expected in zip(step(*inputs), want, strict=True):
            assert torch.equal(got, expected)


def test_inductor_between_other_ops():
    """Inductor fuses what is around the op and passes it the strides that eager has."""
    inputs = make(named("everything_strided"))

    def step(query, *rest):
        out = torch.ops.pa_hp.decode(
            (query * 2).transpose(0, 1).contiguous().transpose(0, 1), *rest
        )
        return out + 1

    with torch.no_grad():
        got = torch.compile(step, fullgraph=True, backend="inductor")(*inputs)
        assert torch.equal(got, step(*inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_five_batch_sizes_compile_at_most_twice(backend):
    counter = CompileCounterWithBackend(backend)
    step = torch.compile(torch.ops.pa_hp.decode, fullgraph=True, dynamic=True, backend=counter)
    for inputs in same_cache((2, 3, 5, 8, 13)):
        assert torch.equal(step(*inputs), torch.ops.pa_hp.decode(*inputs))
    assert 1 <= counter.frame_count <= 2


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_new_lengths_do_not_recompile(dynamic):
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(torch.ops.pa_hp.decode, fullgraph=True, dynamic=dynamic, backend=counter)
    inputs = make(batch_case(4))
    for shrink in (0, 1, 2, 3):
        changed = inputs._replace(seq_lens=(inputs.seq_lens - shrink).clamp(min=0))
        assert torch.equal(step(*changed), torch.ops.pa_hp.decode(*changed))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["whole", "slice"])
def test_decode_out_writes_the_callers_buffer(backend, where):
    inputs = make(named("block_edges"))
    want = torch.ops.pa_hp.decode(*inputs)
    batch, heads, dim = want.shape

    @torch.compile(fullgraph=True, backend=backend)
    def step(buffer, *tensors):
        target = buffer[2 : 2 + batch] if where == "slice" else buffer
        torch.ops.pa_hp.decode_out(*tensors, out=target)

    buffer = torch.full((batch + 5 if where == "slice" else batch, heads, dim), 7.0)
    address = buffer.data_ptr()
    with torch.no_grad():
        step(buffer, *inputs)
    assert buffer.data_ptr() == address
    written = buffer[2 : 2 + batch] if where == "slice" else buffer
    assert torch.equal(written, want)
    if where == "slice":
        assert (buffer[:2] == 7.0).all() and (buffer[2 + batch :] == 7.0).all()


def test_strided_out_breaks_the_graph_and_still_works():
    """Dynamo takes no argument called `out` that is not contiguous; it leaves the call to eager."""
    inputs = make(named("block_edges"))
    want = torch.ops.pa_hp.decode(*inputs)

    def step(out, *tensors):
        torch.ops.pa_hp.decode_out(*tensors, out=out)
        return out + 1

    out = lay_out(torch.zeros_like(want), "heads_first")
    with torch.no_grad():
        got = torch.compile(step, backend="aot_eager")(out, *inputs)
        assert torch.equal(out, want) and torch.equal(got, want + 1)
        torch._dynamo.reset()  # it remembers that it gave this function up
        with pytest.raises(torch._dynamo.exc.Unsupported, match="non-contiguous `out=` tensor"):
            torch.compile(step, backend="aot_eager", fullgraph=True)(out, *inputs)


def test_decode_out_is_ordered_with_its_readers():
    """A read before, a write, a read after: functionalisation must not mix them up."""
    inputs = make(named("block_edges"))

    def step(buffer, *tensors):
        before = buffer * 2
        torch.ops.pa_hp.decode_out(*tensors, out=buffer)
        after = buffer * 2
        torch.ops.pa_hp.decode_out(*tensors, scale=0.0, out=buffer)
        return before, after

    buffers = [torch.full_like(inputs.query, 7.0) for _ in range(2)]
    with torch.no_grad():
        want = step(buffers[0], *inputs)
        got = torch.compile(step, fullgraph=True, backend="aot_eager")(buffers[1], *inputs)
    for a, b in zip((*got, buffers[1]), (*want, buffers[0]), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(got[1], buffers[1] * 2)


def test_bad_shapes_are_refused_when_tracing():
    inputs = make(named("block_edges"))
    wrong = inputs._replace(seq_lens=inputs.seq_lens.long())
    step = torch.compile(torch.ops.pa_hp.decode, fullgraph=True, backend="eager")
    message = "pa_hp.decode: expected seq_lens to be int32, got int64; call .to\\(torch.int32\\)"
    with pytest.raises(Exception, match=message):
        step(*wrong)


FRESH = """
import torch, pa_hp
from pa_hp.bench.cases import make, named
inputs = make(named("block_edges"))
assert not pa_hp.build.loaded

@torch.compile(fullgraph=True, backend="{backend}")
def step(*tensors):
    return {name}(*tensors) + 1

with torch.no_grad():
    got = step(*inputs)
    out, lse = pa_hp.reference(*inputs)
assert (got - 1 - out).abs().max() < 1e-5
"""


@pytest.mark.parametrize("name", ["pa_hp.decode", "torch.ops.pa_hp.decode"])
def test_compiled_before_anything_is_loaded(python, name):
    """The first mention of the op in a process is inside a compiled function."""
    python("-c", FRESH.format(name=name, backend="aot_eager"))


class Attention(torch.nn.Module):
    def forward(self, query, key_cache, value_cache, block_table, seq_lens):
        out, lse = torch.ops.pa_hp.decode_lse(query, key_cache, value_cache, block_table, seq_lens)
        return out, lse


@pytest.mark.parametrize("strict", [True, False])
def test_export_with_a_dynamic_batch(strict):
    small, large, one = same_cache((3, 9, 1))
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = ({0: batch}, None, None, {0: batch}, {0: batch})
    exported = torch.export.export(Attention(), tuple(small), dynamic_shapes=shapes, strict=strict)
    targets = [node.target for node in exported.graph.nodes]
    assert torch.ops.pa_hp.decode_lse.default in targets
    for inputs in (small, large, one):
        for got, want in zip(
            exported.module()(*inputs), torch.ops.pa_hp.decode_lse(*inputs), strict=True
        ):
            assert torch.equal(got, want)


@pytest.mark.parametrize("lengths", ["list", "tensor"])
def test_incre_flash_attention_traces(lengths):
    case = named("cache_heads_first")
    inputs = make(case)
    heads, dim = inputs.query.shape[1:]
    size, kv_heads = inputs.key_cache.shape[1:3]
    key, value = (cache.transpose(1, 2) for cache in inputs[1:3])
    given = inputs.seq_lens if lengths == "tensor" else inputs.seq_lens.tolist()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(query, key, value, table, given):
        return pa_hp.npu_incre_flash_attention(
            query, key, value, input_layout="BNSD", block_table=table, actual_seq_lengths=given,
            num_heads=heads, num_key_value_heads=kv_heads, block_size=size, scale_value=dim**-0.5,
        )  # fmt: skip

    with torch.no_grad():
        got = step(inputs.query.unsqueeze(2), key, value, inputs.block_table, given)
    assert torch.equal(got, torch.ops.pa_hp.decode(*inputs).unsqueeze(2))


def test_paged_attention_traces():
    inputs = make(named("block_edges"))
    out = torch.full_like(inputs.query, 7.0)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(out, *tensors):
        query, key_cache, value_cache, block_table, seq_lens = tensors
        pa_hp.npu_paged_attention(
            query, key_cache, value_cache, 2, 4, 0.125, block_table, seq_lens, out
        )

    with torch.no_grad():
        step(out, *inputs)
    assert torch.equal(out, torch.ops.pa_hp.decode(*inputs, scale=0.125))
