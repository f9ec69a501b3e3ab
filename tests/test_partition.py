"""The cut of the work among threads is even and shows in no bit, for any raggedness."""

import ctypes
from pathlib import Path

import numpy as np
import pa_hp
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pa_hp.bench.cases import DecodeCase, make

CHUNK = 256  # kChunkTokens
MOST_WORKERS = 64
FIELDS = ["worker", "seq", "begin", "end", "kv_begin", "kv_end"]

# Lengths near the ends of chunks and of spans, eight of them, make the cuts fall in awkward places.
LENGTH = st.one_of(
    st.integers(0, 1600),
    st.builds(lambda n, d: max(0, 256 * n + d), st.integers(0, 6), st.integers(-1, 1)),
    st.builds(lambda n, d: max(0, 2048 * n + d), st.integers(1, 4), st.integers(-300, 300)),
)


# The fixture holds for all examples together; each sets the count anew.
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(LENGTH, min_size=1, max_size=6).map(tuple),
    kv_heads=st.sampled_from((1, 2, 3, 5)),
    group=st.sampled_from((1, 3, 8)),
    threads=st.sampled_from((2, 3, 5, 7, 16)),
)
def test_any_number_of_workers_gives_the_same_bits(lengths, kv_heads, group, threads, set_threads):
    case = DecodeCase(
        "partition", lengths, heads=kv_heads * group, kv_heads=kv_heads, head_dim=192, block_size=32
    )
    inputs = make(case)
    set_threads(1)
    want = pa_hp.decode_lse(*inputs)
    set_threads(threads)
    got = pa_hp.decode_lse(*inputs)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("threads", [*range(2, 17), 80])
def test_one_long_sequence_is_shared(threads, set_threads):
    case = DecodeCase("long", (20000,), heads=4, kv_heads=2, head_dim=64)
    inputs = make(case)
    set_threads(1)
    want = pa_hp.decode(*inputs)
    set_threads(threads)
    assert torch.equal(pa_hp.decode(*inputs), want)


@pytest.fixture(scope="module")
def partition_calls(compile_library):
    """What every worker attends, call by call: a dict of arrays."""
    function = compile_library(Path(__file__).parent / "cpu" / "partition.cpp").partition_calls
    function.restype = ctypes.c_int64
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, integer, integer, integer, pointer, integer]

    def run(lengths, kv_heads, workers):
        # A chunk is one call, and each of the workers' cuts goes through at most one chunk.
        room = int((-(-lengths // CHUNK)).sum()) + workers
        rows = np.empty((room, len(FIELDS)), np.int64)
        sizes = len(lengths), kv_heads, workers
        count = function(lengths.ctypes.data, *sizes, rows.ctypes.data, room)
        assert count <= room
        return dict(zip(FIELDS, rows[:count].T, strict=True))

    return run


@st.composite
def ragged(draw):
    """Lengths of 1 to 300 sequences, most of them drawn at once: a list of 300 takes its time."""
    few = st.lists(st.one_of(LENGTH, st.integers(0, 20000)), min_size=1, max_size=8)
    if draw(st.booleans()):
        return np.array(draw(few), np.int32)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = rng.integers(0, draw(st.sampled_from((1, 300, 20000))) + 1, draw(st.integers(1, 300)))
    lengths[rng.random(len(lengths)) < draw(st.sampled_from((0, 0.5, 0.95)))] = 0
    lengths[: draw(st.integers(0, 2))] = draw(st.integers(0, 20000))
    return lengths.astype(np.int32)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=ragged(), kv_heads=st.integers(1, 32))
def test_every_worker_gets_the_same_amount(partition_calls, lengths, kv_heads):
    chunks = -(-lengths // CHUNK)
    chunks_before = np.concatenate(([0], chunks.cumsum()))
    total = int(lengths.sum()) * kv_heads
    for workers in range(1, MOST_WORKERS + 1):
        calls = partition_calls(lengths, kv_heads, workers)
        length = lengths[calls["seq"]]
        assert (calls["begin"] % CHUNK == 0).all()
        assert (calls["end"] == np.minimum(calls["begin"] + CHUNK, length)).all()

        # All units, each once, in order: each call begins where the one before it ended.
        unit = (chunks_before[calls["seq"]] + calls["begin"] // CHUNK) * kv_heads
        ends = np.concatenate(([0], unit + calls["kv_end"]))
        assert (unit + calls["kv_begin"] == ends[:-1]).all()
        assert (calls["kv_begin"] < calls["kv_end"]).all()
        assert ends[-1] == chunks.sum() * kv_heads

        # A unit has at most t tokens. A cut is floor(total w / workers) rounded to the nearest end
        # of a unit: at most floor(t / 2) up or ceil(t / 2) - 1 down; the floor takes less than 1
        # more. So the two ends of a share make it differ by less than t from the mean.
        tokens = (calls["end"] - calls["begin"]) * (calls["kv_end"] - calls["kv_begin"])
        shares = np.bincount(calls["worker"], tokens, workers).astype(np.int64)
        largest = min(CHUNK, int(lengths.max()))
        cuts = shares.cumsum() * workers - total * np.arange(1, workers + 1)
        assert (cuts <= largest // 2 * workers).all()
        assert total == 0 or (cuts > -((largest + 1) // 2) * workers).all()
        assert total == 0 or (abs(shares * workers - total) < largest * workers).all()
