"""A decode step of 20 layers, captured once and replayed: the host sees none of the lengths."""

from typing import NamedTuple

import pa_hp
import pytest
import torch
from pa_hp.bench.checks import assert_near
from pa_hp.bench.tolerance import bound, out_limits
from torch import Tensor

LAYERS, STEPS = 20, 200
BATCH, HEADS, KV_HEADS, DIM, BLOCK, COLUMNS = 3, 4, 2, 16, 16, 5
TRASH = BATCH * COLUMNS  # a block that no row owns: rows without a token write there
ROWS, WIDTH = HEADS + 2 * KV_HEADS, HEADS * DIM
CAPACITY = COLUMNS * BLOCK


class Schedule(NamedTuple):
    """What an engine gives to every step, for all steps."""

    inputs: Tensor  # float16 [steps, batch, width]
    lengths: Tensor  # int32 [steps, batch], the new token counted
    tables: Tensor  # int32 [steps, batch, columns]


def schedule(generator: torch.Generator) -> Schedule:
    """Rows grow by a token a step; a full one pauses, then starts anew in other blocks."""
    lengths, tables = [], []
    age = torch.tensor([30, -2, CAPACITY - 9])  # negative: steps to wait
    table = torch.randperm(TRASH, generator=generator).view(BATCH, COLUMNS)
    for _ in range(STEPS):
        age += 1
        if (age > CAPACITY).any():
            age[age > CAPACITY] = -3
        for row in (age == 1).nonzero().flatten():
            table[row] = table[row, torch.randperm(COLUMNS, generator=generator)]
        lengths.append(age.clamp(min=0))
        tables.append(table.clone())
    inputs = torch.randn(STEPS, BATCH, WIDTH, generator=generator).half()
    return Schedule(inputs, torch.stack(lengths).int(), torch.stack(tables).int())


def slots(lengths: Tensor, table: Tensor) -> Tensor:
    """Where the newest token of every row goes."""
    last = (lengths - 1).clamp(min=0).long()
    block = table.gather(1, (last // BLOCK).unsqueeze(1)).squeeze(1)
    return torch.where(lengths > 0, block * BLOCK + last % BLOCK, TRASH * BLOCK)


class Model:
    """Weights and caches of all layers, on one device."""

    def __init__(self, project: Tensor, mix: Tensor, caches: Tensor):
        self.project = project  # [layers, width, rows * dim]
        self.mix = mix  # [layers, width, width]
        self.caches = caches  # [layers, 2, num_blocks, block_size, kv_heads, dim]

    def qkv(self, layer: int, x: Tensor) -> Tensor:
        return (x @ self.project[layer]).view(BATCH, ROWS, DIM)

    def write(self, layer: int, qkv: Tensor, where: Tensor) -> None:
        for cache, new in zip(self.caches[layer], qkv[:, HEADS:].split(KV_HEADS, 1), strict=True):
            cache.view(-1, KV_HEADS, DIM).index_copy_(0, where, new)

    def next(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        """Of a variance near 1, which the tolerances are derived for."""
        return x * 0.9 + out.reshape(BATCH, WIDTH) @ self.mix[layer] * 0.4


def replay(runtime) -> None:
    """Compare every layer of every step with the reference."""
    generator = torch.Generator().manual_seed(4)
    plan = schedule(generator)
    assert (plan.lengths == 0).any(1).sum() > 20 and (plan.lengths == CAPACITY).any(0).all()
    project = torch.randn(LAYERS, WIDTH, ROWS * DIM, generator=generator).half() / WIDTH**0.5
    mix = torch.randn(LAYERS, WIDTH, WIDTH, generator=generator).half() / WIDTH**0.5
    caches = torch.randn(LAYERS, 2, TRASH + 1, BLOCK, KV_HEADS, DIM, generator=generator).half()
    twin = Model(project, mix, caches)
    model = Model(project.npu(), mix.npu(), caches.npu())
    given = Schedule(*(tensor.npu() for tensor in plan))
    x, lengths, table = (torch.zeros_like(tensor[0]) for tensor in given)
    record = torch.zeros(LAYERS, BATCH, ROWS + HEADS, DIM, dtype=torch.float16, device="npu")
    records = torch.zeros(STEPS, *record.shape, dtype=torch.float16, device="npu")

    def step() -> None:
        where, hidden = slots(lengths, table), x
        for layer in range(LAYERS):
            qkv = model.qkv(layer, hidden)
            model.write(layer, qkv, where)
            out = torch.ops.pa_hp.decode(qkv[:, :HEADS], *model.caches[layer], table, lengths)
            record[layer, :, :ROWS] = qkv
            record[layer, :, ROWS:] = out
            hidden = model.next(layer, hidden, out)

    step()  # warm up: rows of length 0, which write to the block that nobody reads
    torch.npu.synchronize()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        step()

    def counts() -> dict[str, int]:
        names = ("synchronise", "device_to_host", "host_to_device", "malloc")
        torchs = torch.npu.memory_stats()["allocation.all.allocated"]
        return {name: runtime.counter(name) for name in names} | {"allocations": torchs}

    before = counts()
    for index in range(STEPS):
        for static, tensor in zip((x, lengths, table), given, strict=True):
            static.copy_(tensor[index])
        graph.replay()
        records[index].copy_(record)
    assert counts() == before

    for index, recorded in enumerate(records.cpu()):
        seq_lens, ids = plan.lengths[index], plan.tables[index]
        where, hidden = slots(seq_lens, ids), plan.inputs[index]
        for layer in range(LAYERS):
            qkv, out = recorded[layer].split([ROWS, HEADS], 1)
            torch.testing.assert_close(qkv, twin.qkv(layer, hidden))
            twin.write(layer, qkv, where)
            query, (keys, values) = qkv[:, :HEADS], twin.caches[layer]
            want, _ = pa_hp.reference(query, keys, values, ids, seq_lens)
            scores = float(query.float().std() * keys.float().std())
            limits = [out_limits(out.dtype, DIM, n, scores, out.dtype) for n in seq_lens.tolist()]
            assert_near(f"step {index}, layer {layer}: out", out, want, bound(want, limits))
            hidden = twin.next(layer, hidden, out)


@pytest.mark.parametrize("queue", ["0", "1"])
def test_replay(script, queue):
    script(
        "import test_op_graph, virtual; test_op_graph.replay(virtual.Runtime())",
        TASK_QUEUE_ENABLE=queue,
        PA_HP_VNPU_CUBE_CORES="2",  # clusters are what a launch costs in the simulator
        PA_HP_VNPU_CHECK="0",
    )
