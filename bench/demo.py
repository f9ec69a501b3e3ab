"""``python -m pa_hp demo``: the op on published shapes, and in a compiled decoder."""

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
from .decoder import Decoder, PagedCache, Shape, decode_step, generate_dense, prefill
from .tolerance import SIGMAS, U32

NUM_TOKENS = 64
PROMPT_LENS = (5, 17, 40)  # below one page of 16, just past one, in the middle of one
DECODER = "decoder_l4_h8kv2_d64"

# Both sides work in float32 on numbers of size 1. As in docs/numerics.md, a dot product of n terms
# is off by sqrt(n / 6) U32; the longest has 768. A logit lies behind 33 such steps: 7 products and
# the attention in each of 4 layers, and the head. A layer adds the image of an error to the error
# itself, which makes it sqrt(2) times as large; 2 for both sides.
LOGITS_TOLERANCE = SIGMAS * U32 * math.sqrt(768 / 6 * 33 * 2**4 * 2)


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
    row, line = run_decoder()
    print(json.dumps(row) if arguments.json else line, flush=True)
    held = right and row["ok"]
    print(
        f"demo: {'all held' if held else 'NOT all held'}: {len(arguments.case)} cases"
        f"{'' if right else ' (some wrong)'}, decoder {'right' if row['ok'] else 'wrong'}, "
        f"{time.perf_counter() - begin:.0f} s",
        file=sys.stderr if arguments.json else sys.stdout,
    )
    return 0 if held else 1
