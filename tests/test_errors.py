"""Every refusal: its type and its exact words, from the kernel and from the fake alike."""

import dataclasses
import re
from collections.abc import Callable

import pa_hp
import pytest
import torch
from torch import Tensor

pa_hp.load()
OPS = ("decode", "decode_out", "decode_lse")
BATCH, HEADS, KV_HEADS, DIM, DIM_V, BLOCKS, BLOCK, COLUMNS = 2, 6, 3, 16, 24, 5, 4, 3


def good() -> dict[str, Tensor]:
    return {
        "query": torch.ones(BATCH, HEADS, DIM),
        "key_cache": torch.ones(BLOCKS, BLOCK, KV_HEADS, DIM),
        "value_cache": torch.ones(BLOCKS, BLOCK, KV_HEADS, DIM_V),
        "block_table": torch.tensor([[4, 0, 3], [1, 2, 0]], dtype=torch.int32),
        "seq_lens": torch.tensor([12, 5], dtype=torch.int32),
        "out": torch.full((BATCH, HEADS, DIM_V), 7.0),
    }


@dataclasses.dataclass(frozen=True)
class Refusal:
    """`change` spoils good arguments; `message` follows "pa_hp.<op>: expected "."""

    id: str
    error: type[Exception]
    message: str
    change: Callable[[dict], object]
    fake: bool = True  # shapes, strides and dtypes tell, so the fake says the same
    ops: tuple[str, ...] = OPS


def swap(**replacements) -> Callable[[dict], object]:
    """Replace arguments; a callable makes the new one of the old one."""

    def change(arguments: dict) -> None:
        for name, value in replacements.items():
            arguments[name] = value(arguments[name]) if callable(value) else value

    return change


def poke(name: str, index: tuple[int, ...], value: int) -> Callable[[dict], object]:
    def change(arguments: dict) -> None:
        arguments[name][index] = value

    return change


def every_other(tensor: Tensor) -> Tensor:
    """Same shape, stride 2 in the last dimension."""
    wide = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.size(-1)))[..., ::2]
    return wide.copy_(tensor)


def within(name: str) -> Callable[[dict], object]:
    """`out` becomes a view of the memory of input `name`, whose values stay as they are."""

    def change(arguments: dict) -> None:
        tensor = arguments[name]
        count = BATCH * HEADS * DIM_V
        memory = torch.zeros(max(tensor.numel(), count), dtype=torch.float32)
        held = memory.view(tensor.dtype)[: tensor.numel()].view(tensor.shape)
        arguments[name] = held.copy_(tensor)
        arguments["out"] = memory[:count].view(BATCH, HEADS, DIM_V)

    return change


def both_dims(size: int) -> Callable[[dict], object]:
    return swap(
        query=torch.ones(BATCH, HEADS, size), key_cache=torch.ones(BLOCKS, BLOCK, KV_HEADS, size)
    )


def values_dim(size: int) -> Callable[[dict], object]:
    return swap(value_cache=torch.ones(BLOCKS, BLOCK, KV_HEADS, size))


def caches(*shape: int) -> Callable[[dict], object]:
    return swap(key_cache=torch.ones(*shape, DIM), value_cache=torch.ones(*shape, DIM_V))


T, V, I = TypeError, ValueError, IndexError  # noqa: E741
INPUT_SHAPES = {
    "query": (3, "[batch, heads, head_dim]", [BATCH, HEADS, DIM]),
    "key_cache": (
        4,
        "[num_blocks, block_size, kv_heads, head_dim]",
        [BLOCKS, BLOCK, KV_HEADS, DIM],
    ),
    "value_cache": (
        4,
        "[num_blocks, block_size, kv_heads, head_dim_v]",
        [BLOCKS, BLOCK, KV_HEADS, DIM_V],
    ),
    "block_table": (2, "[batch, max_blocks]", [BATCH, COLUMNS]),
    "seq_lens": (1, "[batch]", [BATCH]),
}


