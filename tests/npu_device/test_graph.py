"""NPUGraph: capture once, replay with new inputs."""

import pytest
import torch


def test_replay_sees_new_inputs(runtime):
    x = torch.zeros(16, device="npu")
    w = torch.eye(16, device="npu") * 2
    _ = (x @ w).tanh() + x  # warm up
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = (x @ w).tanh() + x
    before = {name: runtime.counter(name) for name in ("malloc", "device_to_host", "synchronise")}
    outputs = []
    for step in range(20):
        x.fill_(step / 10)
        graph.replay()
        outputs.append(y.clone())
    assert before == {name: runtime.counter(name) for name in before}
    for step, output in enumerate(outputs):
        value = torch.full((16,), step / 10)
        torch.testing.assert_close(output.cpu(), (value * 2).tanh() + value)


def test_nothing_runs_while_capturing():
    x = torch.ones(4, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        x.add_(1)
    assert x.cpu().tolist() == [1, 1, 1, 1]
    graph.replay()
    graph.replay()
    assert x.cpu().tolist() == [3, 3, 3, 3]


def test_two_streams_in_one_graph():
    x = torch.ones(4, device="npu")
    side = torch.npu.Stream()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        main = torch.npu.current_stream()
        a = x + 1
        side.wait_stream(main)
        with torch.npu.stream(side):
            b = a * 3
        main.wait_stream(side)
        c = a + b
    x.fill_(4)
    graph.replay()
    assert c.cpu().tolist() == [20, 20, 20, 20]


def test_synchronising_breaks_a_capture(script):
    done = script(
        """
        import torch
        x = torch.ones(4, device="npu")
        graph = torch.npu.NPUGraph()
        try:
            with torch.npu.graph(graph):
                (x + 1).cpu()
        except RuntimeError as error:
            print(error)
        """,
        check=False,
    )
    assert "captured" in done.stdout + done.stderr


@pytest.mark.parametrize("queue", ["0", "1"])
def test_task_queue(script, queue):
    done = script(
        """
        import torch
        x = torch.ones(4, device="npu")
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            y = x * 3
        x.fill_(5)
        graph.replay()
        print(y.cpu().tolist())
        """,
        TASK_QUEUE_ENABLE=queue,
    )
    assert "[15.0, 15.0, 15.0, 15.0]" in done.stdout


def test_a_task_group_is_updated():
    """How a serving engine gives a captured operator new host arguments."""
    x, y = torch.ones(4, device="npu"), torch.zeros(4, device="npu")
    graph, stream = torch.npu.NPUGraph(), torch.npu.Stream()
    with torch.npu.graph(graph, stream=stream):
        torch.npu.graph_task_group_begin(stream)
        torch.mul(x, 2.0, out=y)
        handle = torch.npu.graph_task_group_end(stream)
    update = torch.npu.Stream()
    for factor in (3.0, 5.0):
        with torch.npu.stream(update):
            torch.npu.graph_task_update_begin(update, handle)
            torch.mul(x, factor, out=y)
            torch.npu.graph_task_update_end(update)
        graph.replay()
        assert y.cpu().tolist() == [factor] * 4
