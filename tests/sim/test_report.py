"""The report of a launch: text, trace, picture."""

import builtins
import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from pa_hp import sim

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def kernel():
    return sim.Kernel(HERE / "kernels/score_exp.cce", "score_exp")


def launch(kernel, **options):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(64, 128, generator=generator).half()
    k = torch.randn(7 * 128, 128, generator=generator).half()
    out = torch.zeros(7, 64, 128, dtype=torch.float16)
    return kernel.launch(2, q, k, out, torch.zeros(2, 2, 64, 128), 128**-0.5, 7, **options)


@pytest.fixture(scope="module")
def report(kernel):
    return launch(kernel)


@pytest.fixture(scope="module")
def trace(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "x.json"
    report.save_trace(path)
    return json.loads(path.read_text())


def test_text(report):
    lines = str(report).splitlines()
    assert lines[0] == f"modelled time {report.time_us:.2f} us on 910B2, L2 cold"
    assert lines[1] == f"hazards: none; {report.ops} operations"
    assert any(line.startswith("AIC busy (modelled, mean of 2): S ") for line in lines)
    assert "critical path (modelled):" in lines
    assert f"modelled balance {report.balance:.3f} (last end / mean end)" in lines
    assert len(lines) <= 18


def test_text_says_warm(kernel):
    assert "L2 warm from a run before" in str(launch(kernel, warm=True))


def test_text_of_what_was_not_timed(kernel):
    report = launch(kernel, soc=None)
    assert report.time_us is None
    assert str(report).endswith("no time was modelled")
    with pytest.raises(ValueError, match="this launch was not timed"):
        report.save_trace("x.json")
    with pytest.raises(ValueError, match="this launch was not timed"):
        report.plot("x.png")


def test_text_shows_hazards(kernel):
    site = next(name for name in launch(kernel).sync_sites if "wait_flag_dev" in name)
    report = launch(kernel, drop=site)
    assert report.hazards[0].message in str(report)


def test_trace_has_every_core_and_pipe(report, trace):
    about = {"soc": "910B2", "times": "modelled, not measured", "cores": "6 of 6"}
    assert trace["otherData"] == about
    names, threads = {}, defaultdict(set)
    for event in trace["traceEvents"]:
        if event["name"] == "process_name":
            names[event["pid"]] = event["args"]["name"]
        if event["name"] == "thread_name":
            threads[event["pid"]].add(event["args"]["name"])
    assert list(names.values()) == ["AIC 0", "AIV 0.0", "AIV 0.1", "AIC 1", "AIV 1.0", "AIV 1.1"]
    for pid, name in names.items():
        assert threads[pid] == set(report.busy[name])


def test_trace_shows_every_operation_with_its_site(report, trace):
    slices = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(slices) == report.ops
    assert {s["cat"] for s in slices} == {"work", "flag", "wait", "barrier", "signal"}
    for event in slices:
        assert 0 <= event["ts"] <= report.time_us
        assert event["dur"] >= 0
        file, line = event["args"]["at"].split(":")
        assert file == "score_exp.cce"
        assert int(line) > 0


def test_trace_arrows_join_operations(report, trace):
    slices, arrows = defaultdict(list), defaultdict(dict)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            span = (event["ts"] - 1e-4, event["ts"] + event["dur"] + 1e-4, event["cat"])
            slices[event["pid"], event["tid"]].append(span)
        if event["ph"] in "sf":
            arrows[event["id"]][event["ph"]] = event
    assert len(arrows) == len(report.timeline.edges) > 50
    for ends in arrows.values():
        assert ends["s"]["ts"] <= ends["f"]["ts"]
        for phase, kinds in (("s", {"flag", "signal"}), ("f", {"wait"})):
            event = ends[phase]
            under = {
                kind
                for begin, end, kind in slices[event["pid"], event["tid"]]
                if begin <= event["ts"] <= end
            }
            assert under & kinds


def test_trace_of_chosen_cores(report, trace, tmp_path):
    shown = report.save_trace(tmp_path / "x.json", cores=["AIC 1", "AIV 1.0"])
    assert shown == ["AIC 1", "AIV 1.0"]
    events = json.loads((tmp_path / "x.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {3, 4}
    assert len(events) < len(trace["traceEvents"]) / 2
    with pytest.raises(ValueError, match="expected cores to be names such as 'AIC 0', got 'AIC 9'"):
        report.save_trace(tmp_path / "x.json", cores=["AIC 9"])


def test_trace_of_many_operations_is_cut_at_a_core(report, tmp_path):
    assert report.save_trace(tmp_path / "x.json", limit=report.ops // 2) == ["AIC 0", "AIV 0.0"]
    about = json.loads((tmp_path / "x.json").read_text())["otherData"]
    assert about["cores"] == "2 of 6"


def test_plot(report, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    report.plot(tmp_path / "x.png")
    pixels = image.imread(tmp_path / "x.png")
    height, width, _ = pixels.shape
    assert width > 1000
    assert height > 300
    colours = {tuple(pixel) for pixel in pixels[::3, ::3, :3].reshape(-1, 3).tolist()}
    assert len(colours) > 10
    report.plot(tmp_path / "y.png", cores=["AIV 1.0"], begin_us=1, end_us=2)
    assert image.imread(tmp_path / "y.png").shape[0] < height


def test_plot_without_matplotlib(report, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs matplotlib; pip install 'pa_hp\[plot\]'"):
        report.plot(tmp_path / "x.png")


def test_nothing_to_draw(report, tmp_path):
    with pytest.raises(ValueError, match="expected an operation to draw between"):
        report.plot(tmp_path / "x.png", begin_us=1e6, end_us=2e6)
    source = tmp_path / "empty.cce"
    source.write_text('extern "C" __global__ __aicore__ void run() {}\n')
    empty = sim.Kernel(source, "run", cores="aiv").launch(2)
    assert empty.hazards == [] and empty.ops == 0
    with pytest.raises(ValueError, match="expected an operation to draw between"):
        empty.plot(tmp_path / "x.png")
