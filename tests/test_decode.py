"""Right answers, and the same bits whatever else happens in the process."""

import dataclasses
import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pa_hp
import pytest
import torch
from pa_hp.bench.cases import CASES, DTYPES, DecodeCase, Inputs, lay_out, live_slots, make, named
from pa_hp.bench.checks import bits, check_against_peer, check_lse, check_out

ROOT = Path(__file__).parent.parent
decode, decode_out, decode_lse = pa_hp.decode, pa_hp.decode_out, pa_hp.decode_lse

# Ragged enough that shares end inside sequences and between the kv heads of one chunk, large enough
# for sixteen workers.
RAGGED = DecodeCase(
    "ragged", (1, 700, 0, 255, 257, 1500, 513), heads=9, kv_heads=3, head_dim=128, block_size=100
)
WIDE = dataclasses.replace(RAGGED, name="wide", heads=72)  # blocks of 16 query heads, and fours
FOURS = dataclasses.replace(RAGGED, name="fours", heads=24)  # two for each kv head


def run(case: DecodeCase, inputs: Inputs) -> tuple[bytes, bytes]:
    out, lse = decode_lse(*inputs, scale=case.scale)
    return bits(out), bits(lse)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case):
    inputs = make(case)
    want, want_lse = pa_hp.reference(*inputs, scale=case.scale)
    assert want.isfinite().all(), "the reference itself met a poisoned slot"
    out = decode(*inputs, scale=case.scale)
    check_out(case, inputs, out, want)
    check_against_peer(case, inputs, out, want)
    same_out, lse = decode_lse(*inputs, scale=case.scale)
    check_lse(case, inputs, lse, want_lse)
    assert bits(same_out) == bits(out)
    into = torch.full_like(out, torch.nan)
    assert decode_out(*inputs, scale=case.scale, out=into) is None
    assert bits(into) == bits(out)
    assert bits(decode(*inputs, scale=case.scale)) == bits(out)  # a second run


