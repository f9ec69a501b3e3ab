// The attention arithmetic, written once on compiler vectors and included once per instruction set.
// The includer defines PA_HP_ISA (namespace) and PA_HP_VECTOR_BYTES, PA_HP_F16C where the target
// converts fp16 in hardware, and PA_HP_BF16_DOT where it has dot products of bfloat16 pairs (on Arm
// PA_HP_BFDOT as well), and PA_HP_AMX where it has tile registers. No lambdas here: they would not
// inherit the includer's target.

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

// load_pair's vectors alone: where every register is taken, the compiler must not make the second
// one with the first, and keep it.
inline Vec load_first(const float* p) { return load(p); }
inline Vec load_second(const float* p) { return load(p + kLanes); }

#if PA_HP_F16C && PA_HP_VECTOR_BYTES == 32
// The lower halves of each 16 bytes, then the upper ones, put behind zeros. By hand, for an
// instruction each, which loads for itself.
inline Vec load_first(const BFloat* p) {
  Vec v;
  asm("vpunpcklwd %1, %2, %0"
      : "=x"(v)
      : "m"(*reinterpret_cast<const BFloat(*)[2 * kLanes]>(p)), "x"(Vec{}));
  return v;
}

inline Vec load_second(const BFloat* p) {
  Vec v;
  asm("vpunpckhwd %1, %2, %0"
      : "=x"(v)
      : "m"(*reinterpret_cast<const BFloat(*)[2 * kLanes]>(p)), "x"(Vec{}));
  return v;
}

inline Pair load_pair(const BFloat* p) { return {load_first(p), load_second(p)}; }
#else
// Even elements, then odd ones: no widening, an element already lies in a half of a lane.
inline Pair load_pair(const BFloat* p) {
  BitVec bits;
  std::memcpy(&bits, p, sizeof bits);
  return {(Vec)(bits << 16), (Vec)(bits & 0xffff0000u)};
}

inline Vec load_first(const BFloat* p) { return load_pair(p).a; }

inline Vec load_second(const BFloat* p) {
  static const BitVec kOdd = BitVec{} + 0xffff0000u;  // in memory: not what load_pair has
  BitVec bits;
  std::memcpy(&bits, p, sizeof bits);
  return (Vec)(bits & kOdd);
}
#endif

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
inline Vec load_first(const Half* p) { return load(p); }
inline Vec load_second(const Half* p) { return load(p + kLanes); }

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
#if PA_HP_F16C && PA_HP_VECTOR_BYTES == 32
  const __m256i bits =
      _mm256_packus_epi32((__m256i)(bfloat_bits(x.a) >> 16), (__m256i)(bfloat_bits(x.b) >> 16));
#else
  const BitVec bits = bfloat_bits(x.a) >> 16 | (bfloat_bits(x.b) & 0xffff0000u);
#endif
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

inline Vec add(Vec a, Vec b) { return a + b; }

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

// 2^x. x = n + f with |f| <= 1/2, and 2^f is a polynomial of degree 6 that is 1 at 0 and whose
// relative error, made as even as weighted least squares make it, is 2.0e-9; 1.6e-8, a quarter of
// fp32's rounding unit, with its coefficients rounded to fp32. Below 2^-126 it is 0, NaN stays NaN.
// Callers keep x <= 0.
inline Vec exp2(Vec x) {
  // Adding it rounds to an integer, which with an exponent's bias is in the low bits.
  constexpr float kMagic = 0x1.8p23f + 127;
#if !(PA_HP_F16C && PA_HP_VECTOR_BYTES == 64)
  x = max(splat(-127.f), x);  // n fits into an exponent
#endif
  const Vec shifted = x + kMagic;
  const Vec n = shifted - kMagic;
  const Vec f = x - n;
  Vec p = splat(1.5353361946087926e-4f);
  p = p * f + 1.3398874403684098e-3f;
  p = p * f + 9.6184373574445849e-3f;
  p = p * f + 5.5503324711588711e-2f;
  p = p * f + 2.4022647913631970e-1f;
  p = p * f + 6.9314720285504561e-1f;
  p = p * f + 1.f;
#if PA_HP_F16C && PA_HP_VECTOR_BYTES == 64
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, (__m512)splat(-126.f), _CMP_NLT_UQ);
  return (Vec)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)n);
