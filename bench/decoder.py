"""A small decoder in the shape of Qwen3 on a paged KV cache: the example to copy from.

GQA, RMSNorm on query and key, RoPE, SwiGLU; random weights. Tokens are one flat axis throughout:
a prompt is ``[tokens]``, a step is one token of each sequence, ``[batch]``; only `attend` knows the
difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS, ROPE_THETA = 1e-6, 1e6  # rms_norm_eps and rope_theta of Qwen3's published configurations

# attend(layer_idx, query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim])
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    layers: int = 4
    hidden: int = 256
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 768
    vocab: int = 512


def rope(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate ``x [tokens, heads, head_dim]`` by ``positions [tokens]``."""
    half = x.size(-1) // 2
    frequencies = ROPE_THETA ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions[:, None, None] * frequencies
    low, high = x.split(half, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.head_dim = shape.head_dim
        self.attention_norm = nn.RMSNorm(shape.hidden, EPS)
        self.query = nn.Linear(shape.hidden, width, bias=False)
        self.key = nn.Linear(shape.hidden, kv_width, bias=False)
        self.value = nn.Linear(shape.hidden, kv_width, bias=False)
        self.query_norm = nn.RMSNorm(shape.head_dim, EPS)
        self.key_norm = nn.RMSNorm(shape.head_dim, EPS)
        self.output = nn.Linear(width, shape.hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(shape.hidden, EPS)
        self.gate = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor, positions: Tensor, layer_idx: int, attend: Attend) -> Tensor:
        normed = self.attention_norm(x)
        query = self.query(normed).unflatten(-1, (-1, self.head_dim))
        key = self.key(normed).unflatten(-1, (-1, self.head_dim))
        value = self.value(normed).unflatten(-1, (-1, self.head_dim))
        query = rope(self.query_norm(query), positions)
        key = rope(self.key_norm(key), positions)
        x = x + self.output(attend(layer_idx, query, key, value).flatten(1))
        normed = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Decoder(nn.Module):
    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, EPS)
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() == 2:  # variance 1 in, variance 1 out
                nn.init.normal_(parameter, std=parameter.size(1) ** -0.5, generator=generator)

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Logits ``[tokens, vocab]`` of ``tokens [tokens]`` at ``positions [tokens]``."""
        x = self.embedding(tokens)
        for layer_idx, layer in enumerate(self.layers):
            x = layer(x, positions, layer_idx, attend)
        return self.head(self.norm(x))


class PagedCache:
    """K and V of all layers in shuffled pages, and how many tokens of each sequence they hold."""

    def __init__(
        self,
        shape: Shape,
        batch: int,
        max_len: int,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        max_blocks = -(-max_len // block_size)
        num_blocks = batch * max_blocks
        size = (num_blocks, block_size, shape.kv_heads, shape.head_dim)
        # A tensor each, not views of one: Inductor writes a graph input in place, but copies all of
        # it where it is written through a view. NaN: what nobody wrote must not matter.
        self.keys = [torch.full(size, torch.nan, dtype=dtype) for _ in range(shape.layers)]
        self.values = [torch.full(size, torch.nan, dtype=dtype) for _ in range(shape.layers)]
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(num_blocks, dtype=torch.int32, generator=generator)
        self.block_table = order.view(batch, max_blocks)
        self.seq_lens = torch.zeros(batch, dtype=torch.int32)


def write(cache: Tensor, rows: Tensor, blocks: Tensor, positions: Tensor) -> None:
    """Put ``rows [tokens, kv_heads, head_dim]`` into their pages of one layer's K or V.

    `cache` is ``[num_blocks, block_size, kv_heads, head_dim]``; token i goes into block
    ``blocks[i, positions[i] // block_size]``.
    """
    block_size = cache.size(1)
    block = blocks.gather(1, (positions // block_size)[:, None])[:, 0]
    cache[block, positions % block_size] = rows


def causal(layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Dense attention of a whole prompt to itself."""
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return out[0].transpose(0, 1)


def prefill(model: Decoder, cache: PagedCache, prompts: Sequence[Tensor]) -> None:
    """Fill `cache` with all but the last token of every prompt; the first step takes that one."""
    for row, prompt in enumerate(prompts):
        positions = torch.arange(len(prompt) - 1)
        blocks = cache.block_table[row].expand(len(positions), -1)

        def attend(layer_idx, query, key, value, positions=positions, blocks=blocks):
            write(cache.keys[layer_idx], key, blocks, positions)
            write(cache.values[layer_idx], value, blocks, positions)
            return causal(layer_idx, query, key, value)

        model(prompt[:-1], positions, attend)
        cache.seq_lens[row] = len(positions)


def decode_step(
    model: Decoder,
    tokens: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    block_table: Tensor,
    seq_lens: Tensor,
) -> tuple[Tensor, Tensor]:
    """Take one token of every sequence, ``[batch]``; return the next ones and the logits.

    Writes `keys` and `values` and adds 1 to `seq_lens`, in place: nothing here depends on the
    value of a length, so torch.compile traces it once.
    """
    positions = seq_lens.long()
    seq_lens += 1

    def attend(layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        write(keys[layer_idx], key, block_table, positions)
        write(values[layer_idx], value, block_table, positions)
        return torch.ops.pa_hp.decode(
            query, keys[layer_idx], values[layer_idx], block_table, seq_lens
        )

    logits = model(tokens, positions, attend)
    return logits.argmax(-1), logits


def dense_step(
    model: Decoder, tokens: Tensor, keys: list[Tensor], values: list[Tensor], length: int
) -> tuple[Tensor, Tensor]:
    """`decode_step` without pages, for sequences that all have `length` tokens so far.

    `keys` and `values` are ``[batch, kv_heads, max_len, head_dim]``, contiguous, and written in
    place.
    """
    positions = torch.full_like(tokens, length)

    def attend(layer_idx: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys[layer_idx].index_copy_(2, positions[:1], key[:, :, None])
        values[layer_idx].index_copy_(2, positions[:1], value[:, :, None])
        # The GQA group as query-length axis and a slice instead of a mask: of what SDPA offers the
        # fastest. Behind 2080 tokens (batch 4, 4 kv heads, group 4, bfloat16, two cores of an AMD
        # EPYC) a mask over max_len took 1.15 times as long, enable_gqa 6 times.
        folded = query.unflatten(1, (key.size(1), -1))
        stored_keys = keys[layer_idx][:, :, : length + 1]
        stored_values = values[layer_idx][:, :, : length + 1]
        out = F.scaled_dot_product_attention(folded, stored_keys, stored_values)
        return out.flatten(1, 2)

    logits = model(tokens, positions, attend)
    return logits.argmax(-1), logits


def generate_dense(model: Decoder, prompt: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """The same without any cache: every step runs the whole sequence through dense SDPA.

    Returns tokens ``[num_tokens]`` and their logits ``[num_tokens, vocab]``.
    """
    tokens, logits = prompt, []
    for _ in range(num_tokens):
        logits.append(model(tokens, torch.arange(len(tokens)), causal)[-1])
        tokens = torch.cat((tokens, logits[-1].argmax(-1, keepdim=True)))
    return tokens[len(prompt) :], torch.stack(logits)