def _round_weights(case, inputs):
    """The answer of a kernel that keeps its softmax weights in bfloat16."""
    length = int(inputs.seq_lens[0])
    ids = inputs.block_table[0, : -(-length // case.block_size)].long()
    key, value = (cache[ids].flatten(0, 1)[:length, 0].double() for cache in inputs[1:3])
    scores = inputs.query[0].double() @ key.T * case.head_dim**-0.5
    return (scores.softmax(-1).bfloat16().double() @ value).unsqueeze(0)


SPOILT = {
    "token_missing": lambda c, i: pa_hp.reference(*i._replace(seq_lens=i.seq_lens - 1))[0],
    "scale_off": lambda c, i: pa_hp.reference(*i, scale=c.head_dim**-0.5 * (1 + 2e-5))[0],
    "heads_swapped": lambda c, i: pa_hp.reference(*i)[0].flip(1),
    "weights_in_bfloat16": _round_weights,
    "one_element": lambda c, i: pa_hp.reference(*i)[0].index_add_(
        2, torch.tensor([5]), torch.full((1, c.heads, 1), 2e-6, dtype=torch.float64)
    ),
    "one_nan": lambda c, i: pa_hp.reference(*i)[0].index_fill_(2, torch.tensor([5]), torch.nan),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_tolerance_notices(spoil):
    """The limits are tight enough to see the mistakes that kernels make."""
    case = DecodeCase("spoilt", (300,), heads=4, kv_heads=1)
    inputs = make(case)
    want = pa_hp.reference(*inputs)[0]
    check_out(case, inputs, want.float(), want)
    with pytest.raises(
        AssertionError, match=r"spoilt-float32: out\[0, \d, \d+\]: got .*, expected"
    ):
        check_out(case, inputs, spoil(case, inputs).float(), want)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_tolerance_notices_truncation(dtype):
    """Rounding toward zero instead of to nearest."""
    case = DecodeCase("truncated", (300,), heads=4, kv_heads=1, dtype=dtype)
    inputs = make(case)
    want = pa_hp.reference(*inputs)[0]
    check_out(case, inputs, want.to(dtype), want)
    up = want.to(dtype)
    cut = torch.where(up.double().abs() > want.abs(), torch.nextafter(up, torch.zeros_like(up)), up)
    with pytest.raises(AssertionError, match="times the tolerance"):
        check_out(case, inputs, cut, want)


def test_zero_length_rows():
    out, lse = decode_lse(*make(named("first_and_last_empty")))
    assert bits(out[0]) == bits(torch.zeros_like(out[0]))  # +0.0, not -0.0
    assert bits(out[2]) == bits(torch.zeros_like(out[2]))
    assert (lse[[0, 2]] == -torch.inf).all()
    assert lse[1].isfinite().all()


def test_empty_cache_and_table():
    """No block, no column in the table: right as long as every length is 0."""
    cache = torch.empty(0, 16, 2, 64)
    table = torch.empty(3, 0, dtype=torch.int32)
    lengths = torch.zeros(3, dtype=torch.int32)
    assert (decode(torch.randn(3, 4, 64), cache, cache, table, lengths) == 0).all()


def test_one_token_copies_the_value():
    """With one token the softmax is 1 whatever the score."""
    for dtype in DTYPES:
        case = named("one_token", dtype)
        inputs = make(case)
        value = inputs.value_cache[inputs.block_table[0, 0], 0]
        assert bits(decode(*inputs)[0]) == bits(value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 8, 16, 20])
def test_a_lone_score_however_large_copies_the_value(group, dtype):
    """A last token far above all others has a weight of 1 exactly: the maximum is its own score."""
    lengths = (1, 2, 3, 16, 17, 33, 255, 257)
    case = DecodeCase("lone", lengths, heads=2 * group, kv_heads=2, head_dim=64, dtype=dtype)
    inputs = make(case)
    inputs.query.abs_().mul_(1e3 if dtype == torch.float16 else 3e9)
    inputs.key_cache.abs_().neg_()
    ends = inputs.seq_lens.long() - 1
    rows = inputs.block_table.gather(1, ends[:, None] // 16).squeeze(1).long(), ends % 16
    inputs.key_cache[rows] *= -1
    values = inputs.value_cache[rows].repeat_interleave(group, dim=1)
    assert bits(decode(*inputs)) == bits(values)


@pytest.mark.parametrize("layout", ["wide", "heads_first", "fused"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decode_out_strided(layout, dtype):
    inputs = make(dataclasses.replace(RAGGED, dtype=dtype))
    want = decode(*inputs)
    out = lay_out(torch.full_like(want, torch.nan), layout)
    assert not out.is_contiguous()
    frame = out._base if out._base is not None else out
    frame.fill_(7.0)
    decode_out(*inputs, out=out)
    assert bits(out) == bits(want)
    out.fill_(7.0)
    assert (frame == 7.0).all(), "something outside of out was written"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [RAGGED, WIDE, FOURS], ids=lambda case: case.name)
def test_thread_count_does_not_change_bits(case, dtype, set_threads):
    case = dataclasses.replace(case, dtype=dtype)
    inputs = make(case)
    set_threads(1)
    want = run(case, inputs)
    for threads in (2, 3, 7):
        set_threads(threads)
        assert run(case, inputs) == want, f"{threads} threads"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [1, 3, 4, 5, 8, 16, 20])
def test_layout_of_the_cache_does_not_change_bits(group, dtype, set_threads):
    set_threads(2)
    lengths = (0, 1, 5, 255, 261, 700)
    case = DecodeCase("layout", lengths, heads=3 * group, kv_heads=3, head_dim=64, dtype=dtype)
    query, *caches, block_table, seq_lens = make(case)
    want = run(case, (query, *caches, block_table, seq_lens))
    for key_layout, value_layout in [("heads_first", "plain"), ("wide", "heads_first")]:
        laid = lay_out(caches[0], key_layout), lay_out(caches[1], value_layout)
        got = run(case, (query, *laid, block_table, seq_lens))
        assert got == want, (key_layout, value_layout)


def test_batch_order_does_not_change_bits(set_threads):
    set_threads(3)
    inputs = make(RAGGED)
    out, lse = decode_lse(*inputs)
    order = torch.randperm(len(RAGGED.lengths), generator=torch.Generator().manual_seed(1))
    query, key_cache, value_cache, block_table, seq_lens = inputs
    shuffled = decode_lse(query[order], key_cache, value_cache, block_table[order], seq_lens[order])
    assert bits(shuffled[0]) == bits(out[order])
    assert bits(shuffled[1]) == bits(lse[order])


def test_rest_of_batch_does_not_change_bits():
    query, key_cache, value_cache, block_table, seq_lens = make(RAGGED)
    out, lse = decode_lse(query, key_cache, value_cache, block_table, seq_lens)
    batch = len(RAGGED.lengths)
    for begin, end in [(row, row + 1) for row in range(batch)] + [(1, 4), (3, batch)]:
        part = slice(begin, end)
        alone = decode_lse(query[part], key_cache, value_cache, block_table[part], seq_lens[part])
        assert bits(alone[0]) == bits(out[part]), part
        assert bits(alone[1]) == bits(lse[part]), part


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [RAGGED, WIDE], ids=lambda case: case.name)
def test_dead_slots_do_not_change_bits(case, dtype):
    case = dataclasses.replace(case, dtype=dtype)
    inputs = make(case)
    want = run(case, inputs)
    dead = ~live_slots(inputs)
    assert dead.any()
    for filler in (0.0, 1e4, torch.inf, -torch.inf):
        inputs.key_cache[dead] = filler
        inputs.value_cache[dead] = filler
        assert run(case, inputs) == want, filler


def test_several_python_threads_at_once():
    cases = [RAGGED, named("peaked"), named("block_size_100"), named("head_dim_576_v_512")]
    cases += [dataclasses.replace(case, dtype=torch.bfloat16) for case in cases]
    arguments = [(case, make(case)) for case in cases]
    want = [run(*argument) for argument in arguments]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda argument: run(*argument), arguments * 6))
    assert got == want * 6


