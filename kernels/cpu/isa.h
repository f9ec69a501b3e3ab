// One table of kernels per instruction set; decode.cpp chooses one at run time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../params.h"
#include "decode.h"

namespace pa_hp::cpu {

// Softmax state of `rows` query heads, fp32, scores in units of log2: running maximum, sum of
// 2^(score - max), and the weighted sum of value rows, `head_dim_v` to a row.
struct State {
  float* max;
  float* sum;
  float* acc;
};

struct Kernels {
  // Writes the query of one sequence as `attend` wants it: padded_heads(params) * head_dim floats.
  void (*load_query)(const DecodeParams& params, int64_t seq, float* query);

  // State of tokens [begin, end) of `seq`, one of the chunks that chunk_tokens makes, for kv heads
  // [kv_begin, kv_end).
  // `query` is load_query's, also when this returns; `state` is indexed by query head; `scratch`
  // holds scratch_floats(params).
  void (*attend)(const DecodeParams& params, int64_t seq, int64_t begin, int64_t end,
                 int64_t kv_begin, int64_t kv_end, float* query, State state, float* scratch);

  // state <- state combined with `next`, for `rows` rows.
  void (*fold)(int64_t rows, int64_t head_dim_v, State state, State next);

  // Writes out and lse of query heads [head, head + rows) of `seq`; state row 0 is that of `head`.
  void (*finish)(const DecodeParams& params, int64_t seq, int64_t head, int64_t rows, State state);
};

// Places for a token's rows or scores: a chunk's, and what whole vectors and tiles read or fetch
// behind them, up to 16 + 32 (tiles_512_heads.inl).
constexpr int64_t kRoom = kChunkTokens + 48;

// With AMX the query heads of a kv head are in blocks of 8 or 16, the last of which may have fewer,
// from as many on as are faster so: docs/cpu.md. Room is kept for that with every instruction set.
inline bool has_blocks(const DecodeParams& params) {
  switch (params.dtype) {
    case DType::kFloat16:
      return params.group >= 9;
    case DType::kBFloat16:
      return params.group >= 5;
    default:
      return false;
  }
}

inline int64_t block_width(const DecodeParams& params) { return params.group <= 8 ? 8 : 16; }

// Query heads of a kv head with those that the last block lacks.
inline int64_t padded_group(const DecodeParams& params) {
  if (!has_blocks(params)) return params.group;
  const int64_t width = block_width(params);
  return (params.group + width - 1) / width * width;
}

inline int64_t padded_heads(const DecodeParams& params) {
  return params.kv_heads * padded_group(params);
}

inline int64_t padded_head(const DecodeParams& params, int64_t head) {
  return head / params.group * padded_group(params) + head % params.group;
}

// Pointers to keys and values, scores of all heads, and tiles of keys or values: two of 32 tokens
// for groups of 16, and with AMX one.
inline int64_t scratch_floats(const DecodeParams& params) {
  const int64_t tiles = params.group >= 16 ? 2 * 32 : has_blocks(params) ? 32 : 0;
  return kRoom * (2 * static_cast<int64_t>(sizeof(void*) / sizeof(float)) + padded_heads(params)) +
         tiles * std::max(params.head_dim, params.head_dim_v);
}

// The cores with AVX-512 that differ in how lines are best fetched ahead: docs/cpu.md, The order of
// memory.
enum class Core { kOther, kZen4, kZen5 };
Core core();

namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {  // head_dim and head_dim_v are multiples of 16, head_dim is more than 16
extern const Kernels kernels;
}
namespace avx512_bf16 {  // likewise
extern const Kernels kernels;
}
namespace amx_bf16 {  // likewise
extern const Kernels kernels;
}
#elif defined(__aarch64__) && defined(__linux__)
namespace neon_bf16 {
extern const Kernels kernels;
}
#endif

}  // namespace pa_hp::cpu
