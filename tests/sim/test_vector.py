"""Vector builtins of the simulator against plain numpy models of the documented semantics."""

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
IMAGE = 4096 * BLOCK
DST, SRC0, SRC1 = 0, 0x8000, 0x10000
DTYPES = {
    "float": np.float32,
    "half": np.float16,
    "bfloat16_t": np.uint16,
    "int32_t": np.int32,
    "uint32_t": np.uint32,
    "int16_t": np.int16,
    "uint16_t": np.uint16,
    "int8_t": np.int8,
    "uint8_t": np.uint8,
}
MANY = settings(max_examples=60, deadline=None, derandomize=True)
FULL = (False, 2**64 - 1, 2**64 - 1)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def kernel():
    return sim.Kernel(HERE / "vector.cce", "vector", cores="aiv")


def size_of(name):
    return np.dtype(DTYPES[name]).itemsize


def launch(kernel, what, image, *, repeat=1, blocks=(1, 1, 1), repeats=(8, 8, 8), at=None, x=0,
           mask=FULL, compare=-1, deq=(False, 0), option=0, soc=None):  # fmt: skip
    """UB after the builtin, what it left in registers, and the report."""
    hash_ = 2166136261
    for byte in what.encode():
        hash_ = (hash_ ^ byte) * 16777619 % 2**32
    counted, low, high = mask
    words = [hash_, *(at or (DST, SRC0, SRC1)), repeat, *blocks, *repeats, x, counted, low, high]
    words += [compare, *deq, 0, option]
    a = torch.tensor([w - 2**64 if w >= 2**63 else w for w in words], dtype=torch.int64)
    ub = torch.from_numpy(image.copy())
    out = torch.zeros(3, dtype=torch.int64)
    report = kernel.launch(1, a, ub, out, soc=soc)
    return ub.numpy(), out.tolist(), report


def noise(type_, seed, scale=4.0):
    """An image full of values of one type, ordinary and special."""
    random = np.random.default_rng(seed)
    dtype = DTYPES[type_]
    count = IMAGE // np.dtype(dtype).itemsize
    if np.issubdtype(dtype, np.floating) or type_ == "bfloat16_t":
        values = (random.standard_normal(count) * scale).astype(np.float32)
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 6e-8, 65504, 65519.9, 70000, 0.5, 1.5,
                   2.5, -0.5, -1.5, 3e9, -3e9, 127.5, -128.5, 2**31]  # fmt: skip
        picked = random.random(count) < 0.1
        values[picked] = random.choice(np.array(special, np.float32), picked.sum())
        if type_ == "bfloat16_t":
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype(dtype).view(np.uint8)
    return random.integers(0, 256, IMAGE, dtype=np.uint8)


def same(got, want, dtype, rtol=0.0):
    """Bytes equal, or as numbers of the type equal (any NaN for any) or near."""
    equal = got.view(f"u{np.dtype(dtype).itemsize}") == want.view(f"u{np.dtype(dtype).itemsize}")
    if np.issubdtype(dtype, np.floating):
        a, b = got.view(dtype), want.view(dtype)
        equal |= np.isnan(a) & np.isnan(b)
        if rtol:
            equal |= np.isclose(a.astype(np.float64), b.astype(np.float64), rtol, rtol * 1e-2)
    bad = np.flatnonzero(~equal)
    assert len(bad) == 0, (len(bad), bad[:5], got.view(dtype)[bad[:5]], want.view(dtype)[bad[:5]])


# ---- The lanes of an operation -------------------------------------------------------------------


def lanes_of(mask, repeat, per):
    """For each repeat the lanes that are on."""
    counted, low, high = mask
    if counted:
        return [np.arange(min(per, low - i)) for i in range(0, low, per)]
    on = np.array([(low if e < 64 else high) >> (e % 64) & 1 for e in range(per)], bool)
    return [np.flatnonzero(on)] * repeat if on.any() else []


