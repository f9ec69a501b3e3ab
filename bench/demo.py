"""``python -m pa_hp demo``: the op on published shapes, and in compiled decoders."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import build
from . import decode, harness
from .decoder import (
    Decoder,
    PagedCache,
    Shape,
    decode_step,
    dense_step,
    generate_dense,
    prefill,
    write,
)
from .tolerance import LIMITS, SIGMAS, U32

NUM_TOKENS = 64
PROMPT_LENS = (5, 17, 40)  # below one page of 16, just past one, in the middle of one
DECODER = "decoder_l4_h8kv2_d64"

# Both sides work in float32 on numbers of size 1. As in docs/numerics.md, a dot product of n terms
# is off by sqrt(n / 6) U32; the longest has 768. A logit lies behind 33 such steps: 7 products and
# the attention in each of 4 layers, and the head. A layer adds the image of an error to the error
# itself, which makes it sqrt(2) times as large; 2 for both sides.
LOGITS_TOLERANCE = SIGMAS * U32 * math.sqrt(768 / 6 * 33 * 2**4 * 2)

# Enough context that attention takes a good part of a step; two layers, for compiling takes longer
# than the steps do.
LONG_SHAPE = Shape(layers=2, hidden=512, heads=16, kv_heads=4, intermediate=1536)
LONG_DECODER = "decoder_l2_h16kv4_d64_b4_s2048"
KEY_STD = 2.0  # softmax weights differ enough that a wrong page shows in the logits
WARM_STEPS = 2  # the first compiles, and so does the second: the dense length becomes a variable


def bf16_tolerance(layers: int) -> float:
    """How far logits of two bfloat16 decoders may be apart, as `LOGITS_TOLERANCE` in float32.

    Sums are float32, so what counts are the results rounded to bfloat16: of each, 2^-8 / sqrt(3) is
    the largest standard deviation. A layer has at most 20 (4 norms, 7 products, 2 ropes, 2 residual
    sums, weights and output of the attention, 3 in the gate), the ends 2. All are taken to be
    different ones on the two sides, and to grow as behind the first layer.
    """
    roundings = (20 * layers + 2) * 2**layers * 2
    return SIGMAS * LIMITS[torch.bfloat16].unit * math.sqrt(roundings / 3)


@torch.no_grad()
def run_decoder(
    shape: Shape = Shape(),  # noqa: B008 -- frozen
    num_tokens: int = NUM_TOKENS,
    backend: str = "inductor",
    spoil: Callable[[PagedCache], None] = lambda cache: None,
) -> tuple[dict[str, Any], str]:
    """Generate with paged, compiled steps and with dense SDPA; compare token for token.

    `spoil` may damage the cache after the prefill: a test's proof that the comparison can fail.
    Returns the ``--json`` row and a line of text.
    """
    from torch._dynamo.testing import CompileCounterWithBackend  # it takes a second to import

    build.load()
    model = Decoder(shape)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(shape.vocab, (n,), generator=generator) for n in PROMPT_LENS]
    dense = [generate_dense(model, prompt, num_tokens) for prompt in prompts]

    cache = PagedCache(shape, len(prompts), max(PROMPT_LENS) + num_tokens)
    prefill(model, cache, prompts)
    spoil(cache)
    counting = CompileCounterWithBackend(backend)
    step = torch.compile(decode_step, fullgraph=True, backend=counting)
    tokens = torch.stack([prompt[-1] for prompt in prompts])
    generated: list[Tensor] = []
    logits: list[Tensor] = []
    seconds: list[float] = []
    for number in range(num_tokens):
        harness.progress(f"decoder: token {number + 1}/{num_tokens}")
        begin = time.perf_counter()
        tokens, step_logits = step(
            model, tokens, cache.keys, cache.values, cache.block_table, cache.seq_lens
        )
        seconds.append(time.perf_counter() - begin)
        generated.append(tokens)
        logits.append(step_logits)
    harness.progress("")

    wanted = torch.stack([tokens for tokens, _ in dense], dim=1)  # [num_tokens, batch]
    same = int((torch.stack(generated) == wanted).sum())
    wanted_logits = torch.stack([logits for _, logits in dense], dim=1)
    max_err = float((torch.stack(logits) - wanted_logits).abs().nan_to_num(torch.inf).max())
    us = 1e6 * harness.quantile(seconds[1:] or seconds, 0.5)  # the first step compiles
    ok = same == wanted.numel() and max_err <= LOGITS_TOLERANCE and counting.frame_count == 1
    row = {
        "case": DECODER,
        "dtype": "fp32",
        "us": us,
        "gbps": None,
        "share_of_read": None,
        "ratios": {},
        "max_err": max_err,
        "ok": ok,
    }
    line = (
        f"{DECODER}: {same} of {wanted.numel()} tokens as with dense SDPA "
        f"({len(set(wanted.flatten().tolist()))} different ones), compiles {counting.frame_count}, "
        f"{us:.0f} us a step of {len(prompts)} sequences, logits' max err {max_err:.1e}"
    )
    return row, line


def random_context(
    cache: PagedCache, length: int, key_std: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Fill `cache` with `length` tokens of every sequence; return K and V for `dense_step`."""
    generator = torch.Generator().manual_seed(2)
    batch, positions = len(cache.seq_lens), torch.arange(length)
    for layers, std in ((cache.keys, key_std), (cache.values, 1.0)):
        for pages in layers:
            for row in range(batch):
                rows = std * torch.randn(length, *pages.shape[2:], generator=generator)
                blocks = cache.block_table[row].expand(length, -1)
                write(pages, rows.to(pages.dtype), blocks, positions)
    cache.seq_lens.fill_(length)

    def dense(pages: Tensor) -> Tensor:
        return pages[cache.block_table.long()].flatten(1, 2).transpose(1, 2).contiguous()

    return [dense(pages) for pages in cache.keys], [dense(pages) for pages in cache.values]


