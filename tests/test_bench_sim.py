"""The bench of the modelled chip and ``sim decode``: bytes, published times, lines, options."""

import json
from dataclasses import replace

import pa_hp
import pytest
import torch
from pa_hp import __main__ as cli
from pa_hp.bench import decode, npu, suites
from pa_hp.bench.tolerance import out_limits
from pa_hp.kernels.sim import Finding
from pa_hp.kernels.sim.report import chip_parameters
from test_bench import published_entries

KEYS = [
    "case", "modelled_us", "gbps", "share_of_limit", "balance", "workspace_bytes", "hazards",
    "max_err",
]  # fmt: skip
TINY = ["sim", "decode", "--batch", "2", "--heads", "8", "--kv-heads", "2", "--seq", "200"]
SIM = ["bench", "--device", "sim"]


def last_row(capsys):
    return json.loads(capsys.readouterr().out)


def test_bytes_are_the_published_ones():
    cases = suites.cases("upstream")
    for entry in published_entries():
        assert cases[entry["case"]].num_bytes == entry["bytes_q_k_v_o"]


def test_bytes_with_another_head_dim_v():
    case = decode.Case("v", 4, 2, 64, 16, (3, 20), "bf16", head_dim_v=32)
    query, key, value, _, _ = decode.make_inputs(case, max_layers=1).layer(0)
    assert (query.shape[-1], key.shape[-1], value.shape[-1]) == (64, 64, 32)
    q_and_o, k_and_v = 2 * 4 * (64 + 32) * 2, 23 * 2 * (64 + 32) * 2
    assert case.num_bytes == q_and_o + k_and_v and case.kv_bytes == k_and_v


def test_suites():
    assert suites.cases("upstream") == decode.published()
    ragged, wide = suites.cases("ragged"), suites.cases("wide")
    assert [(case.batch, max(case.seq_lens)) for case in ragged.values()] == [
        (16, 3756), (64, max(ragged["uniform_b64_h32kv8_s1-8192"].seq_lens)), (32, 32768),
    ]  # fmt: skip
    assert {(c.heads, c.kv_heads, c.head_dim, c.block_size) for c in ragged.values()} == {
        (32, 8, 128, 128)
    }
    assert sorted(set(ragged["outlier_b32_h32kv8_s32768"].seq_lens)) == [512, 32768]
    assert len(wide) == 7
    cpu = suites.cases("cpu")
    large = [case for name, case in cpu.items() if not name.startswith("b1_h32kv8_s300_")]
    assert len(cpu) == 24 and len(large) == 22
    assert all(16e6 < case.kv_bytes < 310e6 for case in large)
    assert all(name.endswith(f"_{case.dtype}") for name, case in cpu.items())
    lengths = cpu["b32_h32kv8_s1-4096_bf16"].seq_lens
    assert (len(lengths), min(lengths) >= 1, max(lengths) <= 4096) == (32, True, True)
    for name, case in (ragged | wide | cpu).items():
        assert f"b{case.batch}_h{case.heads}kv{case.kv_heads}" in name
        assert f"d{case.head_dim}_" in name or case.head_dim == 128
        assert f"bs{case.block_size}_" in name or case.block_size == 128
        assert name.startswith("heads_first") == case.heads_first
        assert f"_s{max(case.seq_lens)}" in name or len(set(case.seq_lens)) > 1


def test_published_times_are_copied_right():
    cases = suites.cases("upstream")
    assert suites.published_us(cases["qwen3-8b_b16_h32kv8_s2048"]) == {
        "upstream": 121.9, "ifa": 102.4, "atb": 158.1,
    }  # fmt: skip
    for entry in published_entries():
        times = suites.published_us(cases[entry["case"]])
        published = entry["published_us"]
        assert list(times.values()) == [published.get(k) for k in ("upstream", "ifa", "atb_v1")]
    nothing = dict.fromkeys(("upstream", "ifa", "atb"))
    case = cases["qwen3-8b_b16_h32kv8_s2048"]
    for other in (replace(case, dtype="bf16"), decode.fit(case, 9), cases["b4_h32kv8_s512"]):
        assert suites.published_us(other) == nothing


