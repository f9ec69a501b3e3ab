// Native CPU decode: the work plan and the entry point. No torch types below this line.
#pragma once

#include <cstdint>

#include "../params.h"

namespace pa_hp::cpu {

// How the caller lends its threads: run(context, body, data, n) calls body(data, i) once for every
// i in [0, n), on any thread and in any order, and returns when all are done.
struct Threads {
  int64_t num_threads;
  void (*run)(void (*body)(void* data, int64_t i), void* data, int64_t n);
};

// Every sequence is attended in chunks, each from a fresh softmax state. The chunks of a span are
// folded from left to right, and so are the spans. So a row's bits depend on its own length and the
// numbers and sizes of heads alone, never on the thread count or on the rest of the batch. With
// spans a share of the work that starts with one leaves few states to those who merge: one sequence
// of 4096 tokens, float16, in two even shares on two Zen 5 cores, has 71 GB/s with them and 66
// without.
constexpr int64_t kChunkTokens = 256;
constexpr int64_t kSpanChunks = 8;

// Places of a chunk that are read in turn: a core follows several streams of memory faster than
// one, and arithmetic then hides behind them. One Zen 3 core, cold pages, group 4 in float16, tiles
// of 3 and 4 tokens and nothing fetched: 10 GB/s with 2 streams, 13 with 3, 15 with 4, 13 with 8.
constexpr int kStreams = 4;

// Below this many multiply-adds a second thread costs more than it brings: waking one takes some
// microseconds, in which a core does about this much. Bits depend on it, by chunk_tokens.
constexpr int64_t kMinWorkPerThread = 1 << 18;

inline int64_t multiply_adds(const DecodeParams& p, int64_t tokens) {
  return tokens * p.heads * (p.head_dim + p.head_dim_v);
}

// Tokens of a chunk in a sequence of `len`; the last chunk may have fewer. 129 to 1024 tokens are
// two or four chunks as equal as streams of whole tokens allow, where they are work for two
// threads: docs/cpu.md, The cut of the work.
inline int64_t chunk_tokens(const DecodeParams& p, int64_t len) {
  const bool for_two = multiply_adds(p, len) >= 2 * kMinWorkPerThread;
  if (len <= kChunkTokens / 2 || len > 4 * kChunkTokens || !for_two) return kChunkTokens;
  const int64_t step = (len <= 2 * kChunkTokens ? 2 : 4) * kStreams;
  return (len + step - 1) / step * kStreams;
}

// Attends every row. All arguments have been checked; lengths and block ids are in range.
void run_decode(const DecodeParams& params, const Threads& threads);

// Name of the instruction set that run_decode uses: "amx_bf16", "avx512_bf16", "avx512", "avx2",
// "neon_bf16" or "baseline". PA_HP_CPU_ISA, read once, chooses one by name; throws
// std::runtime_error if this machine cannot run it.
const char* isa_name();

}  // namespace pa_hp::cpu
