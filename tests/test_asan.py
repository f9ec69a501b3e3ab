"""No dead memory is read: `make test-asan` runs this with AddressSanitizer watching."""

import contextlib
import ctypes
import os
import subprocess
import sys

import pa_hp
import pytest
import torch

pytestmark = pytest.mark.skipif(
    os.environ.get("PA_HP_SANITIZE") != "1", reason="needs the sanitized build: make test-asan"
)

BLOCK, LENGTHS = 16, (37, 0, 16, 1, 300)


@contextlib.contextmanager
def poisoned(*tensors):
    """Any access of sanitized code to one of `tensors`, contiguous ones, ends the process."""
    runtime = ctypes.CDLL(None)
    regions = [(ctypes.c_void_p(t.data_ptr()), ctypes.c_size_t(t.nbytes)) for t in tensors]
    for region in regions:
        runtime.__asan_poison_memory_region(*region)
    try:
        yield
    finally:  # torch reuses the memory
        for region in regions:
            runtime.__asan_unpoison_memory_region(*region)


def make_inputs(dtype):
    """Inputs of `decode`, and every part of them that no sequence uses."""
    max_blocks = 20
    query = torch.randn(len(LENGTHS), 6, 40).to(dtype)
    key_cache = torch.randn(len(LENGTHS) * max_blocks, BLOCK, 2, 40).to(dtype)
    value_cache = torch.randn(len(LENGTHS) * max_blocks, BLOCK, 2, 24).to(dtype)
    table = torch.randperm(len(key_cache), dtype=torch.int32).view(len(LENGTHS), max_blocks)
    dead = []
    for row, length in enumerate(LENGTHS):
        dead.append(table[row, -(-length // BLOCK) :])
        for position in range(length, max_blocks * BLOCK):
            block, slot = int(table[row, position // BLOCK]), position % BLOCK
            dead += [key_cache[block, slot], value_cache[block, slot]]
    return (query, key_cache, value_cache, table, torch.tensor(LENGTHS, dtype=torch.int32)), dead


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_dead_memory_is_never_read(dtype, threads, set_threads):
    set_threads(threads)
    inputs, dead = make_inputs(dtype)
    want = pa_hp.decode(*inputs)
    with poisoned(*dead):
        got = pa_hp.decode(*inputs)
    assert torch.equal(got, want)


READ_POISON = """
import sys
sys.path.insert(0, sys.argv[1])
import pa_hp, torch
from test_asan import make_inputs, poisoned
inputs, _ = make_inputs(torch.float32)
block = int(inputs[3][0, 2])
slot = int(sys.argv[2])  # of a sequence of 37 tokens, whose last block holds 5
pa_hp.decode(*inputs)
print("ready", flush=True)
with poisoned(inputs[1][block, slot]):
    pa_hp.decode(*inputs)
print("alive")
"""


@pytest.mark.parametrize(("slot", "caught"), [(4, True), (5, False)], ids=["last", "behind"])
def test_a_read_of_poison_is_caught(slot, caught):
    """Without this, the test above could pass because nothing watches."""
    ran = subprocess.run(
        [sys.executable, "-c", READ_POISON, os.path.dirname(__file__), str(slot)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.startswith("ready"), ran.stderr
    assert (ran.returncode != 0) == caught
    assert ("AddressSanitizer: use-after-poison" in ran.stderr) == caught
