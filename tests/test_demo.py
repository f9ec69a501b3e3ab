"""The demo: the small decoder against dense SDPA, and the command's verdict."""

import json

import pytest
import torch
from pa_hp import __main__ as cli
from pa_hp.bench import decode, demo
from pa_hp.bench.decoder import Decoder, PagedCache, Shape, generate_dense, write

SMALL = Shape(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=64)
KEYS = ["case", "dtype", "us", "gbps", "share_of_read", "ratios", "max_err", "ok"]
LONG_KEYS = [*KEYS, "tokens_per_s", "dense_tokens_per_s"]


def test_decoder_matches_dense_sdpa_and_compiles_once():
    row, line = demo.run_decoder(SMALL, num_tokens=20)
    assert row["ok"], line
    assert list(row) == KEYS
    assert "60 of 60 tokens" in line and "compiles 1," in line
    assert row["max_err"] > 0


def swap_pages(cache):
    cache.block_table[1:, 0] = cache.block_table[1:, 0].flip(0)


def forget_a_token(cache):
    cache.seq_lens[2] -= 1


def poison(cache):
    cache.keys[0][cache.block_table[0, 0], 0] = torch.nan


@pytest.mark.parametrize("spoil", [swap_pages, forget_a_token, poison])
def test_a_spoilt_cache_is_noticed(spoil):
    row, line = demo.run_decoder(SMALL, num_tokens=20, backend="eager", spoil=spoil)
    assert not row["ok"]
    assert "60 of 60 tokens" not in line
    assert row["max_err"] > demo.LOGITS_TOLERANCE


def run_small_context(real=demo.run_context, **options):
    return real(SMALL, batch=3, length=40, num_steps=4, backend="eager", **options)


def test_paged_and_dense_steps_agree_behind_a_context():
    row, line = run_small_context()
    assert row["ok"], line
    assert list(row) == LONG_KEYS
    assert row["max_err"] > 0
    assert f"{row['tokens_per_s']:.0f} tokens/s paged" in line
    assert f"{row['dense_tokens_per_s']:.0f} tokens/s dense" in line
    assert row["tokens_per_s"] == pytest.approx(3e6 / row["us"])


@pytest.mark.parametrize("spoil", [swap_pages, forget_a_token, poison])
def test_a_cache_spoilt_behind_a_context_is_noticed(spoil):
    row, line = run_small_context(spoil=spoil)
    assert not row["ok"] and "WRONG" in line
    assert row["max_err"] > 2 * demo.bf16_tolerance(SMALL.layers)


def test_a_recompile_is_noticed(monkeypatch):
    def compile_often(function, **options):  # as if something in the step changed with every call
        def call(*arguments):
            torch._dynamo.reset()
            return torch_compile(function, **options)(*arguments)

        return call

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compile_often)
    row, line = demo.run_decoder(SMALL, num_tokens=3, backend="eager")
    assert not row["ok"] and "compiles 3," in line and "9 of 9 tokens" in line


def test_dense_generation_depends_on_the_whole_prompt():
    model = Decoder(SMALL)
    prompt = torch.arange(9)
    with torch.no_grad():
        tokens, logits = generate_dense(model, prompt, 4)
        _, other = generate_dense(model, torch.cat((torch.tensor([33]), prompt[1:])), 4)
    assert torch.equal(logits.argmax(-1), tokens)
    assert (logits[0] - other[0]).abs().max() > demo.LOGITS_TOLERANCE


def test_write_puts_tokens_into_their_pages():
    cache = PagedCache(SMALL, batch=2, max_len=40)
    key = torch.randn(2, 2, 16)
    write(cache.keys[1], key, cache.block_table, torch.tensor([15, 16]))
    assert torch.equal(cache.keys[1][cache.block_table[0, 0], 15], key[0])
    assert torch.equal(cache.keys[1][cache.block_table[1, 1], 0], key[1])
    assert int(cache.keys[1].isfinite().sum()) == key.numel()


@pytest.fixture
def small_demo(monkeypatch):
    monkeypatch.setattr(
        demo, "run_decoder", lambda real=demo.run_decoder: real(SMALL, 4, backend="eager")
    )
    monkeypatch.setattr(demo, "run_context", run_small_context)
    return ["demo", "--small", "1", "--seconds", "0", "--case", "b1_h32kv8_s128"]


def test_demo_json_lines(small_demo, capsys):
    assert cli.main([*small_demo, "--json"]) == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [list(row) for row in rows] == [[*KEYS, "noisy"], KEYS, LONG_KEYS]
    assert [row["case"] for row in rows] == ["b1_h32kv8_s128", demo.DECODER, demo.LONG_DECODER]
    assert all(row["ok"] is True for row in rows)
    assert captured.err.splitlines()[-1].startswith("demo: all held")


def test_demo_ends_with_the_verdict(small_demo, capsys, monkeypatch):
    assert cli.main(small_demo) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("demo: all held")
    monkeypatch.setattr(decode, "check", lambda case, inputs: (1.0, False, case.batch))
    assert cli.main(small_demo) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("demo: NOT all held")


def test_demo_runs_every_published_case(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(decode, "run_cases", lambda cases, **options: ran.extend(cases) or True)
    for wrong in ("run_decoder", "run_context"):  # one wrong decoder alone is a failure too
        for name in ("run_decoder", "run_context"):
            row = {"ok": name != wrong}
            monkeypatch.setattr(demo, name, lambda row=row: (row, "decoder"))
        ran.clear()
        assert cli.main(["demo"]) == 1
        assert [case.name for case in ran] == list(decode.published())
        assert "decoders wrong" in capsys.readouterr().out
