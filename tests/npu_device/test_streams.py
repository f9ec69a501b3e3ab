"""Streams run at the same time; only events and synchronisation order them."""

import time

import pytest
import torch


def test_a_stream_does_not_hold_the_host(runtime):
    stream = torch.npu.Stream()
    begin = time.perf_counter()
    runtime.delay(stream, 200)
    assert time.perf_counter() - begin < 0.1
    assert not stream.query()
    stream.synchronize()
    assert time.perf_counter() - begin >= 0.2
    assert stream.query()


@pytest.mark.parametrize("order", [True, False])
def test_a_missing_wait_gives_the_old_value(runtime, order):
    x = torch.zeros(16, device="npu")
    side = torch.npu.Stream()
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        runtime.delay(side, 200)
        x.fill_(7)
        written = side.record_event()
    if order:
        torch.npu.current_stream().wait_event(written)
    seen = x.clone().cpu()
    assert torch.equal(seen, torch.full((16,), 7.0 if order else 0.0))
    torch.npu.synchronize()
    assert torch.equal(x.cpu(), torch.full((16,), 7.0))


def test_a_missing_synchronisation_before_reading_pinned_memory(runtime):
    host = torch.zeros(8).pin_memory()
    stream = torch.npu.current_stream()
    x = torch.ones(8, device="npu")
    runtime.delay(stream, 200)
    host.copy_(x, non_blocking=True)
    assert host.sum() == 0
    stream.synchronize()
    assert host.sum() == 8


def test_an_event_is_its_latest_record(runtime):
    stream = torch.npu.Stream()
    event = torch.npu.Event()
    event.record(stream)
    event.synchronize()
    assert event.query()
    runtime.delay(stream, 100)
    event.record(stream)
    assert not event.query()
    event.synchronize()
    assert event.query() and stream.query()


def test_elapsed_time_is_modelled(runtime):
    """A delay of the host's is no time of the device's."""
    begin, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    x = torch.ones(8, device="npu")
    begin.record()
    runtime.delay(torch.npu.current_stream(), 50)
    x + 1
    end.record()
    end.synchronize()
    assert 0 < begin.elapsed_time(end) < 1
