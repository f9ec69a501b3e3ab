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

#if defined(__clang__)
#define PA_HP_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PA_HP_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, BitVec{__VA_ARGS__})
#endif

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

// Two vectors of neighbouring elements, in an order that is the same for every row of a dtype: a
// product of two rows does not mind, and `store_pair` undoes it.
struct Pair {
  Vec a, b;
};

inline Pair load_pair(const float* p) { return {load(p), load(p + kLanes)}; }

// Even elements, then odd ones: no widening, an element already lies in a half of a lane.
inline Pair load_pair(const BFloat* p) {
  BitVec bits;
  std::memcpy(&bits, p, sizeof bits);
  return {(Vec)(bits << 16), (Vec)(bits & 0xffff0000u)};
}

inline Vec load(const BFloat* p) { return (Vec)(load_bits(p) << 16); }

inline Vec load(const Half* p) {
#if PA_HP_F16C && PA_HP_VECTOR_BYTES == 64
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif PA_HP_F16C
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  typedef __fp16 Narrow __attribute__((vector_size(PA_HP_VECTOR_BYTES / 2)));
  Narrow narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  return __builtin_convertvector(narrow, Vec);
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

inline Pair load_pair(const Half* p) { return {load(p), load(p + kLanes)}; }

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

// load_pair's counterpart.
inline void store_pair(Pair x, float* out) {
  store(out, x.a);
  store(out + kLanes, x.b);
}

inline BitVec bfloat_bits(Vec x) {
  const BitVec bits = (BitVec)x;
  return x == x ? bits + 0x7fff + (bits >> 16 & 1) : BitVec{} + 0x7fc00000;
}

inline void store_pair(Pair x, BFloat* out) {
  const BitVec bits = bfloat_bits(x.a) >> 16 | (bfloat_bits(x.b) & 0xffff0000u);
  std::memcpy(out, &bits, sizeof bits);
}

inline void store_pair(Pair x, Half* out) {
#if PA_HP_F16C && PA_HP_VECTOR_BYTES == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtps_ph((__m512)x.a, 0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + kLanes), _mm512_cvtps_ph((__m512)x.b, 0));
#elif PA_HP_F16C
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph((__m256)x.a, 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + kLanes), _mm256_cvtps_ph((__m256)x.b, 0));
#else
  for (int i = 0; i < kLanes; ++i) narrow(x.a[i], out + i);
  for (int i = 0; i < kLanes; ++i) narrow(x.b[i], out + kLanes + i);
#endif
}

