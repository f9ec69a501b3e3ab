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
  // Writes the fp32 query rows of one sequence, scaled so that 2^(q.k) is the softmax weight.
  void (*load_query)(const DecodeParams& params, int64_t seq, float* query);

  // State of tokens [begin, end) of `seq` (at most kChunkTokens) for kv heads [kv_begin, kv_end).
  // `query` is load_query's; `state` is indexed by query head; `scratch` holds
  // scratch_floats(params).
  void (*attend)(const DecodeParams& params, int64_t seq, int64_t begin, int64_t end,
                 int64_t kv_begin, int64_t kv_end, const float* query, State state, float* scratch);

  // state <- state combined with `next`, for `rows` rows.
  void (*fold)(int64_t rows, int64_t head_dim_v, State state, State next);

  // Writes out and lse of query heads [head, head + rows) of `seq`; state row 0 is that of `head`.
  void (*finish)(const DecodeParams& params, int64_t seq, int64_t head, int64_t rows, State state);
};

// Places for a token's rows or scores: a chunk's, and what whole vectors and tiles read behind
// them, a tile more included.
constexpr int64_t kRoom = kChunkTokens + 32;

// Pointers to keys and values, scores of all heads, and tiles of keys or values: for wide groups
// two of up to 32 tokens, and with AMX one of 32 tokens in bfloat16 for every kv head.
inline int64_t scratch_floats(const DecodeParams& params) {
  const int64_t wide = params.group >= 16 ? 2 * 32 : 0;
  const int64_t each = params.group >= 8 && params.dtype == DType::kBFloat16 ? 32 / 2 : 0;
  const int64_t tiles =
      std::max(wide, each * params.kv_heads) * std::max(params.head_dim, params.head_dim_v);
  return kRoom * (2 * static_cast<int64_t>(sizeof(void*) / sizeof(float)) + params.heads) + tiles;
}

namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {  // head_dim and head_dim_v are multiples of 16
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