def _ranks() -> list[Refusal]:
    refusals = []
    for name, (dims, words, shape) in INPUT_SHAPES.items():
        for suffix, change, got in (
            ("too_many_dims", lambda t: t.unsqueeze(0), [1, *shape]),
            ("too_few_dims", lambda t: t.select(0, 0), shape[1:]),
        ):
            message = f"{name} to be {dims}-D {words}, got {got}"
            refusals.append(Refusal(f"{name}_{suffix}", V, message, swap(**{name: change})))
    return refusals


def _strides() -> list[Refusal]:
    words = "contiguous in its last dimension, got stride 2; call .contiguous()"
    return [
        Refusal(f"{name}_strided", V, f"{name} to be {words}", swap(**{name: every_other}))
        for name in INPUT_SHAPES
    ]


OF_QUERY = "it must have the dtype of query"
INT = "call .to(torch.int32)"
SCALE = "scale to be finite in float32 times log2(e)"
MULTIPLE = "a multiple of 8 up to 576"
CAPACITY = BLOCK * COLUMNS
LENGTH = f"in [0, {CAPACITY}] (max_blocks * block_size)"
ID = f"in [0, {BLOCKS}) (num_blocks of key_cache)"
APART = "got overlapping memory; pass a tensor of its own"
SHARE = "out to be free of rows that share memory"
OUT = ("decode_out",)

