"""Cube builtins of the simulator against plain models over matrices."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pa_hp import sim

HERE = Path(__file__).parent
L1_IMAGE = 128 * 1024
OUT_BYTES = 1 << 20
HALF, BF16, FLOAT, INT8 = range(4)
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.int8]
MANY = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def ops():
    return sim.Kernel(HERE / "cube_ops.cce", "cube_ops", cores="aic")


def raw(tensor):
    return tensor.contiguous().view(torch.uint8).flatten()


def per(kind):  # elements of a 32-byte row
    return 32 // TYPES[kind].itemsize


def run(ops, numbers, l1, kind=HALF, fill=0):
    words = torch.zeros(16, dtype=torch.int64)
    words[: len(numbers)] = torch.tensor(numbers)
    words[1] = kind
    image = torch.zeros(L1_IMAGE, dtype=torch.uint8)
    image[: len(l1)] = l1
    rows = 32 if kind == INT8 else 16
    eye = torch.zeros(4096, dtype=torch.uint8)
    unit = raw(torch.eye(rows, per(kind)).to(TYPES[kind]))
    eye[: len(unit)] = unit
    out = torch.full((OUT_BYTES,), fill, dtype=torch.uint8)
    report = ops.launch(1, words.to(torch.int32), image, eye, out)
    return out, report


def values(kind, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == INT8:
        return torch.randint(-128, 128, (count,), generator=generator).to(torch.int8)
    # Multiples of 1/16 below 8: exact in every type, and so are their products' sums.
    return (torch.randint(-127, 128, (count,), generator=generator) / 16).to(TYPES[kind])


# ---- Loads --------------------------------------------------------------------------------------


def seen(out, kind, load_b, fractals):
    """Fractals of L0A or L0B as the dump shows them: 16 rows of per(kind)."""
    rows = 32 if kind == INT8 else 16
    dtype = torch.int32 if kind == INT8 else torch.float32
    matrices = out[: fractals * 16 * rows * 4].view(dtype)
    if load_b:
        matrices = matrices.view(fractals, rows, 16).transpose(1, 2)
    else:
        matrices = matrices.view(fractals, 16, rows)
    return matrices[:, :, : per(kind)].double().numpy()


def check_loads(ops, numbers, kind, want):
    """`want`: fractal index -> matrix."""
    fractals = max(want, default=-1) + 1
    numbers = numbers + [0] * (9 - len(numbers)) + [fractals]
    data = values(kind, 120 * 16 * per(kind))
    out, report = run(ops, numbers, raw(data), kind)
    # The dump shows the gaps between fractals too, which nothing wrote.
    assert [f for f in report.hazards if f.kind != "uninitialised"] == []
    got = seen(out, kind, numbers[0] % 2 == 1, fractals)
    for index, matrix in want.items():
        np.testing.assert_array_equal(got[index], matrix)


def fractals_of(kind):
    return values(kind, 120 * 16 * per(kind)).double().numpy().reshape(120, 16, per(kind))


@MANY
@given(
    st.sampled_from([0, 1, 4, 5]), st.integers(0, 3), st.integers(0, 8), st.integers(0, 8),
    st.integers(0, 9), st.integers(0, 4), st.booleans(), st.booleans(),
)  # fmt: skip
def test_loads(ops, which, kind, base, repeat, stride, gap, transpose, decrement):
    transpose = transpose and kind in (HALF, BF16) and which < 2
    if decrement:
        base += 8 * stride
    source = fractals_of(kind)
    want = {}
    for i in range(repeat):
        tile = source[base + (-i if decrement else i) * stride]
        want[i * (gap + 1)] = tile.T if transpose else tile
    numbers = [which, 0, base, repeat, stride, gap, int(transpose), int(decrement)]
    check_loads(ops, numbers, kind, want)


@MANY
@given(
    st.sampled_from([6, 7]), st.sampled_from([HALF, BF16, INT8]), st.integers(0, 8),
    st.integers(0, 8), st.integers(0, 9), st.booleans(),
)  # fmt: skip
def test_short_loads(ops, which, kind, base, repeat, stride, transpose):
    transpose = transpose and kind != INT8
    source = fractals_of(kind)
    tiles = [source[base + i * stride] for i in range(repeat)]
    want = {i: tile.T if transpose else tile for i, tile in enumerate(tiles)}
    check_loads(ops, [which, 0, base, repeat, stride, 0, int(transpose)], kind, want)


@MANY
@given(
    st.sampled_from([2, 3]), st.integers(0, 3), st.integers(0, 4), st.integers(0, 5),
    st.integers(0, 6), st.integers(0, 3), st.booleans(), st.integers(0, 3),
)  # fmt: skip
def test_transposing_loads(ops, which, kind, base, repeat, stride, gap, decrement, fractal_gap):
    if decrement:
        base += 5 * stride
    source = fractals_of(kind)
    want = {}
    for i in range(repeat):
        at = base + (-i if decrement else i) * stride
        first = i * (gap + 1)
        if kind in (HALF, BF16):
            want[first] = source[at].T
            continue
        pair = source[2 * at], source[2 * at + 1]
        if kind == INT8:
            upper, lower = np.split(np.concatenate(pair, axis=0).T, 2, axis=0)
        else:
            upper, lower = np.split(np.concatenate(pair, axis=1).T, 2, axis=1)
        # Within one operation fractals of different repeats may not meet.
        if {first, first + fractal_gap + 1} & set(want):
            return
        want[first], want[first + fractal_gap + 1] = upper, lower
    numbers = [which, 0, base, repeat, stride, gap, 0, int(decrement), fractal_gap]
    check_loads(ops, numbers, kind, want)


# ---- mad and fixpipe ----------------------------------------------------------------------------


def tiles_a(matrix, kind, align):
    """The layout of A in L0A: fractals row by row, rows inside. A vector stays as it is."""
    m, k = matrix.shape
    if m == 1:
        return matrix.flatten()
    depth = per(kind) * (2 if align and kind == FLOAT else 1)
    padded = torch.full((-(-m // 16) * 16, -(-k // depth) * depth), 77.0).to(matrix.dtype)
    padded[:m, :k] = matrix
    return padded.view(padded.shape[0] // 16, 16, -1, per(kind)).transpose(1, 2).flatten()


def tiles_b(matrix, kind):
    """The layout of B in L0B: fractals row by row, columns inside."""
    k, n = matrix.shape
    padded = torch.full((-(-k // per(kind)) * per(kind), -(-n // 16) * 16), 55.0).to(matrix.dtype)
    padded[:k, :n] = matrix
    return padded.view(-1, per(kind), padded.shape[1] // 16, 16).permute(0, 2, 3, 1).flatten()


def product(ops, kind, m, k, n, how=0, align=False, times=1, pitch=None, relu=0, rows=None,
            columns=None, unit=0, unordered=0, source_matrix=0, matrix=0, fill=0):  # fmt: skip
    a = values(kind, m * k, 1).view(m, k)
    b = values(kind, k * n, 2).view(k, n)
    l1 = torch.zeros(L1_IMAGE, dtype=torch.uint8)
    parts = raw(tiles_a(a, kind, align)), raw(tiles_b(b, kind))
    l1[: len(parts[0])] = parts[0]
    l1[65536 : 65536 + len(parts[1])] = parts[1]
    columns = n if columns is None else columns
    rows = m if rows is None else rows
    pitch = columns if pitch is None else pitch
    numbers = [8, 0, m, k, n, int(align), times, how, pitch, relu, rows, columns, unit, unordered,
               source_matrix, matrix]  # fmt: skip
    out, report = run(ops, numbers, l1, kind, fill)
    want = a.double() @ b.double() * times
    return (want.clamp(min=0) if relu else want), out, report


def rows_of(out, dtype, rows, columns, pitch):
    count = (rows - 1) * pitch + columns
    flat = out[: count * dtype.itemsize].view(dtype).double()
    return torch.stack([flat[i * pitch : i * pitch + columns] for i in range(rows)])


@MANY
@given(
    st.integers(0, 3), st.sampled_from([1, 2, 4, 15, 16, 17, 33]), st.integers(1, 130),
    st.integers(1, 66), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 9),
)  # fmt: skip
def test_mad(ops, kind, m, k, n, times, align, relu, extra):
    if kind == FLOAT:
        k = min(k, 96)
    want, out, report = product(ops, kind, m, k, n, align=align, times=times, relu=int(relu),
                                pitch=n + extra)  # fmt: skip
    assert report.hazards == []
    dtype = torch.int32 if kind == INT8 else torch.float32
    assert torch.equal(rows_of(out, dtype, m, n, n + extra), want)
    gap = out[: m * (n + extra) * 4].view(m, n + extra, 4)[:, n:]
    assert not gap.any()  # nothing between the rows


def columns_of(out, dtype, rows, columns, width, pitch):
    """An NZ matrix: columns of `width`, `pitch` times 32 bytes apart."""
    parts = []
    for j in range(columns // width):
        piece = out[j * pitch * 32 :][: rows * width * dtype.itemsize]
        parts.append(piece.view(dtype).view(rows, width))
    return torch.cat(parts, dim=1).double()


CAST = [torch.float32, torch.float16, torch.bfloat16, torch.float32, torch.float16,
        torch.float32, torch.float32, torch.float16, torch.float16, torch.bfloat16]  # fmt: skip


@MANY
@given(
    st.integers(0, 9), st.sampled_from([1, 5, 16, 20]), st.integers(1, 4), st.integers(0, 4),
    st.booleans(),
)  # fmt: skip
def test_fixpipe(ops, how, m, blocks, extra, relu):
    n = 16 * blocks
    dtype = CAST[how]
    to_nd = how in (0, 1, 2, 6)
    width = 8 if how == 5 else 16
    pitch = n + extra if to_nd else m * width * dtype.itemsize // 32 + extra
    want, out, report = product(ops, HALF, m, 37, n, how=how, pitch=pitch, relu=int(relu))
    assert report.hazards == []
    got = rows_of(out, dtype, m, n, pitch) if to_nd else columns_of(out, dtype, m, n, width, pitch)
    assert torch.equal(got, want.to(torch.float32).to(dtype).double())


def test_atomic_add_in_gm(ops):
    want, out, report = product(ops, HALF, 5, 20, 24, how=10, pitch=30)
    assert torch.equal(rows_of(out, torch.float32, 5, 24, 30), 3 * want)
    assert report.hazards == []


def test_several_matrices(ops):
    # Two 16x16 fractals of one product, each as a matrix of its own.
    want, out, report = product(ops, HALF, 16, 20, 32, how=11, columns=16, pitch=16,
                                source_matrix=1, matrix=600)  # fmt: skip
    assert report.hazards == []
    assert torch.equal(rows_of(out, torch.float32, 16, 16, 16), want[:, :16])
    assert torch.equal(rows_of(out[600 * 4 :], torch.float32, 16, 16, 16), want[:, 16:])


def test_special_values(ops):
    numbers = [8, 0, 2, 16, 16, 0, 1, 0, 16, 0, 2, 16]
    a, b = torch.zeros(2, 16).half(), torch.zeros(16, 16).half()
    a[0, 0], b[1, 0] = float("inf"), 1
    a[1, 2], a[1, 3], b[2, 5], b[3, 5] = 60000, 60000, 60000, 60000
    l1 = torch.zeros(L1_IMAGE, dtype=torch.uint8)
    l1[:512] = raw(tiles_a(a, HALF, False))
    l1[65536 : 65536 + 512] = raw(tiles_b(b, HALF))
    out, _ = run(ops, numbers, l1)
    got = rows_of(out, torch.float32, 2, 16, 16)
    assert torch.isnan(got[0]).all()  # inf * 0
    assert got[1, 5] == 2 * 60000.0**2  # fp32 sums
    assert got[1, 0] == 0
    numbers[7] = 1  # out as half
    out, _ = run(ops, numbers, l1)
    assert rows_of(out, torch.float16, 2, 16, 16)[1, 5] == float("inf")


# ---- Findings -----------------------------------------------------------------------------------


def test_small_mads_need_a_barrier(ops):
    _, _, report = product(ops, HALF, 16, 16, 16, times=2, unordered=1)
    assert {f.kind for f in report.hazards} & {"RAW", "WAW"}
    _, _, report = product(ops, HALF, 160, 16, 16, times=2, unordered=1)
    assert report.hazards == []


@pytest.mark.parametrize(
    "arguments, kind, text",
    [
        ({"how": 12}, "stopped", "copy_matrix_cc_to_gm with quantisation"),
        ({"how": 13}, "stopped", "copy_matrix_cc_to_gm with a unit flag"),
        ({"unit": 3}, "stopped", "mad with a unit flag"),
        ({"relu": 3}, "stopped", "relu"),
        ({"how": 3, "columns": 24, "pitch": 32}, "argument out of range", "NSize is 24"),
        ({"columns": 4096}, "argument out of range", "NSize is 4096"),
        ({"rows": 65537}, "argument out of range", "MSize is 65537"),
        ({"pitch": 1 << 19}, "out of bounds", "argument 3"),
    ],
)
def test_findings(ops, arguments, kind, text):
    _, _, report = product(ops, HALF, 16, 16, 32, **arguments)
    assert any(f.kind == kind and text in f.message for f in report.hazards), report.hazards


def test_load_findings(ops):
    data = raw(values(HALF, 512))
    for numbers, kind, text in [
        ([0, 0, 0, 256, 1, 0], "argument out of range", "repeat is 256"),
        ([0, 0, 0, 2, 65536, 0], "argument out of range", "srcStride is 65536"),
        ([0, 0, 1023, 2, 1, 0], "out of bounds", "reads"),
        ([1, 0, 0, 2, 1, 127], "out of bounds", "writes"),
    ]:
        _, report = run(ops, numbers, data)
        assert any(f.kind == kind and text in f.message for f in report.hazards), report.hazards
    _, report = run(ops, [0, 0, 0, 1, 1, 0, 1], data, kind=FLOAT)
    assert "is not modelled" in report.hazards[0].message