def test_uses_torch_threads(python):
    """Three threads are at work where three are asked for: two more than the caller's."""
    result = python(
        "-c",
        """
        import os
        import numpy as np
        import torch, pa_hp
        pa_hp.load()
        torch.set_num_threads(3)
        cache = torch.from_numpy(np.ones((64, 64, 2, 64), np.float32))  # torch stays idle
        table = torch.from_numpy(np.arange(64, dtype=np.int32)[None])
        before = len(os.listdir("/proc/self/task"))
        pa_hp.decode(torch.ones(1, 8, 64), cache, cache, table, torch.full((1,), 4096).int())
        print(len(os.listdir("/proc/self/task")) - before)
        """,
    )
    assert result.stdout == "2\n", result.stdout + result.stderr


def test_after_fork_before_the_library_is_loaded(python):
    python(
        "-c",
        """
        import os, signal, sys
        import torch
        import pa_hp
        from test_decode import RAGGED, make, run
        torch.set_num_threads(2)
        torch.ones(1 << 20).add_(1)  # torch starts its threads
        inputs = make(RAGGED)
        assert not pa_hp.build.loaded
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a hang ends the child
            os._exit(0 if run(RAGGED, inputs) == run(RAGGED, inputs) else 3)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xff)
        """,
    )


def test_after_fork(python):
    """A forked child must not wait for the OpenMP threads of its parent."""
    python(
        "-c",
        """
        import os, signal, sys
        import torch
        from test_decode import RAGGED, make, run
        torch.set_num_threads(2)
        inputs = make(RAGGED)
        want = run(RAGGED, inputs)
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # a hang ends the child
            os._exit(0 if run(RAGGED, inputs) == want else 3)
        status = os.waitpid(child, 0)[1]
        assert run(RAGGED, inputs) == want  # and the parent goes on
        sys.exit(os.waitstatus_to_exitcode(status) & 0xff)
        """,
    )


