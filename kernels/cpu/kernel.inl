// The attention arithmetic, written once on compiler vectors and included once per instruction set.
// The includer defines PA_HP_ISA (namespace) and PA_HP_VECTOR_BYTES, and PA_HP_F16C where the
// target converts fp16 in hardware. No lambdas here: they would not inherit the includer's target.

namespace pa_hp::cpu {
namespace PA_HP_ISA {
namespace {

constexpr int kLanes = PA_HP_VECTOR_BYTES / 4;
typedef float Vec __attribute__((vector_size(PA_HP_VECTOR_BYTES)));
typedef uint32_t BitVec __attribute__((vector_size(PA_HP_VECTOR_BYTES)));
typedef uint16_t HalfVec __attribute__((vector_size(PA_HP_VECTOR_BYTES / 2)));

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

inline Vec splat(float x) { return x - Vec{}; }

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline BitVec load_bits(const void* p) {
  HalfVec narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  return __builtin_convertvector(narrow, BitVec);
}

inline Vec load(const BFloat* p) { return (Vec)(load_bits(p) << 16); }

inline Vec load(const Half* p) {
#if PA_HP_F16C
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  // Exponent and fraction move to fp32's places; multiplying by 2^112 mends the exponent's bias and
  // makes normal numbers of subnormal ones. Infinity and NaN keep their all-ones exponent.
  const BitVec bits = load_bits(p);
  const BitVec magnitude = (bits & 0x7fff) << 13;
  const Vec scaled = (Vec)magnitude * splat(0x1p112f);
  const BitVec special = magnitude | 0x7f800000;
  const BitVec value = (bits & 0x7c00) == 0x7c00 ? special : (BitVec)scaled;
  return (Vec)(value | (bits & 0x8000) << 16);
#endif
}

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// fp32 -> out dtype, round to nearest even.
inline void narrow(float x, float* out) { *out = x; }

inline void narrow(float x, BFloat* out) {
  const uint32_t bits = float_bits(x);
  out->bits = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline void narrow(float x, Half* out) {
  const uint32_t bits = float_bits(x);
  const uint16_t sign = bits >> 16 & 0x8000;
  const float magnitude = std::fabs(x);
  if (x != x) {
    out->bits = 0x7e00;
  } else if (magnitude >=
             65520.f) {  // half-way between the largest fp16 and 2^16: rounds to infinity
    out->bits = sign | 0x7c00;
  } else if (magnitude <
             0x1p-14f) {  // subnormal: adding 0.5 leaves the rounded fraction in the low bits
    out->bits = sign | (float_bits(magnitude + 0.5f) & 0x7fff);
  } else {
    const uint32_t rounded = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
    out->bits = sign | ((rounded >> 13) - (112 << 10));
  }
}

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// 2^x. x = n + f with |f| <= 1/2, and 2^f is the Taylor series of exp(f ln 2) up to degree 7, whose
// remainder is below (ln(2) / 2)^8 / 8! = 5.2e-9, a tenth of fp32's rounding unit. Below 2^-126 it
// is 0, NaN stays NaN. Callers keep x <= 0.
inline Vec exp2(Vec x) {
  constexpr float kMagic = 0x1.8p23f;  // adding it rounds to an integer in the low bits
  const Vec shifted = (x < -126.f ? splat(-126.f) : x) + kMagic;
  const Vec f = (x < -126.f ? splat(0.f) : x) - (shifted - kMagic);
  Vec p = splat(1.5252733804059840e-5f);  // ln(2)^k / k!, k = 7 .. 1
  p = p * f + 1.5403530393381608e-4f;
  p = p * f + 1.3333558146428443e-3f;
  p = p * f + 9.6181291076284772e-3f;
  p = p * f + 5.5504108664821580e-2f;
  p = p * f + 2.4022650695910071e-1f;
  p = p * f + 6.9314718055994531e-1f;
  p = p * f + 1.f;
  const Vec result = (Vec)((BitVec)p + ((BitVec)shifted << 23));
  return x < -126.f ? splat(0.f) : (x == x ? result : x);
}

inline float exp2(float x) { return exp2(splat(x))[0]; }

// Subtracting -inf from -inf would give NaN where the weight is meant to be 0.
inline float finite_or_zero(float max) { return max == -kInfinity ? 0.f : max; }

inline float sum_lanes(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

template <class T>
void load_query(const DecodeParams& p, int64_t seq, float* query) {
  const float factor = p.scale * kLog2E;
  for (int64_t head = 0; head < p.heads; ++head) {
    const T* row =
        static_cast<const T*>(p.query) + seq * p.query_stride_batch + head * p.query_stride_head;
    for (int64_t i = 0; i < p.head_dim; i += kLanes) store(query + i, load(row + i) * factor);
    query += p.head_dim;
  }
}

// Scores of kRows query rows against kTokens keys: scores[row * stride + token].
template <int kRows, int kTokens, class T>
inline void score_tile(const float* query, const T* const* keys, int64_t offset, int64_t head_dim,
                       float* scores, int64_t stride) {
  Vec acc[kRows][kTokens] = {};
  for (int64_t i = 0; i < head_dim; i += kLanes) {
    Vec key[kTokens];
    for (int t = 0; t < kTokens; ++t) key[t] = load(keys[t] + offset + i);
    for (int r = 0; r < kRows; ++r) {
      const Vec q = load(query + r * head_dim + i);
      for (int t = 0; t < kTokens; ++t) acc[r][t] += q * key[t];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) scores[r * stride + t] = sum_lanes(acc[r][t]);
  }
}

template <int kRows, class T>
inline void score_rows(const float* query, const T* const* keys, int64_t offset, int64_t head_dim,
                       int64_t tokens, float* scores, int64_t stride) {
  constexpr int kTokens = kRows == 4   ? 2
                          : kRows == 2 ? 4
                                       : 8;  // eight accumulators fill the registers
  int64_t t = 0;
  for (; t + kTokens <= tokens; t += kTokens) {
    score_tile<kRows, kTokens>(query, keys + t, offset, head_dim, scores + t, stride);
  }
  for (; t < tokens; ++t) {
    score_tile<kRows, 1>(query, keys + t, offset, head_dim, scores + t, stride);
  }
}

// One row's scores become weights; the state's maximum and sum follow. Returns the factor by which
// what was accumulated before must shrink.
inline float softmax_row(float* scores, int64_t tokens, float& running_max, float& running_sum) {
  Vec top = splat(running_max);
  int64_t t = 0;
  for (; t + kLanes <= tokens; t += kLanes) top = max(load(scores + t), top);
  float new_max = running_max;
  for (int i = 0; i < kLanes; ++i) new_max = top[i] > new_max ? top[i] : new_max;
  for (; t < tokens; ++t) new_max = scores[t] > new_max ? scores[t] : new_max;

  const float base = finite_or_zero(new_max);
  const float shrink = exp2(running_max - base);
  Vec total = {};
  for (t = 0; t + kLanes <= tokens; t += kLanes) {
    const Vec weight = exp2(load(scores + t) - base);
    store(scores + t, weight);
    total += weight;
  }
  float sum = sum_lanes(total);
  for (; t < tokens; ++t) {
    scores[t] = exp2(scores[t] - base);
    sum += scores[t];
  }
  running_max = new_max;
  running_sum = running_sum * shrink + sum;
  return shrink;
}

// acc[row] <- acc[row] * shrink[row] + sum over tokens of weight[row][token] * value[token], for
// kVecs vectors of columns.
template <int kRows, int kVecs, class T>
inline void value_tile(const float* weights, int64_t stride, const float* shrink,
                       const T* const* values, int64_t offset, int64_t tokens, float* acc,
                       int64_t head_dim_v) {
  Vec sum[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kVecs; ++c) sum[r][c] = load(acc + r * head_dim_v + c * kLanes) * shrink[r];
  }
  for (int64_t t = 0; t < tokens; ++t) {
    Vec value[kVecs];
    for (int c = 0; c < kVecs; ++c) value[c] = load(values[t] + offset + c * kLanes);
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kVecs; ++c) sum[r][c] += weights[r * stride + t] * value[c];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kVecs; ++c) store(acc + r * head_dim_v + c * kLanes, sum[r][c]);
  }
}

template <int kRows, class T>
inline void value_rows(const float* weights, int64_t stride, const float* shrink,
                       const T* const* values, int64_t offset, int64_t tokens, float* acc,
                       int64_t head_dim_v) {
  constexpr int kVecs = kRows == 4 ? 2 : kRows == 2 ? 4 : 8;
  int64_t c = 0;
  for (; c + kVecs * kLanes <= head_dim_v; c += kVecs * kLanes) {
    value_tile<kRows, kVecs>(weights, stride, shrink, values, offset + c, tokens, acc + c,
                             head_dim_v);
  }
  for (; c < head_dim_v; c += kLanes) {
    value_tile<kRows, 1>(weights, stride, shrink, values, offset + c, tokens, acc + c, head_dim_v);
  }
}

template <class T>
struct Tile {
  const T* const* keys;  // row of every token, kv head 0
  const T* const* values;
  int64_t tokens;
  float* weights;  // [rows, tile_tokens]
};

// One tile for kRows query heads that share a kv head.
template <int kRows, class T>
inline void attend_rows(const DecodeParams& p, const Tile<T>& tile, int64_t kv_head, int64_t head,
                        int64_t stride, const float* query, State state) {
  score_rows<kRows>(query + head * p.head_dim, tile.keys, kv_head * p.key_stride_head, p.head_dim,
                    tile.tokens, tile.weights, stride);
  float shrink[kRows];
  for (int r = 0; r < kRows; ++r) {
    shrink[r] = softmax_row(tile.weights + r * stride, tile.tokens, state.max[head + r],
                            state.sum[head + r]);
  }
  value_rows<kRows>(tile.weights, stride, shrink, tile.values, kv_head * p.value_stride_head,
                    tile.tokens, state.acc + head * p.head_dim_v, p.head_dim_v);
}

template <class T>
void attend(const DecodeParams& p, int64_t seq, int64_t begin, int64_t end, int64_t kv_begin,
            int64_t kv_end, const float* query, State state, float* scratch) {
  const int64_t first = kv_begin * p.group;
  const int64_t last = kv_end * p.group;
  for (int64_t head = first; head < last; ++head) {
    state.max[head] = -kInfinity;
    state.sum[head] = 0.f;
  }
  std::memset(state.acc + first * p.head_dim_v, 0, (last - first) * p.head_dim_v * sizeof(float));

  const int64_t tile = tile_tokens(p);
  const T** keys = reinterpret_cast<const T**>(scratch);
  const T** values = keys + tile;
  float* weights = reinterpret_cast<float*>(values + tile);
  const int32_t* ids = p.block_table + seq * p.block_table_stride;

  for (int64_t start = begin; start < end; start += tile) {
    const int64_t tokens = end - start < tile ? end - start : tile;
    int64_t entry = start / p.block_size;
    int64_t slot = start % p.block_size;
    for (int64_t t = 0; t < tokens; ++t) {
      keys[t] = static_cast<const T*>(p.key_cache) + ids[entry] * p.key_stride_block +
                slot * p.key_stride_token;
      values[t] = static_cast<const T*>(p.value_cache) + ids[entry] * p.value_stride_block +
                  slot * p.value_stride_token;
      if (++slot == p.block_size) {
        slot = 0;
        ++entry;
      }
    }
    // All kv heads of a tile in turn: together their rows are one contiguous stretch of the cache.
    const Tile<T> view{keys, values, tokens, weights};
    for (int64_t kv_head = kv_begin; kv_head < kv_end; ++kv_head) {
      int64_t head = kv_head * p.group;
      const int64_t head_end = head + p.group;
      for (; head + 4 <= head_end; head += 4)
        attend_rows<4>(p, view, kv_head, head, tile, query, state);
      for (; head + 2 <= head_end; head += 2)
        attend_rows<2>(p, view, kv_head, head, tile, query, state);
      for (; head < head_end; ++head) attend_rows<1>(p, view, kv_head, head, tile, query, state);
    }
  }
}

void fold(int64_t rows, int64_t head_dim_v, State state, State next) {
  for (int64_t row = 0; row < rows; ++row) {
    const float a = state.max[row];
    const float b = next.max[row];
    const float top = b > a ? b : a;
    const float base = finite_or_zero(top);
    const float keep = exp2(a - base);
    const float add = exp2(b - base);
    state.max[row] = top;
    state.sum[row] = state.sum[row] * keep + next.sum[row] * add;
    float* acc = state.acc + row * head_dim_v;
    const float* other = next.acc + row * head_dim_v;
    for (int64_t i = 0; i < head_dim_v; i += kLanes) {
      store(acc + i, load(acc + i) * keep + load(other + i) * add);
    }
  }
}

template <class T>
void finish(const DecodeParams& p, int64_t seq, int64_t head, int64_t rows, State state) {
  for (int64_t row = 0; row < rows; ++row) {
    T* out = static_cast<T*>(p.out) + seq * p.out_stride_batch + (head + row) * p.out_stride_head;
    const float* acc = state.acc + row * p.head_dim_v;
    const float inverse = 1.f / state.sum[row];
    for (int64_t i = 0; i < p.head_dim_v; ++i) narrow(acc[i] * inverse, out + i);
    if (p.lse)
      p.lse[seq * p.heads + head + row] = (state.max[row] + std::log2(state.sum[row])) * kLn2;
  }
}

void load_query_any(const DecodeParams& p, int64_t seq, float* query) {
  switch (p.dtype) {
    case DType::kFloat16:
      return load_query<Half>(p, seq, query);
    case DType::kBFloat16:
      return load_query<BFloat>(p, seq, query);
    case DType::kFloat32:
      return load_query<float>(p, seq, query);
  }
}

void attend_any(const DecodeParams& p, int64_t seq, int64_t begin, int64_t end, int64_t kv_begin,
                int64_t kv_end, const float* query, State state, float* scratch) {
  switch (p.dtype) {
    case DType::kFloat16:
      return attend<Half>(p, seq, begin, end, kv_begin, kv_end, query, state, scratch);
    case DType::kBFloat16:
      return attend<BFloat>(p, seq, begin, end, kv_begin, kv_end, query, state, scratch);
    case DType::kFloat32:
      return attend<float>(p, seq, begin, end, kv_begin, kv_end, query, state, scratch);
  }
}

void finish_any(const DecodeParams& p, int64_t seq, int64_t head, int64_t rows, State state) {
  switch (p.dtype) {
    case DType::kFloat16:
      return finish<Half>(p, seq, head, rows, state);
    case DType::kBFloat16:
      return finish<BFloat>(p, seq, head, rows, state);
    case DType::kFloat32:
      return finish<float>(p, seq, head, rows, state);
  }
}

}  // namespace

const Kernels kernels = {load_query_any, attend_any, fold, finish_any};

}  // namespace PA_HP_ISA
}  // namespace pa_hp::cpu