#else
  // As a product: added to the exponent, a NaN's low bits would make a number of it.
  const Vec result = p * (Vec)((BitVec)shifted << 23);
  return x < -126.f ? Vec{} : result;
#endif
}

// Subtracting -inf from -inf would give NaN where the weight is meant to be 0.
inline float finite_or_zero(float max) { return max == -kInfinity ? 0.f : max; }
inline Vec finite_or_zero(Vec max) { return max == -kInfinity ? Vec{} : max; }

// sum += a * b. As an instruction by hand on AVX: compilers load a factor anew for each of its
// uses, or take other registers for the sums than they are in, and then run out of them.
[[gnu::always_inline]] inline void add_product(Vec& sum, Vec a, Vec b) {
#if PA_HP_F16C
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum += a * b;
#endif
}

// The same with a factor in memory.
[[gnu::always_inline]] inline void add_product(Vec& sum, Vec a, const float* b) {
#if PA_HP_F16C && PA_HP_VECTOR_BYTES == 32
  asm("vfmadd231ps %2, %1, %0"
      : "+x"(sum)
      : "x"(a), "m"(*reinterpret_cast<const float (*)[kLanes]>(b)));
#else
  add_product(sum, a, load(b));
#endif
}

#if PA_HP_BF16_DOT
// sum += the products of two neighbouring elements.
[[gnu::always_inline]] inline void add_dot(Vec& sum, BitVec a, BitVec b) {
#if PA_HP_F16C
  sum = (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#elif PA_HP_BFDOT
  sum = (Vec)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
#elif PA_HP_LOWERED  // by a test
  sum += (Vec)(a << 16) * (Vec)(b << 16);
  sum += (Vec)(a & 0xffff0000u) * (Vec)(b & 0xffff0000u);
#else
#error "PA_HP_BF16_DOT without such an instruction"
#endif
}
#endif

// Two elements to a lane.
inline BitVec load_words(const BFloat* p) {
  BitVec words;
  std::memcpy(&words, p, sizeof words);
  return words;
}

template <int kBy, int... I>
[[gnu::always_inline]] inline Vec rotate(Vec v, std::integer_sequence<int, I...>) {
  return PA_HP_SHUFFLE(v, v, ((I + kBy) % kLanes)...);
}

// In every lane `op` of all lanes that are a multiple of kRows away.
template <int kRows, int kWidth = kLanes / 2, class Op>
[[gnu::always_inline]] inline Vec over_lanes(Vec v, Op op) {
  if constexpr (kWidth < kRows) {
    return v;
  } else {
    const Vec other = rotate<kWidth>(v, std::make_integer_sequence<int, kLanes>{});
    return over_lanes<kRows, kWidth / 2>(op(v, other), op);
  }
}

// Vectors of [token][row] after which each row is in the same lanes again.
template <int kRows>
constexpr int kPeriod = kRows == 3 ? 3 : 1;

// Scores of `tokens` tokens, with -inf behind them up to a whole period, become weights; every
// row's maximum and sum are written. Several maxima, so that one need not wait for another.
template <int kRows>
inline void softmax_rows(float* scores, int64_t tokens, float* row_max, float* row_sum) {
  constexpr int kVectors = kPeriod<kRows>, kTops = kVectors == 1 ? 4 : kVectors;
  constexpr int kPlaces = kVectors * kLanes;
  const int64_t count = tokens * kRows;
  Vec tops[kTops];
  for (Vec& top : tops) top = splat(-kInfinity);
  int64_t at = 0;
  for (; at + kTops * kLanes <= count; at += kTops * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kTops; ++i) tops[i] = max(load(scores + at + i * kLanes), tops[i]);
  }
  for (int i = 0; at < count; at += kLanes, ++i) tops[i] = max(load(scores + at), tops[i]);
  Vec bases[kVectors], totals[kVectors] = {};
  float lanes[kPlaces];
  if constexpr (kVectors == 1) {
    const Vec top = over_lanes<kRows>(max(max(tops[0], tops[1]), max(tops[2], tops[3])), max);
    std::memcpy(row_max, &top, kRows * sizeof(float));
    bases[0] = finite_or_zero(top);
  } else {
    for (int v = 0; v < kVectors; ++v) store(lanes + v * kLanes, tops[v]);
    for (int r = 0; r < kRows; ++r) {
      row_max[r] = -kInfinity;
      for (int i = r; i < kPlaces; i += kRows) row_max[r] = std::max(row_max[r], lanes[i]);
    }
    for (int i = 0; i < kPlaces; ++i) lanes[i] = finite_or_zero(row_max[i % kRows]);
    for (int v = 0; v < kVectors; ++v) bases[v] = load(lanes + v * kLanes);
  }
  for (int64_t i = 0; i < count; i += kPlaces) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      const Vec weight = exp2(load(scores + i + v * kLanes) - bases[v]);
      store(scores + i + v * kLanes, weight);
      totals[v] += weight;
    }
  }
  if constexpr (kVectors == 1) {
    const Vec sums = over_lanes<kRows>(totals[0], add);
    std::memcpy(row_sum, &sums, kRows * sizeof(float));
  } else {
    for (int v = 0; v < kVectors; ++v) store(lanes + v * kLanes, totals[v]);
    for (int width = kPlaces / 2; width >= kRows; width /= 2) {
      for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    std::copy_n(lanes, kRows, row_sum);
  }
}