def test_pages_are_ascending_or_shuffled():
    case = decode.Case("pages", 4, 2, 16, 16, (200, 100), "fp16")
    tables = [decode.make_inputs(case, 1, shuffle).block_table for shuffle in (False, True)]
    assert tables[0][0].tolist() == list(range(13)) and tables[0][1, :7].tolist() == [
        *range(13, 20)
    ]
    assert tables[1][0].tolist() != list(range(13))
    assert sorted([*tables[1][0].tolist(), *tables[1][1, :7].tolist()]) == list(range(20))


def test_sim_decode_json(capsys):
    assert cli.main([*TINY, "--json", "--head-dim-v", "64", "--soc", "910B4"]) == 0
    row = last_row(capsys)
    assert list(row) == KEYS
    assert row["case"] == "b2_h8kv2_s200_d128v64_bs128_fp16"
    num_bytes = (2 * 8 + 400 * 2) * (128 + 64) * 2
    assert row["gbps"] == pytest.approx(num_bytes / row["modelled_us"] / 1e3)
    (hbm,) = chip_parameters("910B4", ["hbm"])
    assert row["share_of_limit"] == pytest.approx(row["gbps"] / 1e3 / hbm)
    assert row["balance"] >= 1 and row["hazards"] == 0 and 0 < row["max_err"] < 1e-3


def test_sim_decode_is_simulate(capsys):
    """The row against a launch with a workspace of exactly its size, and ragged lengths."""
    assert cli.main([*TINY, "--json", "--ragged", "--dtype", "bf16", "--shuffle"]) == 0
    row = last_row(capsys)
    assert row["case"] == "b2_h8kv2_s1-200_d128_bs128_bf16"
    lens = torch.randint(1, 201, (2,), generator=torch.Generator().manual_seed(0)).tolist()
    case = decode.Case(row["case"], 8, 2, 128, 128, tuple(lens), "bf16")
    inputs = decode.make_inputs(case, max_layers=1).layer(0)
    workspace = torch.empty(row["workspace_bytes"], dtype=torch.uint8)
    out, report = pa_hp.simulate(*inputs, workspace=workspace)
    expected, _ = pa_hp.reference(*inputs)
    assert row["modelled_us"] == report.time_us and row["balance"] == report.balance
    assert row["max_err"] == (out.double() - expected).abs().max()
    with pytest.raises(ValueError, match="workspace"):
        pa_hp.simulate(*inputs, workspace=workspace[1:].clone())


def test_sim_decode_text_and_files(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    files = ["--trace", str(tmp_path / "t.json"), "--plot", str(tmp_path / "t.png")]
    assert cli.main([*TINY, "--no-check", *files]) == 0
    text = capsys.readouterr().out
    for line in text.splitlines():
        if any(figure in line for figure in (" us", "GB/s", "balance", "busy")):
            assert "modelled" in line or text.index(line) > text.index("critical path (modelled)")
    for part in ("no NPU was used", "pages ascending", "L2 cold", "910B2", "hazards: none",
                 "checker off", "workspace", "max error"):  # fmt: skip
        assert part in text
    assert text.count("checker off") == 1
    assert "modelled, not measured" in (tmp_path / "t.json").read_text()
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


NAMES = "b1_h32kv8_s128,qwen3-4b_b1_h32kv8_s2048"


def test_bench_json(capsys):
    assert cli.main([*SIM, "--json", "--case", NAMES, "--small", "5"]) == 0
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["case"] for row in rows] == ["b1_h32kv8_s128", "qwen3-4b_b1_h32kv8_s2048@b1_s1220"]
    assert all(list(row) == [*KEYS, "published"] for row in rows)
    assert rows[1]["published"] == {"upstream": None, "ifa": None, "atb": None}
    assert "scaled qwen3-4b_b1_h32kv8_s2048 to" in printed.err


def test_bench_text(capsys):
    arguments = ["--case", NAMES, "--dtype", "fp16", "--soc", "910B1", "--shuffle"]
    assert cli.main([*SIM, *arguments]) == 0
    *header, titles, first, second = capsys.readouterr().out.splitlines()
    for part in ("suite upstream", "soc 910B1", "L2 cold", "pages in random order", "checker off",
                 "No NPU was used", "1420 GB/s"):  # fmt: skip
        assert part in "\n".join(header)
    columns = [title.strip() for title in titles.split("|")]
    cells = [[cell.strip() for cell in line.split("|")] for line in (first, second)]
    assert all(len(row) == len(columns) and "modelled" in row[1] for row in cells)
    assert all("modelled" in columns[number] for number in range(1, 5))
    assert cells[0][0] == "b1_h32kv8_s128 fp16" and cells[0][6:9] == ["-"] * 3
    assert cells[1][6:9] == ["73.6", "78.9", "130.8"]


