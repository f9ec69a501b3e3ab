"""pa_hp in the place of torch_npu's functions: what goes where, and that all of it is undone."""

import logging

import pa_hp
import pytest
import torch
from pa_hp.ops import patch

torch_npu = pytest.importorskip("torch_npu", reason="needs the virtual NPU: make test-npu")

BATCH, HEADS, KV_HEADS, DIM, BLOCK, MAX_BLOCKS = 2, 4, 2, 32, 16, 3
NAMES = ("npu_incre_flash_attention", "_npu_paged_attention")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No reason has been logged, no graph captured."""
    monkeypatch.setattr(patch, "_said", set())
    monkeypatch.setattr(patch, "_graph_has_host_lengths", False)


def paged(lengths, dtype=torch.float16, block_size=BLOCK, dim=DIM, device="npu"):
    """Arguments of a paged npu_incre_flash_attention."""
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(BATCH, 1, HEADS * dim, generator=generator).to(dtype).to(device)
    shape = 2, BATCH * MAX_BLOCKS, block_size, KV_HEADS * dim
    key, value = torch.randn(shape, generator=generator).to(dtype).to(device)
    table = torch.randperm(BATCH * MAX_BLOCKS, generator=generator).view(BATCH, MAX_BLOCKS)
    options = {
        "actual_seq_lengths": lengths,
        "block_table": table.int().to(device),
        "num_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "block_size": block_size,
        "scale_value": dim**-0.5,
    }
    return (query, key, value), options


def paged_attention(lengths, **sizes):
    """The same as arguments of _npu_paged_attention, up to `out`."""
    (query, *caches), options = paged(lengths, **sizes)
    dim = query.size(2) // HEADS
    caches = [cache.unflatten(2, (KV_HEADS, dim)) for cache in caches]
    table, scale = options["block_table"], options["scale_value"]
    return [query.view(BATCH, HEADS, dim), *caches, KV_HEADS, HEADS, scale, table, lengths]


@pytest.fixture
def originals(monkeypatch):
    """Names of the originals that were called: they do nothing."""
    called = []
    for name in NAMES:

        def original(*args, name=name, **kwargs):
            if args:  # patching itself calls one without
                called.append(name)

        monkeypatch.setattr(torch_npu, name, original)
    return called


def test_what_is_supported_runs_here(originals):
    arguments, options = paged([40, 5])
    lengths = torch.tensor([40, 5], dtype=torch.int32)
    atb = paged_attention(lengths)
    out = torch.empty_like(atb[0])
    with pa_hp.patched():
        got = torch_npu.npu_incre_flash_attention(*arguments, **options)
        torch_npu._npu_paged_attention(*atb, out)
    assert not originals
    assert torch.equal(got, pa_hp.npu_incre_flash_attention(*arguments, **options))
    assert torch.equal(out.view_as(got), got)


MASK = torch.zeros(BATCH, 1, 1, BLOCK * MAX_BLOCKS, dtype=torch.bool)
MASK[0, ..., 3] = True
REFUSED = {
    "mask": ({}, {"atten_mask": MASK}, "atten_mask is not supported"),
    "pse_shift": ({}, {"pse_shift": torch.ones(1, HEADS, 1, 48).half()}, "pse_shift is not"),
    "float32": ({"dtype": torch.float32}, {}, "float32 with head_dim 32"),
    "head_dim": ({"dim": 24}, {}, "head_dim 24 and 24"),
    "block_size": ({"block_size": 8}, {}, "block_size 8"),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_goes_to_the_original(case, compiled, caplog):
    sizes, more, reason = REFUSED[case]
    arguments, options = paged([20, 7], **sizes)
    options |= {name: tensor.npu() for name, tensor in more.items()}
    want = torch_npu.npu_incre_flash_attention(*arguments, **options)

    def step(*arguments):
        return torch_npu.npu_incre_flash_attention(*arguments, **options)

    if compiled:
        step = torch.compile(step, backend="aot_eager", fullgraph=True)
    with pa_hp.patched(), caplog.at_level(logging.WARNING, "pa_hp"):
        for _ in range(3):
            assert torch.equal(step(*arguments), want)
    (record,) = caplog.records
    assert "torch_npu.npu_incre_flash_attention is left to torch_npu: " in record.message
    assert reason in record.message


def test_errors_are_the_originals():
    """Whoever catches them knows them."""

    def error(*args, **kwargs):
        with pytest.raises(Exception) as raised:  # whatever it is
            torch_npu.npu_incre_flash_attention(*args, **kwargs)
        return raised.type, str(raised.value)

    arguments, options = paged([20, 7])
    wrong = [
        ((), {}),
        (arguments, options | {"no_such": 1}),
        (arguments, options | {"num_heads": "4"}),
        (arguments, options | {"input_layout": ""}),
    ]
    before = [error(*args, **kwargs) for args, kwargs in wrong]
    with pa_hp.patched():
        assert [error(*args, **kwargs) for args, kwargs in wrong] == before


def test_every_reason_is_logged_once(originals, caplog):
    arguments, options = paged([20, 7])
    with pa_hp.patched(), caplog.at_level(logging.WARNING, "pa_hp"):
        for lengths in ([49, 1], [50, 2], [-1, 3]):
            torch_npu.npu_incre_flash_attention(
                *arguments, **options | {"actual_seq_lengths": lengths}
            )
        torch_npu.npu_incre_flash_attention(*arguments, **options, atten_mask=arguments[0])
    assert originals == ["npu_incre_flash_attention"] * 4
    assert len(caplog.records) == 2


def test_a_first_call_of_atb_does_not_undo_it(script):
    """torch_npu puts ATB's operators into itself when one of them is called first."""
    done = script(
        """
        import pa_hp, torch_npu
        pa_hp.patch()
        ours = torch_npu._npu_paged_attention
        try:
            torch_npu._npu_reshape_and_cache()
        except RuntimeError:
            pass
        print(torch_npu._npu_paged_attention is ours)
        pa_hp.unpatch()
        print(torch_npu._npu_paged_attention is not ours)
        """
    )
    assert done.stdout.endswith("True\nTrue\n")