@pytest.mark.skipif("PA_HP_CPU_ISA" in os.environ, reason="this is that run")
@pytest.mark.parametrize(
    "name", ["baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16", "neon_bf16"]
)
def test_other_instruction_sets(name, python):
    """What depends on the instruction set, again with every one that this machine has."""
    if name == pa_hp.build.cpu_isa():
        pytest.skip("every other test has it")
    asked = "import pa_hp; print(pa_hp.build.cpu_isa())"
    if python("-c", asked, PA_HP_CPU_ISA=name, check=False).stdout.split() != [name]:
        pytest.skip("this machine has it not")
    result = python(
        "-c",
        """
        import sys
        import pytest
        wanted = "matches_reference or lone or thread_count or layout_of or dead or special"
        sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "test_decode.py", "-k", wanted]))
        """,
        PA_HP_CPU_ISA=name,
    )
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > len(CASES)


@pytest.fixture
def amx():
    if pa_hp.build.cpu_isa() != "amx_bf16":
        pytest.skip("this machine has no AMX, or PA_HP_CPU_ISA says otherwise")


@pytest.mark.usefixtures("amx")
def test_amx_shapes_of_the_caller_stay(compile_library, set_threads):
    """Others compute with these registers too, and set their shapes once for many products."""
    tiles = compile_library(ROOT / "tests/cpu/tile_shapes.cpp")
    inputs = make(named("group_16", torch.bfloat16))
    set_threads(1)
    decode(*inputs)
    assert tiles.rows() == 0
    tiles.set_shapes(5)
    decode(*inputs)
    assert tiles.rows() == 5


@pytest.mark.usefixtures("amx")
def test_amx_is_refused_beside_a_small_signal_stack(python):
    text = """
        import ctypes
        import pa_hp
        from pa_hp.bench.cases import make, named

        class Stack(ctypes.Structure):
            _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

        room = ctypes.create_string_buffer(8192)
        stack = Stack(ctypes.addressof(room), 0, 8192)
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
        try:
            pa_hp.decode(*make(named("one_token")))
            print(pa_hp.build.cpu_isa())
        except RuntimeError as error:
            print(error)
        """
    assert python("-c", text).stdout.split() == ["avx512_bf16"]
    refused = python("-c", text, PA_HP_CPU_ISA="amx_bf16").stdout
    assert "got amx_bf16; where the machine has AMX, no thread may have an alternate" in refused


def test_unknown_instruction_set_is_an_error(python):
    result = python(
        "-c",
        """
        import pa_hp
        from pa_hp.bench.cases import make, named
        for _ in range(2):  # a failed choice is not remembered as made
            try:
                pa_hp.decode(*make(named("one_token")))
            except RuntimeError as error:
                print(error)
        try:
            pa_hp.build.cpu_isa()
        except pa_hp.BuildError as error:
            print(error)
        """,
        PA_HP_CPU_ISA="mmx",
    )
    message = (
        "pa_hp: expected PA_HP_CPU_ISA to name an instruction set of this machine "
        "(baseline, avx2, avx512, avx512_bf16, amx_bf16, neon_bf16), got mmx"
    )
    asked = (
        "pa_hp: expected PA_HP_CPU_ISA to name an instruction set of this machine, got 'mmx'; "
        "unset it to have the best one"
    )
    assert result.stdout.splitlines() == [message, message, asked], result.stderr


def _special(name, poke):
    return pytest.param(poke, id=name)


def _first_key(inputs):
    return inputs.key_cache[inputs.block_table[0, 0], 1]


def _first_value(inputs):
    return inputs.value_cache[inputs.block_table[0, 0], 1]