// Tokens of a sequence for kv heads [kv_begin, kv_end), and where the tokens' rows are at kv head
// 0, in the order in which they are read. Scores and weights lie as [head of the first of
// kRows][token][row].
template <class T>
struct Chunk {
  const DecodeParams& p;
  int64_t tokens;
  int64_t kv_begin, kv_end;
  const T* const* keys;
  const T* const* values;
  const T* const* next_keys;  // first one of each stream of the next chunk, if it fetches them
  Core core;
  const T* query;       // [heads, head_dim], as it came
  const float* scaled;  // load_query's
  State state;
  float* weights;  // [heads, kRoom], padded_heads with AMX
  float* tiles;    // of keys or values
};

// Query heads of a kv head that are the lanes of vectors together, as many such blocks as fit. Rows
// are whole lines.
constexpr int kBlockHeads = 16;
constexpr int kLine = 2 * kLanes;

inline bool whole_lines(const DecodeParams& p) {
  return kLanes == kBlockHeads && p.head_dim % kLine == 0 && p.head_dim_v % kLine == 0;
}

inline int64_t block_heads(const DecodeParams& p) {
  return whole_lines(p) ? p.group / kBlockHeads * kBlockHeads : 0;
}

inline bool in_block(const DecodeParams& p, int64_t head) {
  return head % p.group < block_heads(p);
}

// What a kernel does about lines that it will read, and into which cache.
enum Fetch { kNothing, kIntoL1, kIntoL1Twice, kIntoL2, kIntoL2Twice };

// Inlined, for GCC drops calls of what does nothing but fetch.
template <Fetch kFetch>
[[gnu::always_inline]] inline void fetch(const void* line) {
  static_assert(kFetch != kIntoL1Twice && kFetch != kIntoL2Twice, "from where?");
  if constexpr (kFetch == kIntoL1) __builtin_prefetch(line);
  if constexpr (kFetch == kIntoL2) __builtin_prefetch(line, 0, 2);
}

template <class T>
[[gnu::always_inline]] inline void fetch_row(bool into_l2, const T* row, int64_t elements) {
  for (int64_t i = 0; i < elements; i += 64 / sizeof(T)) {
    into_l2 ? fetch<kIntoL2>(row + i) : fetch<kIntoL1>(row + i);
  }
}

// Query heads [first, last) of those that share a kv head, for kv heads [kv_begin, kv_end). Steps
// take it by reference: a copy of what has just been written waits for the store, 40 cycles a call
// on a Zen 5 core.
struct Heads {
  int64_t kv_begin, kv_end;
  int64_t first, last;
};