def test_the_fake_that_atb_lacks(script):
    done = script(
        """
        import pa_hp, torch, torch_npu

        def call():
            out = torch.empty(2, 4, 24, device="meta")
            cache = torch.empty(3, 16, 4, 24, device="meta")
            ids = torch.empty(2, 3, dtype=torch.int32, device="meta")
            operator = torch.ops.atb._npu_paged_attention
            return operator(out, cache, cache, 4, 4, 1.0, ids, ids[:, 0], out)

        try:
            call()
        except NotImplementedError:
            print("none")
        for _ in range(2):
            with pa_hp.patched():
                print(call())
        """
    )
    assert done.stdout.endswith("none\nNone\nNone\n")


def test_compiled(originals):
    """Both run here in a compiled function, ATB's as well, which has no fake of its own."""
    arguments, options = paged(None)
    lengths = torch.tensor([33, 2], dtype=torch.int32, device="npu")
    atb = paged_attention(lengths)

    def step(lengths):
        out = torch.empty_like(atb[0])
        torch_npu._npu_paged_attention(*atb[:-1], lengths, out)
        options["actual_seq_lengths"] = lengths
        return torch_npu.npu_incre_flash_attention(*arguments, **options), out

    with pa_hp.patched():
        ifa, out = torch.compile(step, backend="aot_eager", fullgraph=True)(lengths)
    want = pa_hp.npu_incre_flash_attention(*arguments, **options)
    assert not originals
    assert torch.equal(ifa, want) and torch.equal(out.view_as(want), want)


def test_a_graph_with_lengths_on_the_host_is_the_originals(caplog):
    """It is updated with calls like any other, so these go to the original as well."""
    arguments, options = paged([20, 7])
    del options["actual_seq_lengths"]
    originally = torch_npu.npu_incre_flash_attention
    graph, stream = torch.npu.NPUGraph(), torch.npu.Stream()
    update = torch.npu.Stream()
    with pa_hp.patched(), caplog.at_level(logging.WARNING, "pa_hp"):
        with torch.npu.graph(graph, stream=stream):
            torch.npu.graph_task_group_begin(stream)
            out = torch_npu.npu_incre_flash_attention(
                *arguments, **options, actual_seq_lengths=[20, 7]
            )
            handle = torch.npu.graph_task_group_end(stream)
        for lengths in ([20, 7], [48, 0]):
            with torch.npu.stream(update):
                torch.npu.graph_task_update_begin(update, handle)
                again = torch_npu.npu_incre_flash_attention(
                    *arguments, **options, actual_seq_lengths=lengths
                )
                torch.npu.graph_task_update_end(update)
            graph.replay()
            torch.npu.synchronize()
            want = originally(*arguments, **options, actual_seq_lengths=lengths)
            assert torch.equal(again, want)
    assert out.shape == want.shape
    assert "pass a tensor on the NPU" in caplog.records[0].message


def test_a_graph_with_lengths_on_the_device_runs_here(originals):
    lengths = torch.tensor([20, 7], dtype=torch.int32, device="npu")
    arguments, options = paged(lengths)
    graph = torch.npu.NPUGraph()
    with pa_hp.patched():
        torch_npu.npu_incre_flash_attention(*arguments, **options)
        with torch.npu.graph(graph):
            got = torch_npu.npu_incre_flash_attention(*arguments, **options)
    assert not originals
    lengths.copy_(torch.tensor([1, 48], dtype=torch.int32))
    graph.replay()
    assert torch.equal(got, pa_hp.npu_incre_flash_attention(*arguments, **options))