REFUSALS = [
    # dtypes
    Refusal("query_float64", T, "query to be float16, bfloat16 or float32, got float64",
            swap(query=lambda t: t.double())),
    Refusal("query_int32", T, "query to be float16, bfloat16 or float32, got int32",
            swap(query=lambda t: t.int())),
    Refusal("query_int64", T, "query to be float16, bfloat16 or float32, got int64",
            swap(query=lambda t: t.long())),
    Refusal("key_cache_float16", T, f"key_cache to be float32, got float16; {OF_QUERY}",
            swap(key_cache=lambda t: t.half())),
    Refusal("value_cache_bfloat16", T, f"value_cache to be float32, got bfloat16; {OF_QUERY}",
            swap(value_cache=lambda t: t.bfloat16())),
    Refusal("query_float16_alone", T, f"key_cache to be float16, got float32; {OF_QUERY}",
            swap(query=lambda t: t.half())),
    Refusal("block_table_int64", T, f"block_table to be int32, got int64; {INT}",
            swap(block_table=lambda t: t.long())),
    Refusal("block_table_float32", T, f"block_table to be int32, got float32; {INT}",
            swap(block_table=lambda t: t.float())),
    Refusal("seq_lens_int64", T, f"seq_lens to be int32, got int64; {INT}",
            swap(seq_lens=lambda t: t.long())),
    *(
        Refusal(f"{name}_none", T, f"{name} to be {dtype}, got None",
                swap(**{name: lambda t: None}), fake=False)
        for name, dtype in [("query", "float16, bfloat16 or float32"), ("key_cache", "float32"),
                            ("value_cache", "float32"), ("block_table", "int32"),
                            ("seq_lens", "int32")]
    ),
    *_ranks(),
    # sizes
    Refusal("head_dim_zero", V, f"query.size(2) to be {MULTIPLE}, got 0", both_dims(0)),
    Refusal("head_dim_12", V, f"query.size(2) to be {MULTIPLE}, got 12", both_dims(12)),
    Refusal("head_dim_584", V, f"query.size(2) to be {MULTIPLE}, got 584", both_dims(584)),
    Refusal("head_dim_v_zero", V, f"value_cache.size(3) to be {MULTIPLE}, got 0", values_dim(0)),
    Refusal("head_dim_v_4", V, f"value_cache.size(3) to be {MULTIPLE}, got 4", values_dim(4)),
    Refusal("head_dim_v_584", V, f"value_cache.size(3) to be {MULTIPLE}, got 584", values_dim(584)),
    Refusal("key_cache_head_dim", V, "key_cache.size(3) to be 16 (head_dim of query), got 8",
            swap(key_cache=lambda t: t[..., :8])),
    Refusal("value_cache_blocks", V, "value_cache.size(0) to be 5 (num_blocks of key_cache), got 4",
            swap(value_cache=lambda t: t[:4])),
    Refusal("value_cache_block_size", V,
            "value_cache.size(1) to be 4 (block_size of key_cache), got 3",
            swap(value_cache=lambda t: t[:, :3])),
    Refusal("value_cache_kv_heads", V, "value_cache.size(2) to be 3 (kv_heads of key_cache), got 2",
            swap(value_cache=lambda t: t[:, :, :2])),
    Refusal("block_size_zero", V, "key_cache.size(1) to be at least 1 (block_size), got 0",
            caches(BLOCKS, 0, KV_HEADS)),
    Refusal("kv_heads_zero", V, "key_cache.size(2) to be at least 1 (kv_heads), got 0",
            caches(BLOCKS, BLOCK, 0)),
    Refusal("heads_zero", V,
            "query.size(1) to be a positive multiple of 3 (kv_heads of key_cache), got 0",
            swap(query=lambda t: t[:, :0])),
    Refusal("heads_not_a_multiple", V,
            "query.size(1) to be a positive multiple of 3 (kv_heads of key_cache), got 5",
            swap(query=lambda t: t[:, :5])),
    Refusal("heads_too_few", V,
            "query.size(1) to be a positive multiple of 3 (kv_heads of key_cache), got 2",
            swap(query=lambda t: t[:, :2])),
    Refusal("block_table_batch", V, "block_table.size(0) to be 2 (batch of query), got 1",
            swap(block_table=lambda t: t[:1])),
    Refusal("seq_lens_batch", V, "seq_lens.size(0) to be 2 (batch of query), got 1",
            swap(seq_lens=lambda t: t[:1])),
    Refusal("seq_lens_longer", V, "seq_lens.size(0) to be 2 (batch of query), got 3",
            swap(seq_lens=lambda t: torch.zeros(3, dtype=torch.int32))),
    *_strides(),
    Refusal("seq_lens_expanded", V,
            "seq_lens to be contiguous in its last dimension, got stride 0; call .contiguous()",
            swap(seq_lens=lambda t: t[:1].expand(BATCH))),
    # scale
    Refusal("scale_nan", V, f"{SCALE}, got nan", swap(scale=torch.nan), fake=False),
    Refusal("scale_huge", V, f"{SCALE}, got 3e+38", swap(scale=3e38), fake=False),
    Refusal("scale_inf", V, f"{SCALE}, got inf", swap(scale=torch.inf), fake=False),
    Refusal("scale_minus_inf", V, f"{SCALE}, got -inf", swap(scale=-torch.inf), fake=False),
    # lengths and ids
    Refusal("length_negative", V, f"seq_lens[1] to be {LENGTH}, got -1",
            poke("seq_lens", (1,), -1), fake=False),
    Refusal("length_too_large", V, f"seq_lens[0] to be {LENGTH}, got 13",
            poke("seq_lens", (0,), CAPACITY + 1), fake=False),
    Refusal("length_smallest", V, f"seq_lens[1] to be {LENGTH}, got -2147483648",
            poke("seq_lens", (1,), -(2**31)), fake=False),
    Refusal("length_largest", V, f"seq_lens[0] to be {LENGTH}, got 2147483647",
            poke("seq_lens", (0,), 2**31 - 1), fake=False),
    Refusal("length_in_an_empty_table", V,
            "seq_lens[0] to be in [0, 0] (max_blocks * block_size), got 12",
            swap(block_table=lambda t: t[:, :0]), fake=False),
    Refusal("id_negative", I, f"block_table[0, 2] to be {ID}, got -1",
            poke("block_table", (0, 2), -1), fake=False),
    Refusal("id_num_blocks", I, f"block_table[1, 1] to be {ID}, got 5",
            poke("block_table", (1, 1), BLOCKS), fake=False),
    Refusal("id_smallest", I, f"block_table[0, 0] to be {ID}, got -2147483648",
            poke("block_table", (0, 0), -(2**31)), fake=False),
    Refusal("id_largest", I, f"block_table[1, 0] to be {ID}, got 2147483647",
            poke("block_table", (1, 0), 2**31 - 1), fake=False),
    Refusal("no_blocks_at_all", I,
            "block_table[0, 0] to be in [0, 0) (num_blocks of key_cache), got 4",
            caches(0, BLOCK, KV_HEADS), fake=False),
    # out
    Refusal("out_float16", T, f"out to be float32, got float16; {OF_QUERY}",
            swap(out=lambda t: t.half()), ops=OUT),
    Refusal("out_flat", V, "out to be 3-D [batch, heads, head_dim_v], got [2, 144]",
            swap(out=lambda t: t.flatten(1)), ops=OUT),
    Refusal("out_batch", V, "out.size(0) to be 2 (batch of query), got 1",
            swap(out=lambda t: t[:1]), ops=OUT),
    Refusal("out_heads", V, "out.size(1) to be 6 (heads of query), got 5",
            swap(out=lambda t: t[:, :5]), ops=OUT),
    Refusal("out_head_dim_v", V, "out.size(2) to be 24 (head_dim_v of value_cache), got 16",
            swap(out=lambda t: t[..., :16]), ops=OUT),
    Refusal("out_strided", V,
            "out to be contiguous in its last dimension, got stride 2; call .contiguous()",
            swap(out=every_other), ops=OUT),
    Refusal("out_expanded_heads", V,
            f"{SHARE}, got strides [144, 0, 1]; call .contiguous()",
            swap(out=lambda t: t[:, :1].expand(-1, HEADS, -1)), ops=OUT, fake=False),
    Refusal("out_rows_overlap", V,
            f"{SHARE}, got strides [144, 23, 1]; call .contiguous()",
            swap(out=lambda t: t.as_strided((BATCH, HEADS, DIM_V), (144, 23, 1))),
            ops=OUT, fake=False),
    Refusal("out_batches_overlap", V,
            f"{SHARE}, got strides [120, 24, 1]; call .contiguous()",
            swap(out=lambda t: t.as_strided((BATCH, HEADS, DIM_V), (120, 24, 1))),
            ops=OUT, fake=False),
    *(Refusal(f"out_within_{name}", V, f"out to be apart from {name}, {APART}", within(name),
              ops=OUT, fake=False) for name in INPUT_SHAPES),
]  # fmt: skip