// A step, of scores, softmax or values, of tokens [begin, end), kRows query heads at a time.
// Softmax of blocks is done by their scores and values.
template <int kRows>
struct SoftmaxStep {
  template <class T>
  static void run(const Chunk<T>& chunk, const Heads& heads, int64_t, int64_t end) {
    if constexpr (kRows < kBlockHeads) {
      const DecodeParams& p = chunk.p;
      for (int64_t kv_head = heads.kv_begin; kv_head < heads.kv_end; ++kv_head) {
        // Memory would idle: the first values of each stream, whose lines nothing fetches ahead.
        if (kLanes == kBlockHeads && heads.first == 0) {
          for (int s = 0; s < kStreams; ++s) {
            fetch_row(chunk.core == Core::kZen4, chunk.values[s] + kv_head * p.value_stride_head,
                      p.head_dim_v);
          }
        }
        for (int64_t i = heads.first; i < heads.last; i += kRows) {
          const int64_t head = kv_head * p.group + i;
          float* scores = chunk.weights + head * kRoom;
          for (int64_t j = end * kRows; j % (kPeriod<kRows> * kLanes) != 0; ++j) {
            scores[j] = -kInfinity;
          }
          softmax_rows<kRows>(scores, end, chunk.state.max + head, chunk.state.sum + head);
        }
      }
    }
  }
};

#if PA_HP_VECTOR_BYTES == 64
#include "tiles_512.inl"
#include "tiles_512_heads.inl"
#else
#include "tiles.inl"
#endif

// Rows in float32, times the scale; blocks as load_lane has them.
template <class T>
void load_query_rows(const DecodeParams& p, int64_t seq, float* query) {
  const float factor = p.scale * kLog2E;
  for (int64_t head = 0; head < p.heads; ++head) {
    const T* row =
        static_cast<const T*>(p.query) + seq * p.query_stride_batch + head * p.query_stride_head;
    if (in_block(p, head)) {
      if constexpr (kLanes == 16) load_lane(p, head, row, query);
      continue;
    }
    float* to = query + head * p.head_dim;
    int64_t i = 0;
    for (; i + 2 * kLanes <= p.head_dim; i += 2 * kLanes) {
      const Pair pair = load_pair(row + i);
      store(to + i, pair.a * factor);
      store(to + i + kLanes, pair.b * factor);
    }
    for (; i < p.head_dim; i += kLanes) store(to + i, load(row + i) * factor);
  }
}

// Query heads of a kv head by how many are taken at a time: blocks; with 64-byte vectors fours and
// as few threes as leave none over, if that can be; otherwise fours, then two, then one.
struct Split {
  explicit Split(const DecodeParams& p) : blocks(block_heads(p)) {
    const int64_t left = p.group - blocks;
    const int64_t by_threes = 3 * ((4 - left % 4) % 4);
    threes = kLanes == kBlockHeads && by_threes <= left ? by_threes : 0;
    fours = (left - threes) / 4 * 4;
    twos = (left - threes - fours) / 2 * 2;
    ones = left - threes - fours - twos;
  }
  int kinds() const { return (blocks > 0) + (fours > 0) + (threes > 0) + (twos > 0) + (ones > 0); }
  int64_t blocks, fours, threes, twos, ones;
};

// Returns heads.last.
template <class Step, class T>
int64_t run_step(const Chunk<T>& chunk, const Heads& heads, int64_t begin, int64_t end) {
  if (heads.first < heads.last) Step::run(chunk, heads, begin, end);
  return heads.last;
}

// A step of tokens [begin, end), counted in the chunk, for all query heads of kv heads [kv_begin,
// kv_end).
template <template <int> class Step, class T>
void each_head(const Chunk<T>& chunk, const Split& split, int64_t kv_begin, int64_t kv_end,
               int64_t begin, int64_t end) {
  int64_t head = 0;
  if constexpr (kLanes == kBlockHeads) {
    const Heads blocks{kv_begin, kv_end, head, head + split.blocks};
    head = run_step<Step<kBlockHeads>>(chunk, blocks, begin, end);
  }
  head = run_step<Step<4>>(chunk, {kv_begin, kv_end, head, head + split.fours}, begin, end);
  if constexpr (kLanes == kBlockHeads) {
    head = run_step<Step<3>>(chunk, {kv_begin, kv_end, head, head + split.threes}, begin, end);
  }
  head = run_step<Step<2>>(chunk, {kv_begin, kv_end, head, head + split.twos}, begin, end);
  run_step<Step<1>>(chunk, {kv_begin, kv_end, head, head + split.ones}, begin, end);
}