@torch.no_grad()
def run_context(
    shape: Shape = LONG_SHAPE,
    batch: int = 4,
    length: int = 2048,
    num_steps: int = 60,
    backend: str = "inductor",
    spoil: Callable[[PagedCache], None] = lambda cache: None,
) -> tuple[dict[str, Any], str]:
    """Time compiled steps behind a long context, paged and with dense SDPA, in turn.

    K and V of the context are random: no time is spent on a prefill. Both take the tokens that the
    paged steps choose; the logits of all steps are compared. `spoil` may damage the paged cache.
    Returns the ``--json`` row and a line of text.
    """
    build.load()
    model = Decoder(shape).bfloat16()
    cache = PagedCache(shape, batch, length + num_steps, dtype=torch.bfloat16)
    keys, values = random_context(cache, length, KEY_STD)
    spoil(cache)
    paged = torch.compile(decode_step, fullgraph=True, backend=backend)
    dense = torch.compile(dense_step, fullgraph=True, backend=backend)
    tokens = torch.arange(batch)
    times: dict[str, list[float]] = {"paged": [], "dense": []}
    max_err = 0.0
    for number in range(num_steps):
        harness.progress(f"decoder behind {length} tokens: step {number + 1}/{num_steps}")
        results = {}
        for name in ("paged", "dense") if number % 2 else ("dense", "paged"):
            begin = time.perf_counter()
            if name == "paged":
                results[name] = paged(
                    model, tokens, cache.keys, cache.values, cache.block_table, cache.seq_lens
                )
            else:
                results[name] = dense(model, tokens, keys, values, length + number)
            times[name].append(time.perf_counter() - begin)
        tokens, logits = results["paged"]
        error = (logits.float() - results["dense"][1].float()).abs().nan_to_num(torch.inf)
        max_err = max(max_err, float(error.max()))
    harness.progress("")

    warm = {name: samples[WARM_STEPS:] or samples for name, samples in times.items()}
    seconds = {name: harness.quantile(samples, 0.5) for name, samples in warm.items()}
    ratio = harness.ratio(harness.Samples(warm, False), "dense", "paged")
    row = {
        "case": LONG_DECODER,
        "dtype": "bf16",
        "us": 1e6 * seconds["paged"],
        "gbps": None,
        "share_of_read": None,
        "ratios": {"dense": ratio},
        "max_err": max_err,
        "ok": max_err <= bf16_tolerance(shape.layers),
        "tokens_per_s": batch / seconds["paged"],
        "dense_tokens_per_s": batch / seconds["dense"],
    }
    line = (
        f"{LONG_DECODER}: {row['tokens_per_s']:.0f} tokens/s paged, "
        f"{row['dense_tokens_per_s']:.0f} tokens/s dense, ratio {ratio:.2f}, "
        f"logits differ by up to {max_err:.1e}{'' if row['ok'] else ' (WRONG)'}"
    )
    return row, line


def command(arguments: argparse.Namespace) -> int:
    """The ``demo`` subcommand; returns the exit code."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    begin = time.perf_counter()
    right = decode.run_cases(
        arguments.case,
        peers=decode.PEERS,
        small_mb=arguments.small,
        seconds=arguments.seconds,
        as_json=arguments.json,
        facts={},
    )
    decoders_right = True
    for run in (run_decoder, run_context):
        row, line = run()
        print(json.dumps(row) if arguments.json else line, flush=True)
        decoders_right = decoders_right and row["ok"]
    held = right and decoders_right
    print(
        f"demo: {'all held' if held else 'NOT all held'}: {len(arguments.case)} cases"
        f"{'' if right else ' (some wrong)'}, decoders {'right' if decoders_right else 'wrong'}, "
        f"{time.perf_counter() - begin:.0f} s",
        file=sys.stderr if arguments.json else sys.stdout,
    )
    return 0 if held else 1