@pytest.mark.parametrize("fault", ["hazard", "wrong", "nan", "stopped"])
def test_faults_are_exit_code_1(fault, monkeypatch, capsys):
    def faulty(*inputs, **options):
        out, report = pa_hp.simulate(*inputs, **options)
        if fault == "hazard":
            report.hazards.append(Finding("RAW", "read too early", 3))
        elif fault == "stopped":
            report.hazards.append(Finding("stopped", "read too early", 3))
            report.time_us = report.balance = report.timeline = None
        else:
            out[1, 3, 5] += 0.01 if fault == "wrong" else torch.nan
        return out, report

    monkeypatch.setattr(npu, "simulate", faulty)
    ours = decode.Case("b2", 8, 2, 128, 128, (200,) * 2, "fp16")
    monkeypatch.setattr(suites, "cases", lambda suite: {"b2": ours})
    for command in (TINY, SIM):
        assert cli.main(command) == 1
        text = capsys.readouterr()
        if fault in ("wrong", "nan"):
            assert "WRONG" in text.out
        else:
            assert "read too early (x3)" in text.out + text.err
        assert cli.main([*command, "--json"]) == 1
        row = last_row(capsys)
        assert row["hazards"] == (3 if fault in ("hazard", "stopped") else 0)
        assert (row["modelled_us"] is None) == (row["gbps"] is None) == (fault == "stopped")
        assert (row["max_err"] is None) == (fault == "nan")


def test_limit_covers_the_rounding_of_the_weights_and_little_more():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16):
        for length in (1, 2, 17, 300, 4000):
            weights = torch.randn(64, length, generator=generator).double().softmax(-1)
            values = torch.randn(length, 128, generator=generator).to(dtype).double()
            want = weights @ values
            top = weights.amax(-1, keepdim=True)
            got = ((weights / top).to(dtype).double() @ values * top).to(dtype).double()
            atol, rtol = out_limits(dtype, 128, length, weights_dtype=dtype)
            error = (got - want).abs()
            assert (error <= atol + rtol * want.abs()).all()
            assert atol < 0.05 * want.abs().mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "wide"], "expected --suite upstream or cpu with --device cpu, got wide"),
        (["--device", "sim", "--suite", "cpu"], "upstream or ragged or wide with --device sim"),
        (["--soc", "910B2"], "expected no --soc with --device cpu"),
        (["--shuffle"], "expected no --shuffle with --device cpu"),
        (["--check"], "expected no --check with --device cpu"),
        (["--device", "sim", "--threads", "1"], "expected no --threads with --device sim"),
        (["--device", "sim", "--seconds", "0"], "expected no --seconds with --device sim"),
        (["--device", "sim", "--peer", "sdpa"], "expected no --peer with --device sim"),
        (
            ["--device", "sim", "--dtype", "fp32"],
            "--dtype fp16 or bf16 with --device sim, got fp32",
        ),
        (["--device", "sim", "--soc", "310P"], "'910B1', '910B2', '910B3', '910B4'"),
        (["--device", "sim", "--suite", "wide", "--case", "b1*"], "mqa_b64_h16kv1_s8192"),
    ],
)
def test_options_of_the_other_device_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["bench", *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "5"], "expected query.size(1) to be a positive multiple of 2"),
        (["--head-dim", "24"], "expected query.size(2) to be a multiple of 16 up to 256, got 24"),
        (["--head-dim-v", "512"], "expected value_cache.size(3) to be a multiple of 16 up to 256"),
        (["--block-size", "8"], "expected key_cache.size(1) to be a multiple of 16 up to 512"),
        (["--block-size", str(1 << 40)], "at most a quarter of the free"),
        (["--trace", "no/such/folder/t.json"], "no/such/folder/t.json"),
    ],
)
def test_wrong_arguments_of_sim_decode_are_one_line(arguments, message, capsys):
    assert cli.main([*TINY, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m pa_hp sim decode: ") and message in line


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--dtype", "fp32"], ["--soc", "910A"]])
def test_wrong_words_of_sim_decode_are_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main([*TINY, *arguments])
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err