// A step of all tokens, so that memory is read in its order: `tokens` at a time of all kv heads
// where a token's heads lie next to each other. A kv head after the other where heads are the
// lanes, and where a head's tokens lie next to each other, unless so many query heads share a kv
// head that they read rows several times, which then should be in L1.
template <template <int> class Step, class T>
void each_step(const Chunk<T>& chunk, const Split& split, int64_t tokens, int64_t stride_token,
               int64_t stride_head) {
  const bool heads_first = stride_token < stride_head && chunk.p.group < kBlockHeads;
  if (split.blocks > 0 || heads_first) tokens = kChunkTokens;
  // Where heads are of several kinds, one kv head at a time: the first kind alone fetches, and over
  // all kv heads at once its lines would come in bursts. Otherwise all kv heads in one call, for
  // the last tile of a call has no products of a next one to end its sums behind. The steps of
  // shorter vectors take several kv heads by fours alone.
  const bool in_turns = kLanes == kBlockHeads ? split.kinds() > 1 : chunk.p.group % 4 != 0;
  const bool one_kv_head = tokens == kChunkTokens || in_turns;
  const int64_t kv_heads = one_kv_head ? 1 : chunk.kv_end - chunk.kv_begin;
  for (int64_t t = 0; t < chunk.tokens; t += tokens) {
    const int64_t end = std::min(t + tokens, chunk.tokens);
    for (int64_t kv_head = chunk.kv_begin; kv_head < chunk.kv_end; kv_head += kv_heads) {
      each_head<Step>(chunk, split, kv_head, kv_head + kv_heads, t, end);
    }
  }
}

template <class T>
void attend_rows(const Chunk<T>& chunk) {
  const DecodeParams& p = chunk.p;
  const Split split(p);
  each_step<ScoreStep>(chunk, split, kStreams, p.key_stride_token, p.key_stride_head);
  each_head<SoftmaxStep>(chunk, split, chunk.kv_begin, chunk.kv_end, 0, chunk.tokens);
  each_step<ValueStep>(chunk, split, value_tokens(p), p.value_stride_token, p.value_stride_head);
}

#if PA_HP_AMX
#include "tiles_amx.inl"
#endif

// Where a token's rows are at kv head 0, and how many tokens its block has from there on.
template <class T>
struct Place {
  const T* key;
  const T* value;
  int64_t left;
};

template <class T>
Place<T> find_token(const DecodeParams& p, int64_t seq, int64_t token) {
  const int64_t id = p.block_table[seq * p.block_table_stride + token / p.block_size];
  const int64_t slot = token % p.block_size;
  return {static_cast<const T*>(p.key_cache) + id * p.key_stride_block + slot * p.key_stride_token,
          static_cast<const T*>(p.value_cache) + id * p.value_stride_block +
              slot * p.value_stride_token,
          p.block_size - slot};
}

// Addresses of a row of each stream. As a vector: GCC 12 makes wrong code for SSE2 of a loop over
// pointers.
typedef intptr_t Addresses __attribute__((vector_size(kStreams * sizeof(intptr_t))));

// Keys and values of tokens [begin, end) at kv head 0, one of each stream in turn; behind them the
// last one's again, so that a whole tile may be read or fetched.
template <class T>
void find_rows(const DecodeParams& p, int64_t seq, int64_t begin, int64_t end, const T** keys,
               const T** values) {
  const int64_t tokens = end - begin;
  const int64_t even = tokens / kStreams;
  const intptr_t key_step = p.key_stride_token * sizeof(T);
  const intptr_t value_step = p.value_stride_token * sizeof(T);
  for (int64_t i = 0; i < even;) {
    Addresses key, value;
    int64_t stop = even;
    for (int s = 0; s < kStreams; ++s) {
      const Place<T> at = find_token<T>(p, seq, begin + tokens * s / kStreams + i);
      key[s] = reinterpret_cast<intptr_t>(at.key);
      value[s] = reinterpret_cast<intptr_t>(at.value);
      stop = std::min(stop, i + at.left);
    }
    for (; i < stop; ++i, key += key_step, value += value_step) {
      std::memcpy(keys + i * kStreams, &key, sizeof key);
      std::memcpy(values + i * kStreams, &value, sizeof value);
    }
  }
  int64_t at = even * kStreams;  // tokens that some streams have more
  for (int64_t s = 1; s <= kStreams; ++s) {
    const int64_t stop = tokens * s / kStreams;
    if (stop - tokens * (s - 1) / kStreams == even) continue;
    const Place<T> last = find_token<T>(p, seq, begin + stop - 1);
    keys[at] = last.key;
    values[at++] = last.value;
  }
  std::fill(keys + tokens, keys + kRoom, keys[tokens - 1]);
  std::fill(values + tokens, values + kRoom, values[tokens - 1]);
}