def call(op: str, arguments: dict):
    given = dict(arguments)
    if op != "decode_out":
        given.pop("out", None)
    return getattr(torch.ops.pa_hp, op)(**given)


def cases(only_fakes: bool = False) -> list:
    return [
        pytest.param(op, refusal, id=f"{op}-{refusal.id}")
        for refusal in REFUSALS
        for op in refusal.ops
        if refusal.fake or not only_fakes
    ]


def refused(op: str, refusal: Refusal, arguments: dict) -> None:
    expected = re.escape(f"pa_hp.{op}: expected {refusal.message}")
    with pytest.raises(Exception, match=rf"\A{expected}\Z") as caught:
        call(op, arguments)
    assert caught.type is refusal.error


def snapshot(arguments: dict) -> dict:
    return {name: t.clone() for name, t in arguments.items() if isinstance(t, Tensor)}


def test_the_good_arguments_are_good():
    assert len(REFUSALS) >= 40
    assert len({refusal.id for refusal in REFUSALS}) == len(REFUSALS)
    for op in OPS:
        arguments = good()
        result = call(op, arguments)
        out = (
            arguments["out"] if op == "decode_out" else result[0] if op == "decode_lse" else result
        )
        assert torch.allclose(out, torch.ones(BATCH, HEADS, DIM_V))


