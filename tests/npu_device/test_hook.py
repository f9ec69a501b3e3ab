"""The way from CANN's compiler to a running op, with a stand-in for the compiler."""

import torch
from pa_hp import build
from pa_hp.ops import simulate
from standin import virtual_cann


def test_from_bisheng_to_the_op(script, tmp_path):
    torch.zeros(1, device="npu")
    home = virtual_cann(tmp_path / "cann", build.compiler(), simulate.kernel())
    done = script(
        """
        import torch, pa_hp
        from pa_hp.kernels.npu import toolchain
        from pa_hp.kernels.sim import vnpu
        vnpu.register = None  # the library registers its kernel by itself
        query = torch.randn(2, 4, 32).half()
        cache = torch.randn(2, 6, 16, 2, 32).half()
        table = torch.arange(6, dtype=torch.int32).view(2, 3)
        lens = torch.tensor([40, 7], dtype=torch.int32)
        want = pa_hp.decode(query, *cache, table, lens)
        on_npu = [t.npu() for t in (query, *cache, table, lens)]
        got = pa_hp.decode(*on_npu)
        torch.testing.assert_close(got.cpu(), want, rtol=2e-3, atol=2e-3)
        print(toolchain.find().name)
        """,
        ASCEND_TOOLKIT_HOME=str(home),
    )
    assert done.stdout.splitlines()[-1] == "bisheng"


def test_another_chip_is_refused_before_anything_is_launched(script):
    done = script(
        """
        import torch, pa_hp
        tensors = [torch.zeros(shape, dtype=dtype, device="npu") for shape, dtype in [
            ((1, 2, 32), torch.half), ((2, 16, 2, 32), torch.half), ((2, 16, 2, 32), torch.half),
            ((1, 2), torch.int32), ((1,), torch.int32)]]
        try:
            pa_hp.decode(*tensors)
        except RuntimeError as error:
            print(error)
        """,
        PA_HP_VNPU_SOC="950PR_9599",  # which torch_npu takes
    )
    assert "expected a chip Ascend910B1 to B4 (A2)" in done.stdout
    assert "got Ascend950PR_9599" in done.stdout