// b where either is NaN.
inline Vec max(Vec a, Vec b) {
#if PA_HP_F16C && PA_HP_VECTOR_BYTES == 64
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif PA_HP_F16C
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// 2^x. x = n + f with |f| <= 1/2, and 2^f is the Taylor series of exp(f ln 2) up to degree 7, whose
// remainder is below (ln(2) / 2)^8 / 8! = 5.2e-9, a tenth of fp32's rounding unit. Below 2^-126 it
// is 0, NaN stays NaN. Callers keep x <= 0.
inline Vec exp2(Vec x) {
  constexpr float kMagic = 0x1.8p23f;  // adding it rounds to an integer in the low bits
  const Vec clamped = max(splat(-126.f), x);
  const Vec shifted = clamped + kMagic;
  const Vec f = clamped - (shifted - kMagic);
  Vec p = splat(1.5252733804059840e-5f);  // ln(2)^k / k!, k = 7 .. 1
  p = p * f + 1.5403530393381608e-4f;
  p = p * f + 1.3333558146428443e-3f;
  p = p * f + 9.6181291076284772e-3f;
  p = p * f + 5.5504108664821580e-2f;
  p = p * f + 2.4022650695910071e-1f;
  p = p * f + 6.9314718055994531e-1f;
  p = p * f + 1.f;
  const Vec result = (Vec)((BitVec)p + ((BitVec)shifted << 23));
  return x < -126.f ? Vec{} : result;  // NaN passes through all of it
}

inline float exp2(float x) { return exp2(splat(x))[0]; }

// Subtracting -inf from -inf would give NaN where the weight is meant to be 0.
inline float finite_or_zero(float max) { return max == -kInfinity ? 0.f : max; }

// sum += a * b. As an instruction by hand on AVX: compilers load a factor anew for each of its
// uses, or take other registers for the sums than they are in, and then run out of them.
[[gnu::always_inline]] inline void add_product(Vec& sum, Vec a, Vec b) {
#if PA_HP_F16C
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum += a * b;
#endif
}

// out[i] is the sum of v_i's lanes.
inline void store_sums(Vec v0, Vec v1, Vec v2, Vec v3, float* out) {
#if PA_HP_VECTOR_BYTES == 16
  const Vec ab = PA_HP_SHUFFLE(v0, v1, 0, 4, 1, 5) + PA_HP_SHUFFLE(v0, v1, 2, 6, 3, 7);
  const Vec cd = PA_HP_SHUFFLE(v2, v3, 0, 4, 1, 5) + PA_HP_SHUFFLE(v2, v3, 2, 6, 3, 7);
  store(out, PA_HP_SHUFFLE(ab, cd, 0, 1, 4, 5) + PA_HP_SHUFFLE(ab, cd, 2, 3, 6, 7));
#elif PA_HP_VECTOR_BYTES == 64
  const Vec ab = PA_HP_SHUFFLE(v0, v1, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                 PA_HP_SHUFFLE(v0, v1, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  const Vec cd = PA_HP_SHUFFLE(v2, v3, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                 PA_HP_SHUFFLE(v2, v3, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  const Vec quarters =
      PA_HP_SHUFFLE(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
      PA_HP_SHUFFLE(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  const Vec halves = quarters + PA_HP_SHUFFLE(quarters, quarters, 8, 9, 10, 11, 12, 13, 14, 15, 0,
                                              1, 2, 3, 4, 5, 6, 7);
  const Vec sums =
      halves + PA_HP_SHUFFLE(halves, halves, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  std::memcpy(out, &sums, 4 * sizeof(float));
#else
  const Vec ab = PA_HP_SHUFFLE(v0, v1, 0, 8, 1, 9, 4, 12, 5, 13) +
                 PA_HP_SHUFFLE(v0, v1, 2, 10, 3, 11, 6, 14, 7, 15);
  const Vec cd = PA_HP_SHUFFLE(v2, v3, 0, 8, 1, 9, 4, 12, 5, 13) +
                 PA_HP_SHUFFLE(v2, v3, 2, 10, 3, 11, 6, 14, 7, 15);
  const Vec halves = PA_HP_SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
                     PA_HP_SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  const Vec sums = halves + PA_HP_SHUFFLE(halves, halves, 4, 5, 6, 7, 0, 1, 2, 3);
  std::memcpy(out, &sums, 4 * sizeof(float));
#endif
}

template <class T>
void load_query(const DecodeParams& p, int64_t seq, float* query) {
  const float factor = p.scale * kLog2E;
  for (int64_t head = 0; head < p.heads; ++head) {
    const T* row =
        static_cast<const T*>(p.query) + seq * p.query_stride_batch + head * p.query_stride_head;
    int64_t i = 0;
    for (; i + 2 * kLanes <= p.head_dim; i += 2 * kLanes) {
      const Pair pair = load_pair(row + i);
      store(query + i, pair.a * factor);
      store(query + i + kLanes, pair.b * factor);
    }
    for (; i < p.head_dim; i += kLanes) store(query + i, load(row + i) * factor);
    query += p.head_dim;
  }
}

// Tokens that are worked on with one kv head before the next has its turn: few, so that the cache
// is read in the order of memory, and a multiple of every kScoreTokens.
constexpr int64_t kBlockTokens = 24;

template <class T>
inline void prefetch_rows(const T* const* rows, int64_t offset, int64_t count) {
  for (int64_t t = 0; t < kBlockTokens; ++t) {
    const char* row = reinterpret_cast<const char*>(rows[t] + offset);
    for (size_t i = 0; i < count * sizeof(T); i += 64) __builtin_prefetch(row + i, 0, 2);
  }
}

// Tokens whose scores against kRows rows are worked out together. Eight sums under way hide an
// addition's latency; with four rows there are twelve, which just fit AVX2's registers, so that a
// load of the query serves three tokens and the sums' lanes are added up less often.
template <int kRows>
constexpr int kScoreTokens = kRows == 4 ? 3 : 8 / kRows;

// Scores of kRows query rows against kScoreTokens keys, [token][row].
template <int kRows, class T>
inline void score_tile(const float* query, const T* const* keys, int64_t offset, int64_t head_dim,
                       float* scores) {
  constexpr int kTokens = kScoreTokens<kRows>;
  Vec sum[8] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= head_dim; i += 2 * kLanes) {
    Pair key[kTokens];
    for (int t = 0; t < kTokens; ++t) key[t] = load_pair(keys[t] + offset + i);
    for (int r = 0; r < kRows; ++r) {
      const Vec a = load(query + r * head_dim + i);
      const Vec b = load(query + r * head_dim + i + kLanes);
      for (int t = 0; t < kTokens; ++t) {
        sum[t * kRows + r] += a * key[t].a;
        sum[t * kRows + r] += b * key[t].b;
      }
    }
  }
  for (; i < head_dim; i += kLanes) {
    for (int t = 0; t < kTokens; ++t) {
      const Vec key = load(keys[t] + offset + i);
      for (int r = 0; r < kRows; ++r) sum[t * kRows + r] += load(query + r * head_dim + i) * key;
    }
  }
  store_sums(sum[0], sum[1], sum[2], sum[3], scores);
  store_sums(sum[4], sum[5], sum[6], sum[7], scores + 4);
}

// The same for four rows. The sums have names: GCC keeps an array of twelve in memory.
struct RowSums {
  Vec a = {}, b = {}, c = {};  // one a token
  [[gnu::always_inline]] inline void add(const float* query, Vec key_a, Vec key_b, Vec key_c) {
    const Vec q = load(query);
    add_product(a, q, key_a);
    add_product(b, q, key_b);
    add_product(c, q, key_c);
  }
};

[[gnu::always_inline]] inline void add_rows(RowSums& r0, RowSums& r1, RowSums& r2, RowSums& r3,
                                            const float* query, int64_t head_dim, Vec a, Vec b,
                                            Vec c) {
  r0.add(query, a, b, c);
  r1.add(query + head_dim, a, b, c);
  r2.add(query + 2 * head_dim, a, b, c);
  r3.add(query + 3 * head_dim, a, b, c);
}

template <class T>
inline void score_tile_4(const float* query, const T* const* keys, int64_t offset, int64_t head_dim,
                         float* scores) {
  const T* a = keys[0] + offset;
  const T* b = keys[1] + offset;
  const T* c = keys[2] + offset;
  RowSums r0, r1, r2, r3;
  int64_t i = 0;
  for (; i + 2 * kLanes <= head_dim; i += 2 * kLanes) {
    add_rows(r0, r1, r2, r3, query + i, head_dim, load_pair(a + i).a, load_pair(b + i).a,
             load_pair(c + i).a);
    add_rows(r0, r1, r2, r3, query + i + kLanes, head_dim, load_pair(a + i).b, load_pair(b + i).b,
             load_pair(c + i).b);
  }
  for (; i < head_dim; i += kLanes) {
    add_rows(r0, r1, r2, r3, query + i, head_dim, load(a + i), load(b + i), load(c + i));
  }
  store_sums(r0.a, r1.a, r2.a, r3.a, scores);
  store_sums(r0.b, r1.b, r2.b, r3.b, scores + 4);
  store_sums(r0.c, r1.c, r2.c, r3.c, scores + 8);
}

// Scores become weights; the state's maximum and sum of every row follow. Writes the factors by
// which what was accumulated before must shrink.
template <int kRows>
inline void softmax_rows(float* scores, int64_t tokens, float* running_max, float* running_sum,
                         float* shrink) {
  const int64_t count = tokens * kRows;
  Vec top = splat(-kInfinity);
  for (int64_t i = 0; i < count; i += kLanes) top = max(load(scores + i), top);
  float lanes[kLanes], base_lanes[kLanes];
  store(lanes, top);
  for (int r = 0; r < kRows; ++r) {
    float new_max = running_max[r];
    for (int i = r; i < kLanes; i += kRows) new_max = lanes[i] > new_max ? lanes[i] : new_max;
    const float base = finite_or_zero(new_max);
    shrink[r] = running_max[r] - base;
    running_max[r] = new_max;
    for (int i = r; i < kLanes; i += kRows) base_lanes[i] = base;
  }
  const Vec base = load(base_lanes);
  Vec total = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec weight = exp2(load(scores + i) - base);
    store(scores + i, weight);
    total += weight;
  }
  for (int i = kRows; i < kLanes; ++i) lanes[i] = 0.f;
  for (int r = 0; r < kRows; ++r) lanes[r] = shrink[r];
  store(lanes, exp2(load(lanes)));
  for (int r = 0; r < kRows; ++r) shrink[r] = lanes[r];
  store(lanes, total);
  for (int width = kLanes / 2; width >= kRows; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  for (int r = 0; r < kRows; ++r) running_sum[r] = running_sum[r] * shrink[r] + lanes[r];
}

// acc[row] <- acc[row] * shrink[row] + sum over tokens of weight[token][row] * value[token], for
// kPairs pairs of vectors of columns.
template <int kRows, int kPairs, class T>
inline void value_tile(const float* weights, const float* shrink, const T* const* values,
                       int64_t offset, int64_t tokens, float* acc, int64_t head_dim_v) {
  Pair sum[kRows][kPairs];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kPairs; ++c) {
      const float* from = acc + r * head_dim_v + 2 * c * kLanes;
      sum[r][c] = {load(from) * shrink[r], load(from + kLanes) * shrink[r]};
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    Pair value[kPairs];
    for (int c = 0; c < kPairs; ++c) value[c] = load_pair(values[t] + offset + 2 * c * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vec weight = splat(weights[t * kRows + r]);
      for (int c = 0; c < kPairs; ++c) {
        sum[r][c].a += weight * value[c].a;
        sum[r][c].b += weight * value[c].b;
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kPairs; ++c) {
      float* to = acc + r * head_dim_v + 2 * c * kLanes;
      store(to, sum[r][c].a);
      store(to + kLanes, sum[r][c].b);
    }
  }
}

template <int kRows, class T>
inline void value_rows(const float* weights, const float* shrink, const T* const* values,
                       int64_t offset, int64_t tokens, float* acc, int64_t head_dim_v) {
  constexpr int kPairs = 4 / kRows;  // eight accumulators
  int64_t c = 0;
  for (; c + 2 * kPairs * kLanes <= head_dim_v; c += 2 * kPairs * kLanes) {
    value_tile<kRows, kPairs>(weights, shrink, values, offset + c, tokens, acc + c, head_dim_v);
  }
  for (; c + 2 * kLanes <= head_dim_v; c += 2 * kLanes) {
    value_tile<kRows, 1>(weights, shrink, values, offset + c, tokens, acc + c, head_dim_v);
  }
  for (; c < head_dim_v; c += kLanes) {  // what is left of an odd number
    for (int r = 0; r < kRows; ++r) {
      Vec sum = load(acc + r * head_dim_v + c) * shrink[r];
      for (int64_t t = 0; t < tokens; ++t) {
        sum += weights[t * kRows + r] * load(values[t] + offset + c);
      }
      store(acc + r * head_dim_v + c, sum);
    }
  }
}

// A tile, and the rows of its tokens at kv head 0. Scores and weights lie as [head of the first of
// kRows][token][row].
template <class T>
struct Tile {
  const DecodeParams& p;
  const T* const* keys;
  const T* const* values;
  int64_t tokens;
  int64_t room;  // tokens that there are scores for
  const float* query;
  State state;
  float* weights;
  float* shrink;
};

// Steps of a tile, for kRows query heads from `head` on that share a kv head, and kBlockTokens
// tokens from `t` on.
template <int kRows>
struct ScoreStep {
  template <class T>
  static void run(const Tile<T>& tile, int64_t t, int64_t kv_head, int64_t head) {
    const DecodeParams& p = tile.p;
    const float* query = tile.query + head * p.head_dim;
    const int64_t offset = kv_head * p.key_stride_head;
    float* scores = tile.weights + head * tile.room;
    const int64_t end = std::min(t + kBlockTokens, tile.tokens);
    for (int64_t i = t; i < end; i += kScoreTokens<kRows>) {
      if constexpr (kRows == 4) {
        score_tile_4(query, tile.keys + i, offset, p.head_dim, scores + i * kRows);
      } else {
        score_tile<kRows>(query, tile.keys + i, offset, p.head_dim, scores + i * kRows);
      }
    }
    // The softmax reads whole vectors.
    for (int64_t i = end * kRows; i % kLanes != 0; ++i) scores[i] = -kInfinity;
  }
};

template <int kRows>
struct SoftmaxStep {
  template <class T>
  static void run(const Tile<T>& tile, int64_t, int64_t, int64_t head) {
    softmax_rows<kRows>(tile.weights + head * tile.room, tile.tokens, tile.state.max + head,
                        tile.state.sum + head, tile.shrink + head);
  }
};

template <int kRows>
struct ValueStep {
  template <class T>
  static void run(const Tile<T>& tile, int64_t t, int64_t kv_head, int64_t head) {
    const DecodeParams& p = tile.p;
    value_rows<kRows>(tile.weights + head * tile.room + t * kRows, tile.shrink + head,
                      tile.values + t, kv_head * p.value_stride_head,
                      std::min(kBlockTokens, tile.tokens - t), tile.state.acc + head * p.head_dim_v,
                      p.head_dim_v);
  }
};

// A step for all query heads of a kv head: by fours, then what is left.
template <template <int> class Step, class T>
void each_rows(const Tile<T>& tile, int64_t t, int64_t kv_head) {
  int64_t head = kv_head * tile.p.group;
  const int64_t end = head + tile.p.group;
  for (; head + 4 <= end; head += 4) Step<4>::run(tile, t, kv_head, head);
  if (head + 2 <= end) {
    Step<2>::run(tile, t, kv_head, head);
    head += 2;
  }
  if (head < end) Step<1>::run(tile, t, kv_head, head);
}

// Keys and values of `count` tokens from `start` on, at kv head 0; behind the sequence's end its
// last token's again, so that whole vectors of tokens may be read.
template <class T>
void find_rows(const DecodeParams& p, int64_t seq, int64_t start, int64_t count, const T** keys) {
  const T** values = keys + count;
  const int32_t* ids = p.block_table + seq * p.block_table_stride;
  const int64_t tokens = std::min<int64_t>(count, p.seq_lens[seq] - start);
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
  for (int64_t t = tokens; t < count; ++t) {
    keys[t] = keys[tokens - 1];
    values[t] = values[tokens - 1];
  }
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

  // Rows of two tiles: of the one that is worked on, and of the next, which is on its way from
  // memory meanwhile.
  const int64_t room = tile_tokens(p);
  const T** rows = reinterpret_cast<const T**>(scratch);
  const T** next = rows + 2 * room;
  float* shrink = reinterpret_cast<float*>(next + 2 * room);
  float* weights = shrink + p.heads;
  const bool ahead = wants_prefetch(p);
  find_rows(p, seq, begin, room, rows);
  for (int64_t start = begin; start < end; start += room) {
    const bool more = start + room < (ahead ? p.seq_lens[seq] : end);
    if (more) find_rows(p, seq, start + room, room, next);
    const int64_t tokens = std::min(room, end - start);
    const Tile<T> tile{p, rows, rows + room, tokens, room, query, state, weights, shrink};
    // All kv heads of a few tokens in turn: together their rows are a stretch of the cache.
    for (int64_t t = 0; t < tile.tokens; t += kBlockTokens) {
      for (int64_t kv_head = kv_begin; kv_head < kv_end; ++kv_head) {
        if (ahead && more) prefetch_rows(next + t, kv_head * p.key_stride_head, p.head_dim);
        each_rows<ScoreStep>(tile, t, kv_head);
      }
    }
    for (int64_t kv_head = kv_begin; kv_head < kv_end; ++kv_head) {
      each_rows<SoftmaxStep>(tile, 0, kv_head);
    }
    for (int64_t t = 0; t < tile.tokens; t += kBlockTokens) {
      for (int64_t kv_head = kv_begin; kv_head < kv_end; ++kv_head) {
        if (ahead && more) {
          prefetch_rows(next + room + t, kv_head * p.value_stride_head, p.head_dim_v);
        }
        each_rows<ValueStep>(tile, t, kv_head);
      }
      // What was there before the tile has shrunk.
      if (t == 0) std::fill(shrink + first, shrink + last, 1.f);
    }
    std::swap(rows, next);
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
    int64_t i = 0;
    for (; i + 2 * kLanes <= p.head_dim_v; i += 2 * kLanes) {
      store_pair({load(acc + i) * inverse, load(acc + i + kLanes) * inverse}, out + i);
    }
    for (; i < p.head_dim_v; ++i) narrow(acc[i] * inverse, out + i);
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
