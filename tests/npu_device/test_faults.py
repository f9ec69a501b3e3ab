"""What goes wrong is named, and the process goes on."""

import ctypes

import pytest
import torch

libc = ctypes.CDLL(None)


def test_a_read_past_the_end(runtime):
    """strlen over a block without a zero byte runs into the guard page."""
    x = torch.full((2**22,), -1, dtype=torch.int8, device="npu")
    torch.npu.synchronize()
    runtime.call_on_stream(torch.npu.current_stream(), libc.strlen, x.data_ptr())
    with pytest.raises(RuntimeError, match=r"0 bytes past the end of a block of \d+ bytes"):
        torch.npu.synchronize()
    assert (x[:4] + 1).cpu().tolist() == [0, 0, 0, 0]


def test_freed_memory(script):
    done = script(
        """
        import ctypes, torch
        from virtual import Runtime
        runtime = Runtime()
        x = torch.ones(100, device="npu")
        address = x.data_ptr()
        torch.npu.synchronize()
        del x
        runtime.call_on_stream(torch.npu.current_stream(), ctypes.CDLL(None).strlen, address)
        try:
            torch.npu.synchronize()
        except RuntimeError as error:
            print(error)
        print((torch.ones(3, device="npu") + 1).cpu())
        """,
        PYTORCH_NO_NPU_MEMORY_CACHING="1",
    )
    assert "that was freed" in done.stdout and "tensor([2., 2., 2.])" in done.stdout


def test_the_host_must_not_touch_past_the_end(script):
    done = script(
        """
        import ctypes, torch
        x = torch.ones(2**20, device="npu")
        ctypes.memset(x.data_ptr(), 0, 2**26)
        """,
        check=False,
    )
    assert done.returncode < 0
    assert "the host touched device memory 0 bytes past the end of" in done.stderr


def test_an_operator_that_fails_on_the_device():
    x = torch.ones(3, device="npu")
    index = torch.tensor([7], device="npu")
    x.index_select(0, index)
    with pytest.raises(RuntimeError, match="aclnnIndexSelect: index out of range"):
        torch.npu.synchronize()
    assert x.sum().item() == 3


def test_an_operator_that_is_not_provided():
    with pytest.raises(RuntimeError, match="Svd"):
        torch.linalg.svd(torch.ones(3, 3, device="npu"))
    assert torch.ones(3, device="npu").sum().item() == 3


def test_a_function_that_is_not_provided(runtime):
    assert runtime.library.aclrtReserveMemAddress() == 500001
    assert b"aclrtReserveMemAddress" in ctypes.string_at(_message(runtime))


def _message(runtime):
    runtime.library.aclGetRecentErrMsg.restype = ctypes.c_char_p
    return runtime.library.aclGetRecentErrMsg()
