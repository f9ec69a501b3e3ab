"""Data movement of the simulator against plain models over bytes."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pa_hp import sim

HERE = Path(__file__).parent
BLOCK = 32
UB_IMAGE = 1024 * BLOCK
L1_IMAGE = 2048 * BLOCK
GM_BYTES = 1 << 17
MANY = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def vector():
    return sim.Kernel(HERE / "move_vector.cce", "move_vector", cores="aiv")


@pytest.fixture(scope="module")
def cube():
    return sim.Kernel(HERE / "move_cube.cce", "move_cube", cores="aic")


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 255, count, dtype=np.uint8)


def run(kernel, numbers, image_bytes, image=None, gm=None):
    """Launches; returns GM and local memory after it, and the report."""
    words = torch.zeros(16, dtype=torch.int32)
    words[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64).to(torch.int32)
    gm = noise(GM_BYTES) if gm is None else gm
    gm = torch.from_numpy(gm.copy())
    local = torch.from_numpy(
        (np.full(image_bytes, 0xFF, np.uint8) if image is None else image).copy()
    )
    report = kernel.launch(1, words, gm, local)
    return gm.numpy(), local.numpy(), report


def bursts(target, source, at, start, count, length, to_step, from_step):
    for i in range(count):
        target[at + i * to_step :][:length] = source[start + i * from_step :][:length]


# ---- Blocks -------------------------------------------------------------------------------------

small = st.tuples(
    st.integers(0, 12), st.integers(0, 12), st.integers(0, 9), st.integers(0, 9), st.integers(0, 99)
)


@MANY
@given(small, st.integers(0, 63))
def test_blocks_into_ub(vector, numbers, offset):
    count, length, from_gap, to_gap, at = numbers
    _, ub, report = run(
        vector, [0, 1, offset, at * BLOCK, count, length, from_gap, to_gap], UB_IMAGE
    )
    want = np.full(UB_IMAGE, 0xFF, np.uint8)
    steps = (length + to_gap) * BLOCK, (length + from_gap) * BLOCK
    bursts(want, noise(GM_BYTES), at * BLOCK, offset, count, length * BLOCK, *steps)
    assert report.hazards == []
    np.testing.assert_array_equal(ub, want)


@MANY
@given(small, st.integers(0, 63))
def test_blocks_out_of_ub(vector, numbers, offset):
    count, length, from_gap, to_gap, at = numbers
    image = noise(UB_IMAGE, 1)
    numbers = [1, 1, offset, at * BLOCK, count, length, from_gap, to_gap]
    gm, _, report = run(vector, numbers, UB_IMAGE, image)
    want = noise(GM_BYTES)
    steps = (length + to_gap) * BLOCK, (length + from_gap) * BLOCK
    bursts(want, image, offset, at * BLOCK, count, length * BLOCK, *steps)
    assert report.hazards == []
    np.testing.assert_array_equal(gm, want)


@MANY
@given(small)
def test_blocks_within_ub(vector, numbers):
    count, length, from_gap, to_gap, at = numbers
    image = noise(UB_IMAGE, 1)
    to = 512 * BLOCK + at * BLOCK
    _, ub, _ = run(vector, [2, 1, at, to, count, length, from_gap, to_gap], UB_IMAGE, image)
    want = image.copy()
    start = at // BLOCK * BLOCK
    if start == at:
        steps = (length + to_gap) * BLOCK, (length + from_gap) * BLOCK
        bursts(want, image, to, at, count, length * BLOCK, *steps)
        np.testing.assert_array_equal(ub, want)


@MANY
@given(small, st.booleans(), st.integers(0, 63))
def test_blocks_of_l1(cube, numbers, store, offset):
    count, length, from_gap, to_gap, at = numbers
    image = noise(L1_IMAGE, 1)
    numbers = [int(store), 1, offset, at * BLOCK, count, length, from_gap, to_gap]
    gm, l1, report = run(cube, numbers, L1_IMAGE, image)
    steps = (length + to_gap) * BLOCK, (length + from_gap) * BLOCK
    want = [noise(GM_BYTES), image.copy()]
    if store:
        bursts(want[0], image, offset, at * BLOCK, count, length * BLOCK, *steps)
    else:
        bursts(want[1], want[0], at * BLOCK, offset, count, length * BLOCK, *steps)
    assert report.hazards == []
    np.testing.assert_array_equal(gm, want[0])
    np.testing.assert_array_equal(l1, want[1])


# ---- Bytes --------------------------------------------------------------------------------------


@MANY
@given(
    st.integers(0, 2), st.integers(0, 9), st.integers(0, 90), st.integers(0, 50),
    st.integers(0, 5), st.integers(0, 31), st.integers(0, 31), st.integers(0, 2**31 - 1),
    st.integers(0, 99),
)  # fmt: skip
def test_bytes_into_ub(vector, power, count, elements, gap, to_gap, left, right, pad, offset):
    size = 1 << power
    left, right = left // size, right // size
    length = elements * size
    numbers = [3 + power, 1, offset, 96, count, length, gap, to_gap, left, right, pad]
    _, ub, report = run(vector, numbers, UB_IMAGE)
    want = np.full(UB_IMAGE, 0xFF, np.uint8)
    source = noise(GM_BYTES)
    lane = np.frombuffer(pad.to_bytes(4, "little"), np.uint8)[:size]
    slot = -(-(left * size + length + right * size) // BLOCK) * BLOCK
    for i in range(count if length else 0):
        piece = source[offset + i * (length + gap) :][:length]
        row = np.concatenate([np.tile(lane, left), piece, np.tile(lane, right)])
        want[96 + i * (slot + to_gap * BLOCK) :][: len(row)] = row
    # What fills a slot behind the padding is unspecified, and this kernel stores it.
    assert [f for f in report.hazards if f.kind != "uninitialised"] == []
    np.testing.assert_array_equal(ub, want)


@MANY
@given(
    st.integers(0, 2), st.integers(0, 9), st.integers(0, 90), st.integers(0, 50),
    st.integers(0, 5), st.integers(0, 99),
)  # fmt: skip
def test_bytes_out_of_ub(vector, power, count, elements, gap, from_gap, offset):
    length = elements << power
    image = noise(UB_IMAGE, 1)
    numbers = [6 + power, 1, offset, 96, count, length, from_gap, gap]
    gm, _, report = run(vector, numbers, UB_IMAGE, image)
    want = noise(GM_BYTES)
    step = (-(-length // BLOCK) + from_gap) * BLOCK
    bursts(want, image, offset, 96, count, length, length + gap, step)
    assert report.hazards == []
    np.testing.assert_array_equal(gm, want)


# ---- Atomic stores ------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [1, 2, 3])
@pytest.mark.parametrize(
    "number, dtype",
    [(1, torch.float32), (2, torch.float16), (3, torch.bfloat16), (4, torch.int32),
     (5, torch.int16), (6, torch.int8)],
)  # fmt: skip
def test_atomic_stores(vector, operation, number, dtype):
    generator = torch.Generator().manual_seed(number)
    old, new = (torch.randn(256, generator=generator) * 50 for _ in range(2))
    old, new = old.to(dtype), new.to(dtype)
    image, gm = np.zeros(UB_IMAGE, np.uint8), np.zeros(GM_BYTES, np.uint8)
    raw = new.view(torch.uint8).numpy()
    image[: len(raw)] = raw
    gm[: len(raw)] = old.view(torch.uint8).numpy()
    numbers = [1, 1, 0, 0, 1, len(raw) // BLOCK, 0, 0, 0, 0, 0, operation, number]
    got, _, _ = run(vector, numbers, UB_IMAGE, image, gm)
    function = [torch.add, torch.maximum, torch.minimum][operation - 1]
    want = function(old, new).view(torch.uint8).numpy()
    np.testing.assert_array_equal(got[: len(raw)], want)


# ---- Row-major to NZ ----------------------------------------------------------------------------


def nz_model(l1, gm, at, start, size, matrices, rows, columns, matrix_step, pitch, c0, row, matrix):
    per = BLOCK // size
    for q in range(matrices):
        for r in range(rows):
            for c in range(-(-columns // per)):
                block = np.zeros(BLOCK, np.uint8)
                first = start + (q * matrix_step + r * pitch + c * per) * size
                have = min(per, columns - c * per) * size
                block[:have] = gm[first:][:have]
                l1[at + q * matrix * size + (c * c0 + r * row) * BLOCK :][:BLOCK] = block


@MANY
@given(
    st.sampled_from([(2, 1), (3, 2), (4, 2), (5, 4)]), st.integers(0, 3), st.integers(0, 20),
    st.integers(0, 70), st.integers(0, 90), st.integers(0, 80), st.integers(0, 20),
    st.integers(1, 3), st.integers(0, 64),
)  # fmt: skip
def test_nd2nz(cube, kind, matrices, rows, columns, matrix_step, pitch, extra, row, offset):
    which, size = kind
    c0 = rows * row + extra  # columns of blocks do not overlap
    per = BLOCK // size
    matrix = (c0 * -(-columns // per) + extra) * per
    if c0 * -(-columns // per) * matrices > 1500:
        matrices = 1
    numbers = [which, 1, offset, 64, matrices, rows, columns, matrix_step, pitch, c0, row, matrix]
    _, l1, report = run(cube, numbers, L1_IMAGE)
    want = np.full(4 * L1_IMAGE, 0xFF, np.uint8)
    nz_model(want, noise(GM_BYTES), 64, offset, size, matrices, rows, columns, matrix_step, pitch,
             c0, row, matrix)  # fmt: skip
    assert [f for f in report.hazards if f.kind != "WAW"] == []
    np.testing.assert_array_equal(l1, want[:L1_IMAGE])


def test_nd2nz_of_a_cache_block(cube):
    numbers = [3, 1, 0, 0, 1, 100, 128, 0, 500, 112, 1, 0]
    _, l1, report = run(cube, numbers, L1_IMAGE)
    want = np.full(L1_IMAGE, 0xFF, np.uint8)
    nz_model(want, noise(GM_BYTES), 0, 0, 2, 1, 100, 128, 0, 500, 112, 1, 0)
    assert report.hazards == []
    np.testing.assert_array_equal(l1, want)


# ---- Fills --------------------------------------------------------------------------------------


@MANY
@given(
    st.booleans(), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 999)
)  # fmt: skip
def test_fill_of_l1(cube, wide, repeat, blocks, gap, value):
    numbers = [6 if wide else 7, 1, 0, 32, repeat, blocks, gap, value]
    _, l1, report = run(cube, numbers, L1_IMAGE)
    want = np.full(L1_IMAGE, 0xFF, np.uint8)
    one = np.array([value], np.uint32) if wide else np.array([value], np.float16)
    row = np.tile(one.view(np.uint8), blocks * BLOCK // one.nbytes)
    for i in range(repeat):
        want[32 + i * (blocks + gap) * BLOCK :][: len(row)] = row
    assert report.hazards == []
    np.testing.assert_array_equal(l1, want)


# ---- Findings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "half, numbers, kind, text",
    [
        ("cube", [3, 0, 0, 0, 1, 1, 16, 0, 65536, 16, 1, 0], "argument out of range",
         "srcDValue is 65536, which does not fit in its 16 bits"),
        ("cube", [3, 0, 0, 0, 1, 16385, 1, 0, 0, 0, 0, 0], "argument out of range",
         "nValue is 16385"),
        ("cube", [3, 0, 0, 16, 1, 1, 16, 0, 0, 1, 1, 0], "misaligned", "address 16 in L1"),
        ("cube", [0, 0, 0, 512 * 1024, 1, 1, 0, 0], "out of bounds", "which has 524288 bytes"),
        ("cube", [0, 0, GM_BYTES, 0, 1, 1, 0, 0], "out of bounds", "argument 1"),
        ("vector", [0, 0, 0, 0, 4096, 0, 0, 0], "argument out of range", "nBurst is 4096"),
        ("vector", [0, 0, 0, 0, 65536, 0, 0, 0], "argument out of range", "does not fit"),
        ("vector", [0, 0, 0, 8, 1, 1, 0, 0], "misaligned", "address 8 in UB"),
        ("vector", [1, 1, 0, 192 * 1024 - 32, 1, 2, 0, 0], "out of bounds", "reads"),
        ("vector", [3, 0, 0, 0, 1, 8, 0, 0, 33, 0], "argument out of range",
         "left padding is 33"),
        ("vector", [3, 0, 0, 0, 1, 8, 0, 0, 256, 0], "argument out of range",
         "leftPaddingNum is 256"),
        ("vector", [3, 0, 0, 0, 1, 2097152, 0, 0, 0, 0], "argument out of range", "lenBurst"),
        ("vector", [8, 1, 0, 0, 1, 8, 0, 0, 1], "stopped", "is not modelled"),
        ("cube", [8, 0, 0, 0, 1, 1, 0, 0], "stopped", "copy_gm_to_cbuf with padding"),
        ("cube", [9, 0, 0, 0], "stopped", "copy_cbuf_to_bt"),
    ],
)  # fmt: skip
def test_findings(request, half, numbers, kind, text):
    kernel = request.getfixturevalue(half)
    image_bytes = L1_IMAGE if half == "cube" else UB_IMAGE
    image = np.zeros(image_bytes, np.uint8) if numbers[1] else None
    _, _, report = run(kernel, numbers, image_bytes, image)
    assert any(f.kind == kind and text in f.message for f in report.hazards), report.hazards


# ---- What must not compile ----------------------------------------------------------------------

WRONG = [
    "copy_gm_to_ubuf(x, ub, 0, 1, 1, 0, 0);",  # order
    "copy_gm_to_ubuf(ub, x, 0, 1, 1, 0);",  # one argument short
    "copy_gm_to_ubuf(l1, x, 0, 1, 1, 0, 0);",  # another memory
    "copy_gm_to_ubuf(ub, x, 0, 1.5, 1, 0, 0);",  # not an integer
    "copy_gm_to_cbuf(l1, x, 0, 1, 1, 0, 0);",  # no pad mode
    "copy_gm_to_cbuf_multi_nd2nz_b16(l1, x, 0, 1, 1, 1, 1, 1, 1, 1, 1);",  # bytes
    "load_cbuf_to_ca(b, h1, 0, 1, 1, 0, 0, false, inc);",  # L0B for L0A
    "mad(c, a, b, 16, 16, 16, 0, false, false);",
    "mad(a, a, b, 16, 16, 16, 0, false, false, true);",  # C in L0A
    "copy_matrix_cc_to_gm(x, c, 0, 16, 16, 16, 16, 0, 1, 0, false, true);",  # no QuantMode_t
]
RIGHT = [
    "copy_gm_to_ubuf(ub, x, 0, 1, 1, 0, 0);",
    "load_cbuf_to_ca(a, h1, 0, 1, 1, 0, 0, false, inc);",
    "load_cbuf_to_cb(b, h1, 0, 1, 1, 0, false);",
    "mad(c, a, b, 16, 16, 16, 0, false, false, true);",
    "copy_matrix_cc_to_gm(f, c, 0, 16, 16, 16, 16, 0, NoQuant, 0, false, true);",
    "dcci(x, SINGLE_CACHE_LINE, CACHELINE_OUT);",
]


def compiles(clang, statements, tmp_path):
    source = tmp_path / "probe.cpp"
    source.write_text(
        "void probe(__gm__ uint8_t* x, __gm__ float* f, __ubuf__ float* ub, __cbuf__ uint8_t* l1,\n"
        "           __cbuf__ half* h1, __ca__ half* a, __cb__ half* b, __cc__ float* c) {\n"
        "  (void)x, (void)f, (void)ub, (void)l1, (void)h1, (void)a, (void)b, (void)c;\n"
        + "\n".join(f"#ifdef CASE_{i}\n{s}\n#endif" for i, s in enumerate(statements))
        + "\n}\n"
    )

    def one(i):
        include = Path(sim.__file__).parent / "include"
        command = [clang, "-std=c++17", "-fsyntax-only", "-DPA_SIM_STRICT", f"-DCASE_{i}"]
        command += [f"-I{include}", "-include", "cce.h", str(source)]
        return subprocess.run(command, capture_output=True).returncode == 0

    return [one(i) for i in range(len(statements))]


def test_only_the_right_types_compile(clang, tmp_path):
    assert compiles(clang, RIGHT + WRONG, tmp_path) == [True] * len(RIGHT) + [False] * len(WRONG)