def bytes_at(base, size, block, repeat, r, lanes):
    offset = lanes * size
    first = base + (r * repeat + offset // BLOCK * block) * BLOCK + offset % BLOCK
    return first[:, None] + np.arange(size)


def read(image, where, dtype):
    return np.ascontiguousarray(image[where]).view(dtype).ravel()


def write(image, where, values, dtype):
    image[where] = np.ascontiguousarray(values.astype(dtype)).view(np.uint8).reshape(where.shape)


masks = st.one_of(
    st.just(FULL),
    st.integers(0, 128).map(lambda n: (False, (1 << min(n, 64)) - 1, (1 << max(n - 64, 0)) - 1)),
    st.tuples(st.just(False), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    st.integers(0, 600).map(lambda n: (True, n, 0)),
)
strides = st.fixed_dictionaries(
    {
        "repeat": st.integers(0, 5),
        "blocks": st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(0, 4)),
        "repeats": st.one_of(
            st.just((8, 8, 8)), st.tuples(*[st.integers(0, 40)] * 3), st.just((32, 8, 1))
        ),
        "mask": masks,
    }
)


def clean(report, plan):
    """No finding, but for a destination whose own blocks overlap from repeat to repeat."""
    overlaps = plan["blocks"][0] > 1 and plan["repeats"][0] < 7 * plan["blocks"][0] + 1
    return [f for f in report.hazards if not (overlaps and f.kind in ("WAW", "RAW"))] == []


def lane_by_lane(image, plan, to, sources, f, per=None):
    """The model: f over the lanes of each repeat, all of it read before it is written."""
    want = image.copy()
    per = per or 256 // max(size_of(t) for t in (to, *(t for t, _ in sources)))
    for r, lanes in enumerate(lanes_of(plan["mask"], plan["repeat"], per)):
        values = []
        for type_, k in sources:
            base = (DST, SRC0, SRC1)[k]
            where = bytes_at(base, size_of(type_), plan["blocks"][k], plan["repeats"][k], r, lanes)
            values.append(read(want, where, DTYPES[type_]))
        where = bytes_at(DST, size_of(to), plan["blocks"][0], plan["repeats"][0], r, lanes)
        write(want, where, f(*values), DTYPES[to])
    return want


def wide(f):
    """Halves are computed with in float and rounded once; integers wrap."""

    def g(*values):
        values = [v.astype(np.float32) if v.dtype == np.float16 else v for v in values]
        return f(*values)

    return g


# ---- Two sources ---------------------------------------------------------------------------------


def relu(x):
    return np.where(x <= 0, x.dtype.type(0), x)


def fused(a, b, c):
    return (a.astype(np.float64) * b + c).astype(np.float32)


NUMBERS = ["float", "half", "int32_t", "int16_t"]
FLOATS = ["float", "half"]
BINARY = {
    "vadd": (np.add, NUMBERS),
    "vsub": (np.subtract, NUMBERS),
    "vmul": (np.multiply, NUMBERS),
    "vmax": (np.maximum, NUMBERS),
    "vmin": (np.minimum, NUMBERS),
    "vdiv": (np.divide, FLOATS),
    "vand": (np.bitwise_and, ["int16_t", "uint16_t"]),
    "vor": (np.bitwise_or, ["int16_t", "uint16_t"]),
    "vaddrelu": (lambda a, b: relu(a + b), [*FLOATS, "int16_t"]),
    "vsubrelu": (lambda a, b: relu(a - b), [*FLOATS, "int16_t"]),
}
BINARY_CASES = [(name, t) for name, (_, types) in BINARY.items() for t in types]


@MANY
@given(st.sampled_from(BINARY_CASES), strides, st.integers(0, 99))
def test_binary(kernel, case, plan, seed):
    name, type_ = case
    image = noise(type_, seed)
    got, _, report = launch(kernel, f"{name} {type_} {type_}", image, **plan)
    want = lane_by_lane(image, plan, type_, [(type_, 1), (type_, 2)], wide(BINARY[name][0]))
    same(got, want, DTYPES[type_])
    assert clean(report, plan)


MULTIPLY_ADD = {
    "vmla": lambda a, b, d: fused(a, b, d),
    "vmadd": lambda a, b, d: fused(a, d, b),
    "vmaddrelu": lambda a, b, d: relu(fused(a, d, b)),
}


@MANY
@given(
    st.sampled_from(
        [(n, t, t) for n in MULTIPLY_ADD for t in FLOATS] + [("vmla", "float", "half")]
    ),
    strides,
    st.integers(0, 99),
)
def test_multiply_add(kernel, case, plan, seed):
    name, to, from_ = case
    image = noise(from_, seed)
    got, _, report = launch(kernel, f"{name} {to} {from_}", image, **plan)
    f = wide(MULTIPLY_ADD[name])
    want = lane_by_lane(image, plan, to, [(from_, 1), (from_, 2), (to, 0)], f)
    same(got, want, DTYPES[to], 1e-6)
    assert clean(report, plan)


# ---- One source, with and without a scalar -------------------------------------------------------

UNARY = {
    "vabs": (np.abs, FLOATS, 0),
    "vexp": (lambda x: np.exp(x.astype(np.float64)).astype(np.float32), FLOATS, 2e-7),
    "vln": (lambda x: np.log(x.astype(np.float64)).astype(np.float32), FLOATS, 2e-7),
    "vrec": (lambda x: np.float32(1) / x, FLOATS, 0),
    "vsqrt": (np.sqrt, FLOATS, 0),
    "vrsqrt": (lambda x: 1 / np.sqrt(x.astype(np.float64)), FLOATS, 2e-7),
    "vrelu": (relu, [*FLOATS, "int32_t"], 0),
    "vnot": (np.invert, ["int16_t", "uint16_t"], 0),
    "vcopy": (lambda x: x, ["int16_t", "uint16_t", "int32_t", "uint32_t"], 0),
}


@MANY
@given(
    st.sampled_from([(n, t) for n, (_, types, _) in UNARY.items() for t in types]),
    strides,
    st.integers(0, 99),
)
def test_unary(kernel, case, plan, seed):
    name, type_ = case
    f, _, rtol = UNARY[name]
    image = noise(type_, seed)
    got, _, report = launch(kernel, f"{name} {type_} {type_}", image, **plan)
    want = lane_by_lane(image, plan, type_, [(type_, 1)], wide(f))
    same(got, want, DTYPES[type_], rtol if type_ == "float" else 1e-3 if rtol else 0)
    assert clean(report, plan)


SCALAR = {
    "vadds": (np.add, NUMBERS),
    "vmuls": (np.multiply, NUMBERS),
    "vmaxs": (np.maximum, NUMBERS),
    "vmins": (np.minimum, NUMBERS),
    "vlrelu": (lambda a, s: np.where(a >= 0, a, a * s), FLOATS),
}


def bits_of(value, type_):
    return int.from_bytes(np.asarray(value, DTYPES[type_]).tobytes(), "little")


@MANY
@given(
    st.sampled_from([(n, t) for n, (_, types) in SCALAR.items() for t in types]),
    strides,
    st.integers(0, 99),
    st.sampled_from([0, 1, -3, 7, 100]),
)
def test_scalar(kernel, case, plan, seed, scalar):
    name, type_ = case
    image = noise(type_, seed)
    value = DTYPES[type_](scalar * (1.1 if type_ in FLOATS else 1))
    got, _, report = launch(
        kernel, f"{name} {type_} {type_}", image, x=bits_of(value, type_), **plan
    )
    f = SCALAR[name][0]
    want = lane_by_lane(image, plan, type_, [(type_, 1)], wide(lambda a: f(a, a.dtype.type(value))))
    same(got, want, DTYPES[type_])
    assert clean(report, plan)


@MANY
@given(
    st.sampled_from([("float", "float"), ("half", "half"), ("float", "half")]),
    strides,
    st.integers(0, 99),
)
def test_axpy(kernel, types, plan, seed):
    to, from_ = types
    image = noise(from_, seed)
    value = DTYPES[from_](1.7)
    got, _, report = launch(kernel, f"vaxpy {to} {from_}", image, x=bits_of(value, from_), **plan)
    f = wide(lambda a, d: fused(a, np.full(a.shape, value, np.float32), d))
    want = lane_by_lane(image, plan, to, [(from_, 1), (to, 0)], f)
    same(got, want, DTYPES[to], 1e-6)
    assert clean(report, plan)


INTEGERS = ["int16_t", "uint16_t", "int32_t", "uint32_t"]


@MANY
@given(
    st.sampled_from(INTEGERS), strides, st.integers(0, 99), st.integers(0, 16),
    st.sampled_from(["vshl", "vshr", "rounded"]),
)  # fmt: skip
def test_shift(kernel, type_, plan, seed, distance, how):
    image = noise(type_, seed)
    what = "vshl" if how == "vshl" else "vshr"
    got, _, _ = launch(
        kernel, f"{what} {type_} {type_}", image, x=distance, option=how == "rounded", **plan
    )

    def f(a):
        a = a.astype(np.int64)
        if how == "vshl":
            return a << distance
        return (a + (1 << distance >> 1 if how == "rounded" else 0)) >> distance

    same(got, lane_by_lane(image, plan, type_, [(type_, 1)], f), DTYPES[type_])


@MANY
@given(st.sampled_from([*INTEGERS, *FLOATS, "bfloat16_t"]), strides)
def test_dup(kernel, type_, plan):
    image = noise(type_, 1)
    bits = 0x3FC03E01
    got, _, report = launch(kernel, f"vector_dup {type_} {type_}", image, x=bits, **plan)
    raw = np.array([bits], np.uint32).view(np.uint8)[: size_of(type_)].view(DTYPES[type_])[0]
    # One operand more, so that there are lanes to fill.
    want = lane_by_lane(image, plan, type_, [(type_, 0)], lambda a: np.full(a.shape, raw))
    same(got, want, DTYPES[type_])
    assert clean(report, plan)


# ---- Conversions ---------------------------------------------------------------------------------


def to_grid(x, bits, low):
    """The spacing at each x of a format with `bits` of mantissa and least exponent `low`."""
    exponent = np.frexp(np.where(np.isfinite(x), x, 1.0))[1] - 1
    return np.exp2(np.maximum(exponent, low) - bits)


ROUND = {
    "r": np.rint,
    "": np.rint,
    "a": lambda q: np.copysign(np.floor(np.abs(q) + 0.5), q),
    "f": np.floor,
    "c": np.ceil,
    "z": np.trunc,
    "o": lambda q: np.where(q == np.trunc(q), q, 2 * np.floor(q / 2) + 1),
}


def to_format(x, mode, bits, low, largest):
    """IEEE rounding into a float format, by arithmetic on doubles."""
    x = x.astype(np.float64)
    step = to_grid(x, bits, low)
    y = ROUND[mode](x / step) * step
    over = np.abs(y) > largest
    toward = {"z": over & False, "o": over & False, "f": x < 0, "c": x > 0}.get(mode, over)
    y = np.where(over, np.where(toward, np.copysign(np.inf, x), np.copysign(largest, x)), y)
    return np.where(np.isfinite(x), np.copysign(y, x), x)


def to_integer(dtype, mode):
    info = np.iinfo(dtype)

    def f(x):
        y = ROUND[mode](x.astype(np.float64))
        return np.where(np.isnan(y), 0, np.clip(y, info.min, info.max)).astype(dtype)

    return f


def from_bf16(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


def to_bf16(mode):
    def f(x):
        y = to_format(x, mode, 7, -126, float(from_bf16(np.array([0x7F7F]))[0])).astype(np.float32)
        return np.where(np.isnan(x), 0x7FC0, y.view(np.uint32) >> 16)

    return f


def rounded(name, to, from_, model):
    return [(f"{name}{m} {to} {from_}", to, from_, model(m)) for m in "rafcz"]


def half_of(mode):
    return lambda x: to_format(x, mode, 10, -14, 65504.0)


def plain(x):
    return x


def float_of(mode):
    return lambda x: to_format(x, mode, 23, -126, 3.5e38)


CONVERSIONS = [
    ("vconv_f162f32 float half", "float", "half", plain),
    ("vconv_bf162f32 float bfloat16_t", "float", "bfloat16_t", from_bf16),
    ("vconv_f322f16 half float", "half", "float", half_of("r")),
    ("vconv_f322f16o half float", "half", "float", half_of("o")),
    *rounded("vconv_f322f16", "half", "float", half_of),
    *rounded("vconv_f322bf16", "bfloat16_t", "float", to_bf16),
    *rounded("vconv_f322f32", "float", "float", lambda m: ROUND[m]),
    *rounded("vconv_f322s32", "int32_t", "float", lambda m: to_integer(np.int32, m)),
    *rounded("vconv_f322s16", "int16_t", "float", lambda m: to_integer(np.int16, m)),
    *rounded("vconv_f162s32", "int32_t", "half", lambda m: to_integer(np.int32, m)),
    *rounded("vconv_f162s16", "int16_t", "half", lambda m: to_integer(np.int16, m)),
    *rounded("vconv_f162s8", "int8_t", "half", lambda m: to_integer(np.int8, m)),
    *rounded("vconv_f162u8", "uint8_t", "half", lambda m: to_integer(np.uint8, m)),
    ("vconv_f162s8 int8_t half", "int8_t", "half", to_integer(np.int8, "r")),
    ("vconv_f162u8 uint8_t half", "uint8_t", "half", to_integer(np.uint8, "r")),
    *[
        (what, to, from_, lambda x, f=f: f(from_bf16(x)))
        for what, to, from_, f in rounded(
            "vconv_bf162s32", "int32_t", "bfloat16_t", lambda m: to_integer(np.int32, m)
        )
    ],
    ("vconv_s322f32 float int32_t", "float", "int32_t", plain),
    *rounded("vconv_s322f32", "float", "int32_t", float_of),
    ("vconv_s322s16 int16_t int32_t", "int16_t", "int32_t", lambda x: np.clip(x, -32768, 32767)),
    ("vconv_s162f32 float int16_t", "float", "int16_t", plain),
    ("vconv_s162f16 half int16_t", "half", "int16_t", plain),
    *rounded("vconv_s162f16", "half", "int16_t", half_of),
    ("vconv_s82f16 half int8_t", "half", "int8_t", plain),
    ("vconv_u82f16 half uint8_t", "half", "uint8_t", plain),
]


@pytest.mark.parametrize("case", CONVERSIONS, ids=lambda c: c[0])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(plan=strides, seed=st.integers(0, 99), scale=st.sampled_from([4.0, 1e-5, 3e4]))
def test_convert(kernel, case, plan, seed, scale):
    what, to, from_, f = case
    image = noise(from_, seed, scale)
    got, _, report = launch(kernel, what, image, **plan)
    same(got, lane_by_lane(image, plan, to, [(from_, 1)], f), DTYPES[to])
    assert clean(report, plan)


@MANY
@given(strides, st.integers(0, 99))
def test_dequantise(kernel, plan, seed):
    image = noise("int32_t", seed)
    scale = np.float16(0.0031)
    got, _, _ = launch(
        kernel, "vconv_deq half int32_t", image, deq=(True, bits_of(scale, "half")), **plan
    )
    f = lambda x: x.astype(np.float32) * np.float32(scale)  # noqa: E731
    same(got, lane_by_lane(image, plan, "half", [("int32_t", 1)], f), np.float16)


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("table", [True, False])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(plan=strides, seed=st.integers(0, 99))
def test_requantise(kernel, upper, table, plan, seed):
    image = noise("int16_t", seed)
    signed = upper != table
    sets = [(0.004 + 0.001 * i, (-20 + 5 * i) % 512) for i in range(16)]
    words = [bits_of(s, "float") | o << 37 | int(signed) << 46 for s, o in sets]
    place = 0x18000
    if table:
        image[place : place + 128] = np.array(words, np.uint64).view(np.uint8)
    else:
        sets = [sets[0]] * 16
    what = f"vconv_{'v' if table else ''}deqs162b8{'h' if upper else 'l'}"
    what += f" {'int8_t' if signed else 'uint8_t'} int16_t"
    got, _, _ = launch(kernel, what, image, deq=(False, place // 32 if table else words[0]), **plan)
    want = image.copy()
    for r, lanes in enumerate(lanes_of(plan["mask"], plan["repeat"], 128)):
        for lane in lanes:
            one = np.array([lane])
            x = read(want, bytes_at(SRC0, 2, plan["blocks"][1], plan["repeats"][1], r, one), "i2")[
                0
            ]
            scale, offset = sets[lane % 16]
            offset -= 512 * (offset >= 256)
            y = np.rint(np.float32(np.float32(x) * np.float32(scale)) + np.float32(offset))
            y = int(np.clip(y, *((-128, 127) if signed else (0, 255))))
            first = DST + (r * plan["repeats"][0] + lane // 16 * plan["blocks"][0]) * BLOCK
            want[first + 16 * upper + lane % 16] = y % 256
    near = np.abs(got.astype(np.int16) - want)
    assert (
        np.all((near <= 1) | (near == 255)) and np.count_nonzero(near) <= 3
    )  # ties of the float sum


# ---- Reductions ----------------------------------------------------------------------------------


def tree(values, dtype):
    while len(values) > 1:
        values = (values[::2].astype(np.float32) + values[1::2].astype(np.float32)).astype(dtype)
    return values[0]


def source_lanes(image, plan, type_, r, lanes, per):
    where = bytes_at(SRC0, size_of(type_), plan["blocks"][1], plan["repeats"][1], r, lanes)
    values = np.full(per, -0.0, DTYPES[type_])
    values[lanes] = read(image, where, DTYPES[type_])
    return values


@MANY
@given(st.sampled_from(FLOATS), strides, st.integers(0, 99), st.booleans())
def test_sum(kernel, type_, plan, seed, total):
    dtype, size = DTYPES[type_], size_of(type_)
    per = 256 // size
    image = noise(type_, seed)
    got, out, report = launch(kernel, f"vcadd {type_} {type_}", image, option=total, **plan)
    want = image.copy()
    sums = []
    for r, lanes in enumerate(lanes_of(plan["mask"], plan["repeat"], per)):
        sums.append(tree(source_lanes(image, plan, type_, r, lanes, per), dtype))
        first = DST + (0 if total else r * plan["repeats"][0] * size)
        value = np.full(size, 255, np.uint8) if total else np.array([sums[-1]]).view(np.uint8)
        want[first : first + size] = value
    same(got, want, dtype)
    assert clean(report, plan)
    if total and sums:
        running = sums[0]
        for x in sums[1:]:
            running = dtype(np.float32(running) + np.float32(x))
        same(np.array([out[0]]).view(np.uint8)[:size], np.array([running]).view(np.uint8), dtype)


@MANY
@given(
    st.sampled_from(FLOATS), st.sampled_from(["vcmax", "vcmin"]), strides, st.integers(0, 3),
    st.integers(0, 99),
)  # fmt: skip
def test_extreme(kernel, type_, name, plan, order, seed):
    dtype, size = DTYPES[type_], size_of(type_)
    per = 256 // size
    image = noise(type_, seed)
    got, out, report = launch(kernel, f"{name} {type_} {type_}", image, option=order, **plan)
    want = image.copy()
    unit = [2 * size, 2 * size, size, 4][order]
    pick = np.argmax if name == "vcmax" else np.argmin  # a NaN is what they find first
    best = []
    for r, lanes in enumerate(lanes_of(plan["mask"], plan["repeat"], per)):
        values = source_lanes(image, plan, type_, r, lanes, per)
        index = lanes[pick(values[lanes])]
        value = np.array([values[index]]).view(np.uint8)
        best.append((values[index], r * per + index))
        narrow = np.array([index], f"u{size}").view(np.uint8)
        parts = [[value, narrow], [narrow, value], [value], [np.array([index], "u4").view("u1")]]
        first = DST + r * plan["repeats"][0] * unit
        want[first : first + unit] = np.concatenate(parts[order])
    same(got, want, dtype)
    assert clean(report, plan)
    if best:
        value, index = best[pick(np.array([v for v, _ in best]))]
        assert out[1] >> 32 == index
        same(np.array([out[1]]).view("u1")[:size], np.array([value], dtype).view("u1"), dtype)


@MANY
@given(
    st.sampled_from(FLOATS), st.sampled_from(["vcgadd", "vcgmax", "vcgmin", "vcpadd"]), strides,
    st.integers(0, 99),
)  # fmt: skip
def test_partial_reduction(kernel, type_, name, plan, seed):
    dtype, size = DTYPES[type_], size_of(type_)
    per = 256 // size
    group = 2 if name == "vcpadd" else BLOCK // size
    image = noise(type_, seed)
    plan["repeats"] = (plan["repeats"][0] % 9, *plan["repeats"][1:])
    got, _, report = launch(kernel, f"{name} {type_} {type_}", image, **plan)
    want = image.copy()
    for r, lanes in enumerate(lanes_of(plan["mask"], plan["repeat"], per)):
        values = source_lanes(image, plan, type_, r, lanes, per)
        for g in range(per // group):
            inside = lanes[(lanes >= g * group) & (lanes < (g + 1) * group)]
            if len(inside) == 0:
                continue
            if name in ("vcgmax", "vcgmin"):
                value = (np.max if name == "vcgmax" else np.min)(values[inside])
            else:
                value = tree(values[g * group : (g + 1) * group], dtype)
            first = DST + (r * plan["repeats"][0] * (per // group) + g) * size
            want[first : first + size] = np.array([value], dtype).view(np.uint8)
    same(got, want, dtype)
    assert clean(report, plan)


# ---- Comparison and selection --------------------------------------------------------------------

COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "gt": np.greater, "le": np.less_equal,
    "ge": np.greater_equal,
}  # fmt: skip


@MANY
@given(
    st.sampled_from([(n, t) for n in COMPARE for t in FLOATS] + [("eq", "int32_t")]),
    strides,
    st.integers(0, 99),
    st.booleans(),
)
def test_compare_to_ub(kernel, case, plan, seed, scalar):
    name, type_ = case
    dtype, size = DTYPES[type_], size_of(type_)
    per = 256 // size
    plan["mask"] = (False, *plan["mask"][1:])  # has no effect
    image = noise(type_, seed)
    image[SRC1 : SRC1 + 0x8000] = image[SRC0 : SRC0 + 0x8000]
    want = image.copy()
    value = read(image, np.arange(SRC0, SRC0 + size), dtype)[0]
    what = f"vcmpv{'s' if scalar else ''}_{name} uint8_t {type_}"
    got, _, report = launch(kernel, what, image, x=bits_of(value, type_) if scalar else 0, **plan)
    lanes = np.arange(per)
    for r in range(plan["repeat"]):
        a, b = (
            read(want, bytes_at(base, size, plan["blocks"][k], plan["repeats"][k], r, lanes), dtype)
            for k, base in ((1, SRC0), (2, SRC1))
        )
        bits = np.packbits(COMPARE[name](a, value if scalar else b), bitorder="little")
        want[DST + r * per // 8 :][: per // 8] = bits
    same(got, want, np.uint8)
    assert clean(report, plan)


@MANY
@given(st.sampled_from([(n, t) for n in COMPARE for t in FLOATS]), strides, st.integers(0, 99))
def test_compare_to_register(kernel, case, plan, seed):
    name, type_ = case
    dtype, size = DTYPES[type_], size_of(type_)
    per = 256 // size
    image = noise(type_, seed)
    image[SRC1 : SRC1 + 0x8000 : 3] = image[SRC0 : SRC0 + 0x8000 : 3]
    before = 0x1C000
    what = f"vcmp_{name} {type_} {type_}"
    got, _, report = launch(kernel, what, image, compare=before, **plan)
    bits = np.unpackbits(image[before : before + 16], bitorder="little")
    # One repeat, whatever the argument; lanes that are off keep their bit.
    for lanes in lanes_of(plan["mask"], 1, per)[:1]:
        a, b = (
            read(image, bytes_at(base, size, plan["blocks"][k], 0, 0, lanes), dtype)
            for k, base in ((1, SRC0), (2, SRC1))
        )
        bits[lanes] = COMPARE[name](a, b)
    want = image.copy()
    want[DST : DST + 16] = np.packbits(bits, bitorder="little")
    same(got, want, np.uint8)
    assert clean(report, plan)


@MANY
@given(st.sampled_from(FLOATS), strides, st.integers(0, 99), st.integers(0, 2))
def test_select(kernel, type_, plan, seed, mode):
    dtype, size = DTYPES[type_], size_of(type_)
    per = 256 // size
    image = noise(type_, seed)
    register, sel = 0x1C000, SRC1 if mode == 1 else 0x1D000
    if mode == 2:
        image[register : register + 4] = np.array([sel], np.uint32).view(np.uint8)
    what = f"vsel {type_} {type_}"
    got, _, report = launch(kernel, what, image, compare=register, option=mode, **plan)
    want = image.copy()
    for r, lanes in enumerate(lanes_of(plan["mask"], plan["repeat"], per)):
        a, b = (
            read(want, bytes_at(base, size, plan["blocks"][k], plan["repeats"][k], r, lanes), dtype)
            for k, base in ((1, SRC0), (2, SRC1))
        )
        if mode == 1:
            b = read(image, np.arange(register, register + size), dtype)
        first = register if mode == 0 else sel + r * per // 8
        bits = np.unpackbits(image[first : first + per // 8], bitorder="little")[lanes]
        where = bytes_at(DST, size, plan["blocks"][0], plan["repeats"][0], r, lanes)
        write(want, where, np.where(bits, a, b), dtype)
    same(got, want, np.dtype(f"u{size}"))
    assert clean(report, plan)


# ---- Spreading and collecting --------------------------------------------------------------------

RAW = ["uint16_t", "uint32_t"]


@MANY
@given(st.sampled_from(RAW), st.integers(0, 6), st.integers(1, 5), st.integers(0, 40))
def test_broadcast(kernel, type_, repeat, block, step):
    dtype, size = DTYPES[type_], size_of(type_)
    image = noise(type_, 3)
    got, _, report = launch(
        kernel, f"vbrcb {type_} {type_}", image, repeat=repeat, blocks=(block, 0, 0),
        repeats=(step, 0, 0), mask=(False, 1, 0),
    )  # fmt: skip
    want = image.copy()
    for i in range(8 * repeat):
        value = image[SRC0 + i * size : SRC0 + (i + 1) * size]
        want[DST + (i // 8 * step + i % 8 * block) * BLOCK :][:BLOCK] = np.tile(
            value, BLOCK // size
        )
    same(got, want, dtype)
    assert [f for f in report.hazards if f.kind != "WAW"] == []


@MANY
@given(st.sampled_from(RAW), strides, st.integers(0, 99))
def test_gather(kernel, type_, plan, seed):
    dtype, size = DTYPES[type_], size_of(type_)
    per = 256 // size
    image = noise(type_, seed)
    offsets = np.random.default_rng(seed).integers(0, 4096, 2048).astype(np.uint32) * size
    image[SRC0 : SRC0 + 8192] = offsets.view(np.uint8)
    plan["blocks"] = (1, 1, 1)
    got, _, report = launch(kernel, f"vgather {type_} {type_}", image, x=SRC1 + 64, **plan)
    want = image.copy()
    for r, lanes in enumerate(lanes_of(plan["mask"], plan["repeat"], per)):
        first = SRC1 + 64 + offsets[r * per + lanes].astype(np.int64)
        values = read(image, first[:, None] + np.arange(size), dtype)
        write(want, bytes_at(DST, size, 1, plan["repeats"][0], r, lanes), values, dtype)
    same(got, want, dtype)
    assert clean(report, plan)


@MANY
@given(st.sampled_from(RAW), st.integers(0, 6), st.integers(1, 5), st.integers(0, 40))
def test_gather_blocks(kernel, type_, repeat, block, step):
    image = noise(type_, 5)
    offsets = np.random.default_rng(repeat).integers(0, 500, 64).astype(np.uint32) * BLOCK
    image[SRC0 : SRC0 + 256] = offsets.view(np.uint8)
    got, _, _ = launch(
        kernel, f"vgatherb {type_} {type_}", image, repeat=repeat, blocks=(block, 0, 0),
        repeats=(step, 0, 0), x=SRC1,
    )  # fmt: skip
    want = image.copy()
    for i in range(8 * repeat):
        to = DST + (i // 8 * step + i % 8 * block) * BLOCK
        want[to : to + BLOCK] = image[SRC1 + offsets[i] :][:BLOCK]
    same(got, want, np.uint8)


@MANY
@given(st.sampled_from(RAW), strides, st.integers(0, 7), st.integers(0, 99))
def test_squeeze(kernel, type_, plan, pattern, seed):
    dtype, size = DTYPES[type_], size_of(type_)
    counted, low, _ = plan["mask"]
    per = low if counted else 256 // size
    plan["blocks"] = (1, max(plan["blocks"][1], 1), 1)
    image = noise(type_, seed)
    got, out, report = launch(kernel, f"vreducev2 {type_} {type_}", image, x=pattern, **plan)
    lanes = np.arange(per)
    kept = []
    for r in range(plan["repeat"] if per else 0):
        where = bytes_at(SRC0, size, plan["blocks"][1], plan["repeats"][1], r, lanes)
        values = read(image, where, dtype)
        first = SRC1 + r * plan["repeats"][2] * BLOCK
        own = np.unpackbits(image[first : first + per // 8 + 1], bitorder="little")[:per] == 1
        step, start = (2, pattern - 1) if pattern < 3 else (4, pattern - 3)
        kept.append(values[own if pattern == 0 else (lanes % step == start) | (pattern == 7)])
    want = image.copy()
    if kept:
        flat = np.concatenate(kept)
        want[DST : DST + flat.nbytes] = flat.view(np.uint8)
        assert out[2] == len(flat)
    same(got, want, dtype)
    assert clean(report, plan)


def test_transpose(kernel):
    image = noise("uint16_t", 1)
    got, _, report = launch(kernel, "vtranspose", image)
    want = image.copy()
    want[:512] = (
        image[SRC0 : SRC0 + 512].view(np.uint16).reshape(16, 16).T.copy().view("u1").ravel()
    )
    same(got, want, np.uint8)
    assert report.hazards == []


# ---- Limits and findings -------------------------------------------------------------------------


def test_largest_repeat(kernel):
    image = noise("float", 1)
    got, _, report = launch(
        kernel, "vadd float float", image, repeat=255, at=(DST, DST, SRC1), repeats=(8, 8, 8)
    )
    a, b = image[: 255 * 256].view(np.float32), image[SRC1 : SRC1 + 255 * 256].view(np.float32)
    want = image.copy()
    want[: 255 * 256] = (a + b).view(np.uint8)
    same(got[: 255 * 256], want[: 255 * 256], np.float32)
    assert report.hazards == []


def test_exponential(kernel):
    x = np.linspace(-106, 91, IMAGE // 8, dtype=np.float32)
    image = np.zeros(IMAGE, np.uint8)
    half = IMAGE // 2
    image[half:] = x.view(np.uint8)
    got, _, _ = launch(kernel, "vexp float float", image, at=(0, half, 0), mask=(True, len(x), 0))
    got = got[:half].view(np.float32).astype(np.float64)
    want = np.exp(x.astype(np.float64))
    with np.errstate(over="ignore"):
        ulp = np.spacing(want.astype(np.float32)).astype(np.float64)
    normal = (want > 1.2e-38) & (want < 3.4e38)
    assert np.max(np.abs(got - want)[normal] / ulp[normal]) < 1.5
    assert np.all(np.abs(got - want)[want <= 1.2e-38] <= 3e-45)
    assert np.all(np.isinf(got[want > 3.41e38]))


def kinds(report):
    return {f.kind for f in report.hazards}


def test_findings(kernel):
    image = noise("float", 1)
    _, _, report = launch(kernel, "vadd float float", image, repeat=256)
    (finding,) = report.hazards
    assert finding.kind == "argument out of range"
    assert "repeat is 256, which does not fit in its 8 bits" in finding.message
    _, _, report = launch(kernel, "vadd float float", image, repeats=(8, 256, 8))
    assert "src0RepeatStride is 256" in report.hazards[0].message
    ub = 192 << 10
    _, _, report = launch(kernel, "vadd float float", image, at=(ub - 224, SRC0, SRC1))
    assert kinds(report) == {"out of bounds"}
    # As much as there is room for, by the mask: then all is well.
    fits = (False, 2**56 - 1, 0)
    _, _, report = launch(kernel, "vadd float float", image, at=(ub - 224, SRC0, SRC1), mask=fits)
    assert report.hazards == []
    _, _, report = launch(kernel, "vadd float float", image, at=(4, SRC0, SRC1))
    assert kinds(report) == {"misaligned"}
    _, _, report = launch(kernel, "vgather uint32_t uint32_t", image, x=ub)
    assert "out of bounds" in kinds(report)


def test_hazard_without_barrier(kernel):
    image = noise("float", 1)
    _, _, report = launch(kernel, "missing barrier", image, x=1)
    assert report.hazards == []
    _, _, report = launch(kernel, "missing barrier", image, x=0)
    assert kinds(report) == {"RAW", "WAW"}


def test_not_modelled(kernel):
    _, _, report = launch(kernel, "not modelled", noise("float", 1))
    assert "vconv_s322s64 at vector.cce" in report.hazards[0].message
    assert "is not modelled" in report.hazards[0].message


WRONG = [
    "vadd((__ubuf__ float*)0, (__ubuf__ half*)0, (__ubuf__ float*)0, 1, 1, 1, 1, 8, 8, 8);",
    "vmuls((__ubuf__ float*)0, 2.0f, (__ubuf__ float*)0, 1, 1, 1, 8, 8);",
    "vdiv((__ubuf__ int32_t*)0, (__ubuf__ int32_t*)0, (__ubuf__ int32_t*)0, 1, 1, 1, 1, 8, 8, 8);",
    "vcadd((__ubuf__ int32_t*)0, (__ubuf__ int32_t*)0, 1, 1, 1, 8, false);",
    "vconv_f322f16((__ubuf__ float*)0, (__ubuf__ half*)0, 1, 1, 1, 4, 8);",
    "vcmpv_lt((__ubuf__ uint8_t*)0, (__ubuf__ int*)0, (__ubuf__ int*)0, 1, 1, 1, 1, 8, 8, 8);",
    "vcmax((__ubuf__ float*)0, (__ubuf__ float*)0, 1, 1, 1, 8);",
]


@pytest.mark.parametrize("strict", [False, True], ids=["plain", "strict"])
def test_types(tmp_path, strict, request):
    """Wrong types or orders do not compile; the right ones do, without a warning."""
    compiler = [request.getfixturevalue("clang"), "-DPA_SIM_STRICT"] if strict else ["g++"]
    common = ["-std=c++17", "-fsyntax-only", f"-I{Path(sim.__file__).parent / 'include'}"]
    common += ["-include", "cce.h"]

    def compile_(body):
        source = tmp_path / "t.cpp"
        source.write_text(f"void kernel() {{ {body} }}\n")
        return subprocess.run([*compiler, *common, str(source)], capture_output=True, text=True)

    assert compile_("").returncode == 0
    done = [compile_(body).returncode != 0 for body in WRONG]
    assert all(done), done
    good = [*compiler, *common, "-Wall", "-Wextra", "-x", "c++", str(HERE / "vector.cce")]
    result = subprocess.run(good, capture_output=True, text=True)
    assert result.returncode == 0 and "cce_vector.h" not in result.stderr, result.stderr[:2000]
