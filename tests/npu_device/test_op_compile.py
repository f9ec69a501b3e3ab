"""torch.compile of the op on NPU tensors: one graph, few compiles, the caller's buffer written."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pa_hp
import pytest
import torch
from pa_hp.bench.cases import DecodeCase, make
from torch._dynamo.testing import CompileCounterWithBackend
from virtual import on_device

pa_hp.load()
BACKENDS = ("eager", "aot_eager")
TRITON = ("triton_ascend==3.2.0", "pybind11==3.1.0")


def batch_inputs(batch: int) -> list[torch.Tensor]:
    case = DecodeCase("batch", tuple(3 + 11 * row for row in range(13)), torch.float16, head_dim=32)
    query, key_cache, value_cache, block_table, seq_lens = map(on_device, make(case))
    rows = (query[:batch].clone(), block_table[:batch].clone(), seq_lens[:batch].clone())
    return [rows[0], key_cache, value_cache, *rows[1:]]


def step(*tensors):
    out, lse = torch.ops.pa_hp.decode_lse(*tensors)
    into = torch.zeros_like(out)
    torch.ops.pa_hp.decode_out(*tensors, scale=0.25, out=into)
    return torch.ops.pa_hp.decode(*tensors) + 1, out, lse, into


def same(got, want) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dynamic_batch_compiles_at_most_twice(backend):
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    for batch in (2, 3, 5, 13):
        inputs = batch_inputs(batch)
        assert same(compiled(*inputs), step(*inputs))
    assert 1 <= counter.frame_count <= 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dynamic", [None, True, False])
def test_new_lengths_do_not_recompile(backend, dynamic):
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=counter)
    inputs = batch_inputs(4)
    for _ in range(4):
        assert same(compiled(*inputs), step(*inputs))
        inputs[4] = (inputs[4] - 1).clamp(min=0)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_decode_out_writes_the_callers_buffer(backend):
    inputs = batch_inputs(3)

    @torch.compile(fullgraph=True, backend=backend)
    def write(buffer, *tensors):
        before = buffer * 2
        torch.ops.pa_hp.decode_out(*tensors, out=buffer)
        return before, buffer * 2

    buffer = torch.full_like(inputs[0], 7.0)
    address = buffer.data_ptr()
    before, after = write(buffer, *inputs)
    want = torch.ops.pa_hp.decode(*inputs)
    assert buffer.data_ptr() == address and torch.equal(buffer.cpu(), want.cpu())
    assert (before.cpu() == 14).all() and torch.equal(after.cpu(), want.cpu() * 2)


@pytest.fixture(scope="module")
def triton() -> Path:
    """A directory with triton-ascend, not the environment: there all of torch would see it."""
    folder = Path(os.environ["VIRTUAL_ENV"]) / "-".join(TRITON)
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            command = [*pip, "--target", f"{work}/new", *TRITON]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"needs {' '.join(TRITON)}: {done.stderr.strip().splitlines()[-1]}")
            os.rename(f"{work}/new", folder)
    return folder


def test_inductor(python, triton):
    """With triton-ascend; its compiler is CANN's, so that every other op falls back."""
    here = Path(__file__).parent
    path = [triton, here, here.parent, os.environ.get("PYTHONPATH", "")]
    done = python(
        "-c",
        """
        import torch, pa_hp
        from test_op_compile import batch_inputs, same, step

        def around(query, *rest):
            return step((query * 2).transpose(0, 1).contiguous().transpose(0, 1), *rest)

        compiled = torch.compile(around, fullgraph=True, dynamic=True, backend="inductor")
        with torch.no_grad():
            for batch in (2, 3, 13):
                inputs = batch_inputs(batch)
                print(same(compiled(*inputs), around(*inputs)))
        """,
        PYTHONPATH=os.pathsep.join(map(str, path)),
        NPU_INDUCTOR_FALLBACK_LIST="allfallback",
    )
    assert done.stdout.split().count("True") == 3
