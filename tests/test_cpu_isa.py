"""The CPU kernel for instruction sets that this machine lacks: lowered, or under an emulator."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pa_hp
import pytest
import torch
from pa_hp import build
from pa_hp.bench.cases import CASES, DTYPES, DecodeCase, make
from pa_hp.bench.checks import bits, check_against_peer, check_lse, check_out
from pa_hp.bench.tolerance import TWO_PARTS, cpu_weights_dtype

ROOT = Path(__file__).parent.parent
ARM_COMPILERS = ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-12")
SOME_CASES = [case for case in CASES if case.lengths]
SOME_CASES += [
    DecodeCase(f"group_{group}", (1, 100, 513), dtype, 2 * group, 2, 96, 64, query_factor=2.0)
    for group in (9, 12, 20, 30)
    for dtype in DTYPES
]
SOME_CASES += [
    DecodeCase("half_lines", (1, 300), dtype, 34, 2, 64, 48, scale=-0.1) for dtype in DTYPES
]
# AVX-512's vectors are 16 floats; other head_dims are AVX2's, and keys of a single vector.
WHOLE = [
    case
    for case in SOME_CASES
    if case.head_dim % 16 == case.value_dim % 16 == 0 and case.head_dim > 16
]


def compile_decode(tmp_path_factory, compiler, *sources_and_flags):
    program = tmp_path_factory.mktemp("cpu") / "decode_file"
    sources = ["tests/cpu/decode_file.cpp", "kernels/cpu/decode.cpp", *sources_and_flags]
    command = [compiler, "-std=c++17", "-O1", "-Wno-psabi", "-o", program, *sources]
    subprocess.run(command, cwd=ROOT, check=True)
    return program


@pytest.fixture(scope="module")
def avx512(tmp_path_factory):
    return [compile_decode(tmp_path_factory, build.compiler(), "-DPA_HP_LOWERED=1")]


@pytest.fixture(scope="module")
def amx(tmp_path_factory):
    flags = ["-DPA_HP_LOWERED=1", "-DPA_HP_AMX=1"]
    return [compile_decode(tmp_path_factory, build.compiler(), *flags)]


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory):
    compiler = next(filter(shutil.which, ARM_COMPILERS), None)
    emulator = shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("no aarch64 compiler and emulator (Debian: g++-aarch64-linux-gnu, qemu-user)")
    sources = [f"kernels/cpu/isa_{name}.cpp" for name in ("baseline", "neon_bf16")]
    return [emulator, compile_decode(tmp_path_factory, compiler, "-static", *sources)]


def run(command, case, inputs, tmp_path, isa):
    """`out` and `lse` of the program behind `command`."""
    query, keys, values, table, _ = inputs
    sizes = [*query.shape[:2], keys.size(2), query.size(2), values.size(3)]
    sizes += [*keys.shape[:2], table.size(1), DTYPES.index(case.dtype)]
    scale = query.size(2) ** -0.5 if case.scale is None else case.scale
    source, target = tmp_path / "in", tmp_path / "out"
    head = np.array(sizes, np.int64).tobytes() + np.float32(scale).tobytes()
    source.write_bytes(head + b"".join(map(bits, inputs)))
    environment = {**os.environ, "PA_HP_CPU_ISA": isa}
    subprocess.run([*command, source, target], env=environment, check=True)
    data = bytearray(target.read_bytes())
    out_shape = (*query.shape[:2], values.size(3))
    count = query.size(0) * query.size(1)
    lse = torch.tensor(np.frombuffer(data[len(data) - 4 * count :], np.float32))
    out = torch.frombuffer(data, dtype=case.dtype, count=count * values.size(3))
    return out.view(out_shape), lse.view(query.shape[:2])


def check(command, case, tmp_path, isa="baseline", lowered_isa=None):
    inputs = make(case)
    want, want_lse = pa_hp.reference(*inputs, scale=case.scale)
    out, lse = run(command, case, inputs, tmp_path, isa)
    weights_dtype = cpu_weights_dtype(inputs.query, inputs.value_cache, lowered_isa or isa)
    check_out(case, inputs, out, want, weights_dtype)
    check_against_peer(case, inputs, out, want)
    check_lse(case, inputs, lse, want_lse)


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.id)
def test_avx512_lowered(case, avx512, tmp_path):
    check(avx512, case, tmp_path, lowered_isa="avx512_bf16")


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.id)
def test_amx_lowered(case, amx, tmp_path):
    check(amx, case, tmp_path, lowered_isa="amx_bf16")


@pytest.mark.parametrize("cache", ["key_cache", "value_cache"])
def test_amx_lowered_computes_infinities_again(cache, amx, tmp_path):
    """Float16's parts have none; the other kv head keeps the bits that it has by tiles."""
    case = DecodeCase("infinite", (600,), torch.float16, heads=38, kv_heads=2)
    inputs = make(case)
    inputs.query.abs_().add_(0.1)
    before, lse_before = run(amx, case, inputs, tmp_path, "baseline")
    blocks = getattr(inputs, cache)
    blocks[inputs.block_table[0, 0], 1, 0] = -torch.inf  # a key of weight 0
    want, want_lse = pa_hp.reference(*inputs)
    out, lse = run(amx, case, inputs, tmp_path, "baseline")
    assert want[0, :19].isfinite().all() == (cache == "key_cache")
    check_out(case, inputs, out, want, TWO_PARTS)
    check_lse(case, inputs, lse, want_lse)
    assert torch.equal(out[0, 19:], before[0, 19:]) and torch.equal(lse[0, 19:], lse_before[0, 19:])


@pytest.mark.parametrize("isa", ["baseline", "neon_bf16"])
@pytest.mark.parametrize("case", SOME_CASES, ids=lambda case: case.id)
def test_aarch64(case, isa, aarch64, tmp_path):
    check(aarch64, case, tmp_path, isa)
