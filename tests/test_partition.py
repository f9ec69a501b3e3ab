"""The cut of the work among threads shows in no bit, for any raggedness."""

import pa_hp
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pa_hp.bench.cases import DecodeCase, make

# Lengths near the ends of chunks make the cuts fall in awkward places.
LENGTH = st.one_of(
    st.integers(0, 1600),
    st.builds(lambda n, d: max(0, 256 * n + d), st.integers(0, 6), st.integers(-1, 1)),
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


@pytest.mark.parametrize("threads", [2, 4, 16])
def test_one_long_sequence_is_shared(threads, set_threads):
    case = DecodeCase("long", (5000,), heads=2, kv_heads=1, head_dim=256)
    inputs = make(case)
    set_threads(1)
    want = pa_hp.decode(*inputs)
    set_threads(threads)
    assert torch.equal(pa_hp.decode(*inputs), want)
