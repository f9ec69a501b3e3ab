"""Any shape, any layout: the reference's answer."""

import pa_hp
import torch
from hypothesis import given
from hypothesis import strategies as st
from pa_hp.bench.cases import DTYPES, DecodeCase, make
from pa_hp.bench.checks import check_lse, check_out

HEAD_DIM = st.sampled_from((8, 16, 24, 40, 64, 72, 128, 160, 320))


@st.composite
def cases(draw) -> DecodeCase:
    kv_heads = draw(st.integers(1, 4))
    lengths = st.one_of(st.integers(0, 40), st.integers(250, 262), st.integers(0, 600))
    return DecodeCase(
        name="property",
        lengths=tuple(draw(st.lists(lengths, max_size=4))),
        dtype=draw(st.sampled_from(DTYPES)),
        heads=kv_heads * draw(st.one_of(st.integers(1, 9), st.integers(16, 36))),
        kv_heads=kv_heads,
        head_dim=draw(HEAD_DIM),
        head_dim_v=draw(HEAD_DIM),
        block_size=draw(st.one_of(st.integers(1, 40), st.sampled_from((64, 100, 128, 300)))),
        query_layout=draw(st.sampled_from(("plain", "wide", "heads_first", "fused"))),
        cache_layout=draw(
            st.sampled_from(("plain", "stacked", "interleaved", "wide", "heads_first"))
        ),
        query_factor=draw(st.sampled_from((0.01, 1.0, 8.0))),
        scale=draw(st.one_of(st.none(), st.floats(-0.5, 0.5, width=32))),
    )


@given(cases())
def test_any_case_matches_reference(case):
    inputs = make(case)
    want, want_lse = pa_hp.reference(*inputs, scale=case.scale)
    out, lse = pa_hp.decode_lse(*inputs, scale=case.scale)
    assert want.isfinite().all()
    check_out(case, inputs, out, want)
    check_lse(case, inputs, lse, want_lse)
    into = torch.empty_like(out)
    pa_hp.decode_out(*inputs, scale=case.scale, out=into)
    assert torch.equal(into, out)
