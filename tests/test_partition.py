"""How the work is cut for threads is even enough and shows in no bit, for any raggedness."""

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
FIELDS = ["share", "seq", "begin", "end", "kv_begin", "kv_end"]

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
def partition(compile_library):
    return compile_library(Path(__file__).parent / "cpu" / "partition.cpp")


@pytest.fixture(scope="module")
def partition_calls(partition):
    """What every share attends, call by call: a dict of arrays."""
    function = partition.partition_calls
    function.restype = ctypes.c_int64
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, *[integer] * 5, pointer, integer]

    def run(lengths, kv_heads, heads_together, workers, by_workers=False):
        # A chunk is one call, of 64 tokens or more but for a sequence's last, and each of at most
        # 8 * workers cuts goes through at most one chunk.
        room = int((-(-lengths // (CHUNK // 4))).sum()) + 8 * workers
        rows = np.empty((room, len(FIELDS)), np.int64)
        sizes = len(lengths), kv_heads, heads_together, workers, by_workers
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


def share_ends(total, kv_heads, workers):
    """Of all shares but the last: eight even ones for each worker, or one where there is little."""
    shares = workers if total < 4 * workers**2 * CHUNK * kv_heads else 8 * workers
    return total * np.arange(1, shares) // shares


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=ragged(), kv_heads=st.integers(1, 32), heads_together=st.booleans())
def test_shares_are_what_they_should_be(partition_calls, lengths, kv_heads, heads_together):
    chunks = partition_calls(lengths, kv_heads, heads_together, 1)
    size = chunks["end"] - chunks["begin"]
    assert (chunks["kv_begin"] == 0).all()
    assert (chunks["kv_end"] == kv_heads).all()
    assert (size > 0).all() and (size <= CHUNK).all()
    assert (np.bincount(chunks["seq"], size, len(lengths)) == lengths).all()
    behind = (size * kv_heads).cumsum()  # work up to the end of every chunk
    total = int(lengths.sum()) * kv_heads
    for workers in range(2, MOST_WORKERS + 1):
        calls = partition_calls(lengths, kv_heads, heads_together, workers)

        # The same chunks, which the bits depend on, each of them whole, all in order.
        new = np.diff([calls["seq"], calls["begin"]], prepend=-1).any(0)
        index = new.cumsum() - 1
        assert (calls["seq"][new] == chunks["seq"]).all()
        assert (calls["begin"][new] == chunks["begin"]).all()
        assert (calls["end"] - calls["begin"] == size[index]).all()
        unit = index * kv_heads
        ends = np.concatenate(([0], unit + calls["kv_end"]))
        assert (unit + calls["kv_begin"] == ends[:-1]).all()
        assert (calls["kv_begin"] < calls["kv_end"]).all()
        assert ends[-1] == len(size) * kv_heads

        # A cut is one of share_ends, in a chunk of `tokens`, rounded to the nearest of its units:
        # tokens / 2 from it at most. An eighth of a worker's part may take it to the chunk's
        # nearer end, and does so if it suffices.
        work = size[index] * (calls["kv_end"] - calls["kv_begin"])
        wanted = share_ends(total, kv_heads, workers)
        cuts = np.bincount(calls["share"], work, len(wanted) + 1).astype(np.int64).cumsum()[:-1]
        tokens = size[behind.searchsorted(wanted, "right")] if total else np.zeros_like(wanted)
        moved = 2 * abs(cuts - wanted) - tokens
        assert (4 * workers * moved <= total * heads_together).all()
        inside = calls["kv_begin"] > 0
        kv_head = calls["kv_begin"][inside & heads_together]
        to_end = np.minimum(kv_head, kv_heads - kv_head) * size[index[inside & heads_together]]
        assert (8 * workers * to_end > total).all()


@pytest.mark.parametrize(("length", "workers"), [(4096, 2), (32768, 2), (131072, 8)])
def test_shares_suit_a_slower_worker(partition_calls, length, workers):
    """Their sizes; the order in which they are taken is modelled here."""
    calls = partition_calls(np.array([length], np.int32), 8, True, workers)
    heads = calls["kv_end"] - calls["kv_begin"]
    shares = np.bincount(calls["share"], (calls["end"] - calls["begin"]) * heads)
    speeds = np.array([0.7] + [1.0] * (workers - 1))
    left = [list(own) for own in shares.reshape(workers, -1)]
    done = np.zeros(workers)  # when each worker is done with what it has taken
    while any(left):
        worker = done.argmin()
        own = left[worker]
        share = (
            own.pop(0)
            if own
            else next(
                left[(worker + i) % workers].pop()
                for i in range(1, workers)
                if left[(worker + i) % workers]
            )
        )
        done[worker] += share / speeds[worker]
    even = shares.sum() / workers / speeds.min()
    assert done.max() < 0.9 * even


def test_a_worker_takes_what_no_other_has_taken(partition_calls):
    lengths = np.array([8192, 3000], np.int32)
    calls = partition_calls(lengths, 8, True, 3)
    assert calls["share"].max() == 3 * 8 - 1
    alone = partition_calls(lengths, 8, True, 3, by_workers=True)
    assert (alone["share"] == 0).all()  # the first of them runs while the others have not begun

    def rows(calls):
        return sorted(zip(*(calls[field] for field in FIELDS[1:]), strict=True))

    assert rows(alone) == rows(calls)
    # From its own first share on, then from the last one of the next worker's.
    first = alone["seq"] * 8192 + alone["begin"]
    own = (8192 + 3000) // 3
    assert (np.diff(first[first < own - CHUNK]) >= 0).all()
    behind = first[first >= own + CHUNK]
    assert behind[0] > 2 * own - CHUNK * 3 and behind[-1] < 2 * own + CHUNK * 3


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=ragged(),
    kv_heads=st.integers(1, 9),
    workers=st.sampled_from((2, 3, 5, 16)),
    stolen=st.lists(st.floats(0, 1, exclude_max=True), max_size=20),
)
def test_taken_shares_are_folded_in_order(partition, lengths, kv_heads, workers, stolen):
    def finished(num_workers, places):
        rows = np.zeros((len(lengths), kv_heads), np.uint32)
        places = np.array(places)
        integer = ctypes.c_int64
        partition.finished_rows(
            ctypes.c_void_p(lengths.ctypes.data),
            *map(integer, (len(lengths), kv_heads, num_workers)),
            ctypes.c_void_p(places.ctypes.data),
            integer(len(places)),
            ctypes.c_void_p(rows.ctypes.data),
        )
        return rows

    want = finished(1, [])
    assert (want[lengths > 0] != 0).all()
    assert (finished(workers, []) == want).all()
    assert (finished(workers, stolen) == want).all()


@pytest.mark.parametrize("length", [129, 200, 256, 257, 300, 511, 512, 513, 768, 900, 1023, 1024])
def test_two_workers_share_no_chunk_of_a_short_sequence(partition_calls, length):
    calls = partition_calls(np.array([length], np.int32), 8, True, 2)
    assert (calls["kv_end"] - calls["kv_begin"] == 8).all()
    chunks = 2 if length <= 512 else 4
    assert len(calls["seq"]) == chunks
    # All chunks but the last one are four streams of whole tokens.
    first, second = np.bincount(calls["share"], calls["end"] - calls["begin"])
    assert second <= first < second + 4 * chunks


def test_shorter_chunks_err_no_more(partition_calls):
    """The terms of docs/numerics.md for sums within and over chunks, of `out` and of `lse`."""
    for length in range(129, 1025):
        calls = partition_calls(np.array([length], np.int32), 8, True, 1)
        longest, count = (calls["end"] - calls["begin"]).max(), len(calls["seq"])
        plain, plain_count = min(length, CHUNK), -(-length // CHUNK)
        assert longest**0.5 + count**0.5 <= plain**0.5 + plain_count**0.5
        assert (longest / 4) ** 0.5 + count**0.5 <= (plain / 4) ** 0.5 + plain_count**0.5