def _last_value(inputs):
    token = int(inputs.seq_lens[0]) - 1
    return inputs.value_cache[inputs.block_table[0, token // 16], token % 16]


def _nan_low_bits(like):
    """A NaN whose payload is in the bits that others leave 0."""
    word = {2: torch.int16, 4: torch.int32}[like.itemsize]
    return (torch.full_like(like[0, 0, :1], torch.nan).view(word) + 1).view(like.dtype)


SPECIAL = [
    _special("query_nan", lambda i: i.query[0, 1, 3:4].fill_(torch.nan)),
    _special("query_inf", lambda i: i.query[0, 1, 3:4].fill_(torch.inf)),
    _special("key_nan", lambda i: _first_key(i)[0, 3:4].fill_(torch.nan)),
    _special("key_nan_low_bits", lambda i: _first_key(i)[0, 3:4].copy_(_nan_low_bits(i.query))),
    _special("key_inf", lambda i: _first_key(i)[0, 3:4].fill_(torch.inf)),
    _special("key_row_minus_inf", lambda i: _first_key(i)[0].fill_(-torch.inf)),
    _special("value_nan", lambda i: _first_value(i)[0, 3:4].fill_(torch.nan)),
    _special("value_inf", lambda i: _first_value(i)[0, 3:4].fill_(torch.inf)),
    _special("value_minus_inf", lambda i: _first_value(i)[1, 5:9].fill_(-torch.inf)),
    _special("last_value_inf", lambda i: _last_value(i)[0, 3:4].fill_(torch.inf)),
    _special("value_both_inf", lambda i: (
        _first_value(i)[0, 3:4].fill_(torch.inf),
        i.value_cache[i.block_table[0, 0], 2, 0, 3:4].fill_(-torch.inf),
    )),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [6, 38])
@pytest.mark.parametrize("poke", SPECIAL)
def test_special_values_in_live_data(poke, heads, dtype):
    """What is not finite in a live slot shows where the reference shows it, and nowhere else."""
    case = DecodeCase("special", (301, 40), heads=heads, kv_heads=2, dtype=dtype)
    inputs = make(case)
    poke(inputs)
    want, want_lse = pa_hp.reference(*inputs)
    out, lse = decode_lse(*inputs)
    assert not want.isfinite().all() or not want_lse.isfinite().all()
    check_out(case, inputs, out, want)
    # A score of +inf: log-sum-exp in one piece says inf; an online softmax meets inf - inf, NaN.
    want_lse[want_lse == torch.inf] = torch.nan
    lse[lse == torch.inf] = torch.nan
    check_lse(case, inputs, lse, want_lse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [6, 38])
@pytest.mark.parametrize("cache", ["key_cache", "value_cache"])
def test_special_values_leave_the_bits_of_other_kv_heads(cache, heads, dtype):
    inputs = make(DecodeCase("special", (301, 40), heads=heads, kv_heads=2, dtype=dtype))
    before = pa_hp.decode(*inputs)
    getattr(inputs, cache)[inputs.block_table[0, 0], 1, 0, 3:4] = torch.inf
    out = pa_hp.decode(*inputs)
    assert not out[0, : heads // 2].isfinite().all()
    assert torch.equal(out[0, heads // 2 :], before[0, heads // 2 :])
    assert torch.equal(out[1], before[1])


@pytest.mark.parametrize("heads", [6, 38])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_by_minus_inf_special_values(heads, dtype):
    """A key of -inf against a positive query is a token with weight 0; the rest stays finite."""
    case = DecodeCase("masked", (600, 40, 3), heads=heads, kv_heads=2, dtype=dtype)
    inputs = make(case)
    inputs.query.abs_().add_(0.1)
    for token in (0, 7, 152, 256, 299):  # chunks of 256 or 152
        inputs.key_cache[inputs.block_table[0, token // 16], token % 16] = -torch.inf
    inputs.key_cache[inputs.block_table[1, 0]] = -torch.inf  # a whole block
    inputs.key_cache[inputs.block_table[2, 0], :3] = -torch.inf  # a whole sequence
    want, want_lse = pa_hp.reference(*inputs)
    assert want[:2].isfinite().all() and want[2].isnan().all()
    out, lse = decode_lse(*inputs)
    check_out(case, inputs, out, want)
    check_lse(case, inputs, lse, want_lse)


def test_no_chunk_of_weight_zero_hides_the_rest():
    """Chunks whose scores are all -inf, before, between and after chunks that are not."""
    case = DecodeCase("hidden_chunks", (1100,), heads=2, kv_heads=1)
    inputs = make(case)
    inputs.query.abs_().add_(0.1)
    keys = inputs.key_cache[inputs.block_table[0, :69].long()]
    for begin, end in ((0, 256), (512, 768), (1024, 1100)):
        keys.view(-1, 64)[begin:end] = -torch.inf
    inputs.key_cache[inputs.block_table[0, :69].long()] = keys
    want, want_lse = pa_hp.reference(*inputs)
    out, lse = decode_lse(*inputs)
    assert want.isfinite().all()
    check_out(case, inputs, out, want)
    check_lse(case, inputs, lse, want_lse)


def test_float16_rounding_and_range():
    """Ties go to even, subnormal results keep their bits, what is too large becomes infinite."""
    values = torch.tensor([2049.0, 2051.0, 6e-8, 3e-8, 65504.0, -65504.0, 1e-4, 0.0])
    case = DecodeCase("rounding", (1,), heads=1, kv_heads=1, head_dim=8, dtype=torch.float16)
    inputs = make(case)
    stored = values.half()
    inputs.value_cache[inputs.block_table[0, 0], 0, 0] = stored
    assert bits(decode(*inputs)[0, 0]) == bits(stored)
    # The mean of two neighbours with equal weights: the tie goes to the even one.
    pair = DecodeCase("pair", (2,), heads=1, kv_heads=1, head_dim=8, dtype=torch.float16, scale=0.0)
    inputs = make(pair)
    low = torch.tensor([1.0, 1.0009765625, 6e-8, 2.0, 1024.0, 1025.0, -1.0, 0.0]).half()
    high = torch.nextafter(low, torch.full_like(low, torch.inf))
    inputs.value_cache[inputs.block_table[0, 0], 0, 0] = low
    inputs.value_cache[inputs.block_table[0, 0], 1, 0] = high
    want = ((low.double() + high.double()) / 2).half()
    assert bits(decode(*inputs, scale=0.0)[0, 0]) == bits(want)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the switch is glibc's")
@pytest.mark.skipif(
    "PA_HP_SANITIZE" in os.environ, reason="a sanitizer's malloc has no such switch"
)
def test_memory_serves_the_next_call(python):
    """Where large blocks are had from the system anew, calls after the first have no page faults.

    Except for what is too large to be kept: the states of 2048 chunks of 32 heads take 34 MB. And
    once for each page, where a thread that was busy elsewhere takes a share late: of 4096 tokens
    the scratch of two workers, 110 KB each, and the states of 16 chunks, 17 KB each, 122 pages.
    """
    script = """
        import resource, torch, pa_hp

        def faults(tokens, calls):
            torch.set_num_threads(2)
            cache = torch.zeros(1, 128, 8, 128)
            table = torch.zeros(1, tokens // 128, dtype=torch.int32)
            lengths = torch.tensor([tokens], dtype=torch.int32)
            inputs = torch.zeros(1, 32, 128), cache, cache, table, lengths
            out = torch.zeros(1, 32, 128)
            for _ in range(3):
                pa_hp.decode_out(*inputs, out=out)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(calls):
                pa_hp.decode_out(*inputs, out=out)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        print(faults(4096, 50), faults(2048 * 256, 4), faults(4096, 50))
    """
    kept, large, again = python("-c", script, MALLOC_MMAP_THRESHOLD_="65536").stdout.split()
    assert int(kept) <= 122 and int(again) <= 122, (kept, again)
    assert int(large) > 64, large  # four calls, each 34 MB in pages of 2 MiB at most