// The first key at kv head 0 of each stream of the chunk that starts at `begin`; of this one, whose
// keys are `keys`, if it is the sequence's last.
template <class T>
void find_next_keys(const DecodeParams& p, int64_t seq, int64_t begin, const T* const* keys,
                    const T** next_keys) {
  const int64_t len = p.seq_lens[seq];
  const int64_t tokens = std::min(chunk_tokens(p, len), len - begin);
  if (tokens == 0) {
    std::copy_n(keys, kStreams, next_keys);
    return;
  }
  for (int64_t s = 0; s < kStreams; ++s) {
    next_keys[s] = find_token<T>(p, seq, begin + tokens * s / kStreams).key;
  }
}

template <class T>
void load_query(const DecodeParams& p, int64_t seq, float* query) {
#if PA_HP_AMX
  if constexpr (!std::is_same_v<T, float>) {
    if (by_blocks(p)) return load_query_blocks<T>(p, seq, query);
  }
#endif
  load_query_rows<T>(p, seq, query);
}

template <class T>
void attend(const DecodeParams& p, int64_t seq, int64_t begin, int64_t end, int64_t kv_begin,
            int64_t kv_end, float* query, State state, float* scratch) {
  const T** keys = reinterpret_cast<const T**>(scratch);
  const T** values = keys + kRoom;
  float* weights = reinterpret_cast<float*>(values + kRoom);
  find_rows(p, seq, begin, end, keys, values);
  const T* next_keys[kStreams];
  if (kLanes == kBlockHeads) find_next_keys(p, seq, end, keys, next_keys);
  const T* unscaled = static_cast<const T*>(p.query) + seq * p.query_stride_batch;
  const Chunk<T> chunk{p,
                       end - begin,
                       kv_begin,
                       kv_end,
                       keys,
                       values,
                       next_keys,
                       kLanes == kBlockHeads ? core() : Core::kOther,
                       unscaled,
                       query,
                       state,
                       weights,
                       weights + padded_heads(p) * kRoom};
  std::fill(state.acc + kv_begin * p.group * p.head_dim_v,
            state.acc + kv_end * p.group * p.head_dim_v, 0.f);
#if PA_HP_AMX
  if constexpr (!std::is_same_v<T, float>) {
    if (by_blocks(p)) return attend_blocks(chunk, seq, query);
  }
#endif
  attend_rows(chunk);
}

// As many rows at a time as two vectors hold the powers of.
void fold(int64_t rows, int64_t head_dim_v, State state, State next) {
  for (int64_t first = 0; first < rows; first += kLanes) {
    const int64_t count = std::min<int64_t>(rows - first, kLanes);
    float a[kLanes] = {}, b[kLanes] = {}, keep[kLanes], add[kLanes];
    std::copy_n(state.max + first, count, a);
    std::copy_n(next.max + first, count, b);
    const Vec top = max(load(b), load(a));
    const Vec base = finite_or_zero(top);
    store(keep, exp2(load(a) - base));
    store(add, exp2(load(b) - base));
    store(a, top);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = first + i;
      state.max[row] = a[i];
      state.sum[row] = state.sum[row] * keep[i] + next.sum[row] * add[i];
      float* acc = state.acc + row * head_dim_v;
      const float* other = next.acc + row * head_dim_v;
      // And fetches the next kv head's, which may be in another core's cache.
      for (int64_t d = 0; d < head_dim_v; d += kLanes) {
        store(acc + d, load(acc + d) * keep[i] + load(other + d) * add[i]);
        fetch<kIntoL1>(other + rows * head_dim_v + d);
      }
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
                int64_t kv_end, float* query, State state, float* scratch) {
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
