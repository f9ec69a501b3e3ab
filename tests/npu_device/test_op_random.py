"""Random steps with the op in every mode of torch_npu: every answer as the reference has it."""

import random
import threading

import pa_hp
import pytest
import torch
from pa_hp.bench.checks import assert_near
from pa_hp.bench.tolerance import bound, lse_limits, out_limits
from virtual import on_device

STEPS, THREADS, BLOCKS, COLUMNS = 500, 8, 9, 3
SHAPES = ((2, 1, 16, 16), (4, 2, 16, 32), (3, 3, 32, 16))  # heads, kv_heads, head_dim, block_size


def walk(seed: int, device: torch.device, steps: int) -> list[tuple]:
    """Change caches on the device and on the CPU alike, decode in between.

    Returns what was answered and what the reference answers, for a comparison when all is done:
    nothing here waits for the device.
    """
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    side = torch.npu.Stream(device)
    results = []

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).half()

    def strided(rows: int, heads: int, dim: int) -> torch.Tensor:
        """Uninitialised rows of one of three layouts, at an offset or not."""
        layout = choose.randrange(3)
        if layout == 0:
            return torch.empty(rows + 1, heads, dim, dtype=torch.float16)[1:]
        if layout == 1:
            return torch.empty(rows, heads, dim + 24, dtype=torch.float16)[..., 8 : 8 + dim]
        return torch.empty(heads, rows, dim, dtype=torch.float16).transpose(0, 1)

    caches = []
    for _, kv_heads, dim, size in SHAPES:
        where = choose.randrange(2)  # kv_cache[2, ...] or kv_cache[num_blocks, 2, ...]
        shape = [BLOCKS, size, kv_heads, dim]
        shape.insert(where, 2)
        both = normal(*shape)
        caches.append((both.unbind(where), both.to(device).unbind(where)))

    def change() -> None:
        ours, theirs = choose.choice(caches)
        index, block = choose.randrange(2), choose.randrange(BLOCKS)
        if choose.random() < 0.5:
            ours[index].neg_()
            theirs[index].neg_()
        else:
            new = normal(*ours[index].shape[1:])
            ours[index][block] = new
            theirs[index][block] = new.to(device)

    def decode() -> None:
        kind = choose.randrange(len(SHAPES))
        heads, _, dim, size = SHAPES[kind]
        batch = choose.randint(1, 4)
        query = strided(batch, heads, dim).copy_(normal(batch, heads, dim))
        table = torch.randint(0, BLOCKS, (batch, COLUMNS + 1), generator=generator).int()[:, 1:]
        lengths = torch.randint(0, COLUMNS * size + 1, (batch,), generator=generator).int()
        op = choose.choice(("decode", "decode_out", "decode_lse"))
        out = on_device(strided(batch, heads, dim), device)  # the layout of decode_out's
        inputs = [on_device(query, device), *caches[kind][1], on_device(table, device)]
        inputs.append((lengths - 1).to(device).add_(1))
        got = getattr(torch.ops.pa_hp, op)(*inputs, **({"out": out} if op == "decode_out" else {}))
        # Behind the kernel on its stream; and what is freed here is given to someone else.
        inputs[0].fill_(torch.nan)
        inputs[-1].fill_(-1)
        answers = got if op == "decode_lse" else (out if op == "decode_out" else got,)
        want = pa_hp.reference(query, *caches[kind][0], table, lengths)
        limits = [out_limits(torch.float16, dim, n, 1.0, torch.float16) for n in lengths.tolist()]
        close = [lse_limits(dim, n) for n in lengths.tolist()]
        results.append((op, answers, want, (bound(want[0], limits), bound(want[1], close))))

    for _ in range(steps):
        action = decode if choose.random() < 0.7 else change
        main = torch.npu.current_stream(device)
        if choose.random() < 0.5:
            action()
        else:
            side.wait_stream(main)
            with torch.npu.stream(side):
                action()
            main.wait_stream(side)
    return results


def compare(results: list[tuple]) -> None:
    for number, (op, answers, want, limits) in enumerate(results):
        # Of decode and decode_out, the first of the two.
        for got, expected, limit in zip(answers, want, limits, strict=False):
            assert_near(f"answer {number}, {op}", got.cpu(), expected, limit)


def one_thread(seed: int) -> None:
    device = torch.device("npu", seed % 2)
    with torch.npu.device(device):
        compare(walk(seed, device, STEPS))
    print("same")


def many_threads(seed: int) -> None:
    """On two devices at the same time, each thread with a stream of its own."""
    errors = []

    def work(number: int) -> None:
        try:
            device = torch.device("npu", number % 2)
            torch.npu.set_device(device)
            with torch.npu.stream(torch.npu.Stream(device)):
                compare(walk(seed + number, device, -(-STEPS // THREADS)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    print("same")


@pytest.mark.parametrize("queue", ["0", "1", "2"])
@pytest.mark.parametrize(
    ("blocking", "uncached", "run"),
    [
        ("0", "0", "one_thread(0)"),
        ("0", "1", "one_thread(1)"),
        ("1", "0", "one_thread(2)"),
        ("1", "1", "one_thread(3)"),
        ("0", "0", "many_threads(4)"),
    ],
)
def test_random_steps(script, queue, blocking, uncached, run):
    done = script(
        f"import test_op_random; test_op_random.{run}",
        TASK_QUEUE_ENABLE=queue,
        ASCEND_LAUNCH_BLOCKING=blocking,
        PYTORCH_NO_NPU_MEMORY_CACHING=uncached,
        PA_HP_VNPU_JITTER_US="100",
        PA_HP_VNPU_CUBE_CORES="2",  # clusters are what a launch costs in the simulator
    )
    assert "same" in done.stdout