@pytest.mark.parametrize(("op", "refusal"), cases())
def test_refused(op, refusal):
    arguments = good()
    refusal.change(arguments)
    before = snapshot(arguments)
    refused(op, refusal, arguments)
    for name, tensor in before.items():
        assert torch.equal(arguments[name], tensor), f"{name} has changed"


@pytest.mark.parametrize(("op", "refusal"), cases(only_fakes=True))
def test_refused_on_meta(op, refusal):
    """The fake raises the same type with the same words."""
    arguments = good()
    refusal.change(arguments)
    on_meta = {
        name: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
        for name, t in arguments.items()
    }
    refused(op, refusal, on_meta)


@pytest.mark.parametrize("name", ["key_cache", "value_cache", "block_table", "seq_lens", "out"])
@pytest.mark.parametrize(("query_on", "other_on"), [("meta", "cpu"), ("cpu", "meta")])
def test_devices_must_agree(name, query_on, other_on):
    arguments = {key: tensor.to(query_on) for key, tensor in good().items()}
    arguments[name] = good()[name].to(other_on)
    for op in OUT if name == "out" else OPS:
        message = f"{name} to be on {query_on}, got {other_on}; it must be on the device of query"
        refused(op, Refusal("device", V, message, None), arguments)


def test_the_first_rule_broken_is_the_one_named():
    """dtype before rank before size before stride before values."""
    arguments = good()
    broken = [
        (swap(seq_lens=poked(good()["seq_lens"])), "seq_lens[0] to be"),
        (swap(key_cache=every_other), "key_cache to be contiguous"),
        (swap(block_table=lambda t: t[:1]), "block_table.size(0) to be"),
        (swap(value_cache=lambda t: t[0]), "value_cache to be 4-D"),
        (swap(query=lambda t: t.double()), "query to be float16, bfloat16 or float32"),
    ]
    for change, message in broken:
        change(arguments)
        with pytest.raises((TypeError, ValueError), match=re.escape(f"expected {message}")):
            call("decode", arguments)


def poked(seq_lens: Tensor) -> Tensor:
    seq_lens[0] = -5
    return seq_lens


def test_unused_entries_are_not_looked_at():
    """What would be refused in a used place is fine in an unused one."""
    arguments = good()
    arguments["block_table"][1, 2] = -7
    want = call("decode", good())
    assert torch.equal(call("decode", arguments), want)
    arguments["seq_lens"].zero_()
    arguments["block_table"].fill_(2**31 - 1)
    assert (call("decode", arguments) == 0).all()


def test_out_beside_an_input_is_fine():
    """Neighbours in one allocation, and an empty `out`, overlap nothing."""
    arguments = good()
    memory = torch.zeros(BATCH * HEADS * (DIM + DIM_V))
    cut = BATCH * HEADS * DIM
    arguments["query"] = memory[:cut].view(BATCH, HEADS, DIM).fill_(1.0)
    arguments["out"] = memory[cut:].view(BATCH, HEADS, DIM_V)
    call("decode_out", arguments)
    assert torch.allclose(arguments["out"], torch.ones(()))
    arguments |= {name: arguments[name][:0] for name in ("query", "block_table", "seq_lens")}
    arguments["out"] = arguments["value_cache"].view(-1)[:0].view(0, HEADS, DIM_V)
    call("decode_out", arguments)


@pytest.mark.parametrize("op", OPS)
def test_python_names_refuse_alike(op):
    arguments = good()
    arguments["seq_lens"] = arguments["seq_lens"].long()
    if op != "decode_out":
        arguments.pop("out")
    message = f"pa_hp.{op}: expected seq_lens to be int32, got int64; {INT}"
    with pytest.raises(TypeError, match=rf"\A{re.escape(message)}\Z"):
        getattr(pa_hp, op)(**arguments)
