"""Tensors, memory, devices and threads."""

import threading

import pytest
import torch


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool]
)
def test_round_trip(dtype):
    x = torch.arange(24).reshape(2, 3, 4).to(dtype)
    y = x.npu()
    assert y.device.type == "npu" and y.data_ptr() % 512 == 0
    assert torch.equal(y.cpu(), x)
    assert torch.equal(y.transpose(0, 2).contiguous().cpu(), x.transpose(0, 2))
    assert torch.equal(y[:, 1:, ::2].cpu(), x[:, 1:, ::2])


def test_casts():
    x = torch.randn(100, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8):
        assert torch.equal(x.npu().to(dtype).cpu().float(), x.to(dtype).float())


def test_write_through_a_view():
    x = torch.zeros(4, 6, device="npu")
    x[1:3, ::2] = 5
    x[:, 0].add_(1)
    expected = torch.zeros(4, 6)
    expected[1:3, ::2] = 5
    expected[:, 0] += 1
    assert torch.equal(x.cpu(), expected)


def test_print():
    assert "tensor([1., 2., 3.], device='npu:0')" in str(torch.tensor([1.0, 2, 3], device="npu"))


def test_new_memory_is_poisoned(script):
    done = script("import torch; print(torch.empty(2**22, device='npu').cpu().isnan().all())")
    assert "tensor(True)" in done.stdout


def test_out_of_memory():
    free, total = torch.npu.mem_get_info()
    assert 0 < free <= total
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(total + 1, dtype=torch.int8, device="npu")
    assert torch.ones(3, device="npu").sum().item() == 3


def test_pinned_memory():
    x = torch.randn(1000).pin_memory()
    assert x.is_pinned() and not torch.randn(10).is_pinned()
    y = x.to("npu", non_blocking=True)
    torch.npu.synchronize()
    assert torch.equal(y.cpu(), x)


def test_two_devices():
    assert torch.npu.device_count() == 2
    x = torch.arange(5.0, device="npu:1")
    assert x.device.index == 1 and torch.npu.current_device() == 0
    y = x.to("npu:0") + torch.ones(5, device="npu:0")
    assert torch.equal(y.cpu(), torch.arange(5.0) + 1)
    with torch.npu.device(1):
        assert torch.zeros(2, device="npu").device.index == 1


def test_threads():
    wrong = []

    def work(number):
        torch.npu.set_device(number % 2)
        for step in range(30):
            x = torch.full((64,), float(number * 100 + step), device="npu")
            if not torch.equal((x * 2).cpu(), torch.full((64,), 2.0 * (number * 100 + step))):
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_autograd():
    x = torch.randn(4, 5, device="npu", requires_grad=True)
    w = torch.randn(5, 3, device="npu", requires_grad=True)
    (x @ w).tanh().sum().backward()
    a, b = x.detach().cpu().requires_grad_(), w.detach().cpu().requires_grad_()
    (a @ b).tanh().sum().backward()
    torch.testing.assert_close(x.grad.cpu(), a.grad)
    torch.testing.assert_close(w.grad.cpu(), b.grad)


@pytest.mark.parametrize("queue", ["0", "1", "2"])
@pytest.mark.parametrize("blocking", ["0", "1"])
@pytest.mark.parametrize("caching", ["0", "1"])
def test_random_steps(script, queue, blocking, caching):
    """Views, side streams and events in every mode of torch_npu: as on the CPU."""
    done = script(
        """
        import random, torch
        random.seed(3)
        xs = [torch.randn(8, 12) for _ in range(4)]
        ys = [x.npu() for x in xs]
        side = torch.npu.Stream()
        for step in range(150):
            i, j = random.randrange(4), random.randrange(4)
            what = random.randrange(5)
            if what == 0:
                xs[i], ys[i] = xs[i] + xs[j], ys[i] + ys[j]
            elif what == 1:
                xs[i][1:5, ::3] = xs[j][3:7, 1::3]
                ys[i][1:5, ::3] = ys[j][3:7, 1::3].clone()
            elif what == 2:
                xs[i], ys[i] = xs[i].tanh(), ys[i].tanh()
            elif what == 3:
                xs[i] = torch.cat([xs[i][:, 6:], xs[j][:, :6]], 1)
                ys[i] = torch.cat([ys[i][:, 6:], ys[j][:, :6]], 1)
            else:
                side.wait_stream(torch.npu.current_stream())
                with torch.npu.stream(side):
                    ys[i] = ys[i] * 0.5 + ys[j]
                torch.npu.current_stream().wait_stream(side)
                xs[i] = xs[i] * 0.5 + xs[j]
        for x, y in zip(xs, ys):
            torch.testing.assert_close(y.cpu(), x)
        print("same")
        """,
        TASK_QUEUE_ENABLE=queue,
        ASCEND_LAUNCH_BLOCKING=blocking,
        PYTORCH_NO_NPU_MEMORY_CACHING=caching,
        PA_HP_VNPU_JITTER_US="200",
    )
    assert "same" in done.stdout
