// Scores and values of a chunk in tiles of vectors of up to 32 bytes: included by kernel.inl where
// vectors are shorter than AVX-512's.

// Tokens whose scores or values are worked on together, of all kv heads in turn where a token's
// heads lie together: few, so that each stream is read in the order of memory. Three by four rows
// are twelve sums, which with the keys and a query just fit AVX2's registers. 15 GB/s as above; 13
// with 6 and 4 tokens, 12.5 with 3 and 8.
constexpr int64_t kScoreTokens = 3;
constexpr int64_t kValueTokens = 4;

// With this many query heads to a kv head arithmetic takes longer than memory does: values of more
// tokens at once, for the sums are loaded and stored less often. On two Zen 3 cores and cold pages
// 4 to 7 % faster with 16 and 32 heads to one kv head; with groups of 8 and 8 kv heads 5 % slower.
constexpr int64_t kWideGroup = 16;
constexpr int64_t kWideValueTokens = 8;

// out[i] is the sum of v_i's lanes.
inline void store_sums(Vec v0, Vec v1, Vec v2, Vec v3, float* out) {
#if PA_HP_VECTOR_BYTES == 16
  const Vec ab = PA_HP_SHUFFLE(v0, v1, 0, 4, 1, 5) + PA_HP_SHUFFLE(v0, v1, 2, 6, 3, 7);
  const Vec cd = PA_HP_SHUFFLE(v2, v3, 0, 4, 1, 5) + PA_HP_SHUFFLE(v2, v3, 2, 6, 3, 7);
  store(out, PA_HP_SHUFFLE(ab, cd, 0, 1, 4, 5) + PA_HP_SHUFFLE(ab, cd, 2, 3, 6, 7));
#else
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps((__m256)v0, (__m256)v1),
                                       _mm256_hadd_ps((__m256)v2, (__m256)v3));
  _mm_storeu_ps(out, _mm256_castps256_ps128(halves) + _mm256_extractf128_ps(halves, 1));
#endif
}

// Scores of kRows query rows against kScoreTokens keys, [token][row], and up to two numbers more.
template <int kRows, class T>
inline void score_tile(const float* query, const T* const* keys, int64_t offset, int64_t head_dim,
                       float* scores) {
  // Two sums for each, or there would be fewer under way than hide an addition's latency.
  Vec sum_a[8] = {}, sum_b[8] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= head_dim; i += 2 * kLanes) {
    for (int t = 0; t < kScoreTokens; ++t) {
      const Pair key = load_pair(keys[t] + offset + i);
      for (int r = 0; r < kRows; ++r) {
        sum_a[t * kRows + r] += load(query + r * head_dim + i) * key.a;
        sum_b[t * kRows + r] += load(query + r * head_dim + i + kLanes) * key.b;
      }
    }
  }
  for (; i < head_dim; i += kLanes) {
    for (int t = 0; t < kScoreTokens; ++t) {
      const Vec key = load(keys[t] + offset + i);
      for (int r = 0; r < kRows; ++r) sum_a[t * kRows + r] += load(query + r * head_dim + i) * key;
    }
  }
  for (int n = 0; n < kScoreTokens * kRows; n += 4) {
    store_sums(sum_a[n] + sum_b[n], sum_a[n + 1] + sum_b[n + 1], sum_a[n + 2] + sum_b[n + 2],
               sum_a[n + 3] + sum_b[n + 3], scores + n);
  }
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

// Not inlined: what the caller keeps in registers would drive a sum out of them.
template <class T>
[[gnu::noinline]] void score_tile_4(const float* query, const T* const* keys, int64_t offset,
                                    int64_t head_dim, float* scores) {
  const T* a = keys[0] + offset;
  const T* b = keys[1] + offset;
  const T* c = keys[2] + offset;
  RowSums r0, r1, r2, r3;
  int64_t i = 0;
  for (; i + 2 * kLanes <= head_dim; i += 2 * kLanes) {
    add_rows(r0, r1, r2, r3, query + i, head_dim, load_pair(a + i).a, load_pair(b + i).a,
             load_pair(c + i).a);
    add_rows(r0, r1, r2, r3, query + i + kLanes, head_dim, load_second(a + i), load_second(b + i),
             load_second(c + i));
  }
  for (; i < head_dim; i += kLanes) {
    add_rows(r0, r1, r2, r3, query + i, head_dim, load(a + i), load(b + i), load(c + i));
  }
  store_sums(r0.a, r1.a, r2.a, r3.a, scores);
  store_sums(r0.b, r1.b, r2.b, r3.b, scores + 4);
  store_sums(r0.c, r1.c, r2.c, r3.c, scores + 8);
}

#if PA_HP_BF16_DOT
[[gnu::always_inline]] inline void add_dots(RowSums& sums, const BFloat* query, BitVec key_a,
                                            BitVec key_b, BitVec key_c) {
  const BitVec q = load_words(query);
  add_dot(sums.a, q, key_a);
  add_dot(sums.b, q, key_b);
  add_dot(sums.c, q, key_c);
}

// As score_tile_4, with the query as it came: half the instructions. `head_dim` is a multiple of
// 2 * kLanes.
[[gnu::noinline]] void score_dot_4(const BFloat* query, int64_t query_stride, float factor,
                                   const BFloat* const* keys, int64_t offset, int64_t head_dim,
                                   float* scores) {
  RowSums r0, r1, r2, r3;
  for (int64_t i = 0; i < head_dim; i += 2 * kLanes) {
    const BitVec a = load_words(keys[0] + offset + i);
    const BitVec b = load_words(keys[1] + offset + i);
    const BitVec c = load_words(keys[2] + offset + i);
    add_dots(r0, query + i, a, b, c);
    add_dots(r1, query + query_stride + i, a, b, c);
    add_dots(r2, query + 2 * query_stride + i, a, b, c);
    add_dots(r3, query + 3 * query_stride + i, a, b, c);
  }
  store_sums(r0.a * factor, r1.a * factor, r2.a * factor, r3.a * factor, scores);
  store_sums(r0.b * factor, r1.b * factor, r2.b * factor, r3.b * factor, scores + 4);
  store_sums(r0.c * factor, r1.c * factor, r2.c * factor, r3.c * factor, scores + 8);
}
#endif

// acc[row] += sum over kTokens tokens of weight[token][row] * value[token], for kPairs pairs of
// vectors of columns.
template <int kRows, int kTokens, int kPairs, class T>
inline void value_tile(const float* weights, const T* const* values, int64_t offset, float* acc,
                       int64_t head_dim_v) {
  Pair sum[kRows][kPairs];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kPairs; ++c) {
      const float* from = acc + r * head_dim_v + 2 * c * kLanes;
      sum[r][c] = {load(from), load(from + kLanes)};
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int c = 0; c < kPairs; ++c) {
      const Pair value = load_pair(values[t] + offset + 2 * c * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const Vec weight = splat(weights[t * kRows + r]);
        sum[r][c].a += weight * value.a;
        sum[r][c].b += weight * value.b;
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

// The same for four rows and a pair, with names for GCC's sake.
struct PairSum {
  Vec a, b;
  [[gnu::always_inline]] explicit inline PairSum(const float* acc)
      : a(load(acc)), b(load(acc + kLanes)) {}
  [[gnu::always_inline]] inline void add(float weight, Pair value) {
    const Vec factor = splat(weight);
    add_product(a, factor, value.a);
    add_product(b, factor, value.b);
  }
  [[gnu::always_inline]] inline void put(float* acc) const {
    store(acc, a);
    store(acc + kLanes, b);
  }
};

template <int kTokens, class T>
[[gnu::always_inline]] inline void value_tile_4(const float* weights, const T* const* values,
                                                int64_t offset, float* acc, int64_t head_dim_v) {
  PairSum r0(acc), r1(acc + head_dim_v), r2(acc + 2 * head_dim_v), r3(acc + 3 * head_dim_v);
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    const Pair value = load_pair(values[t] + offset);
    r0.add(weights[4 * t], value);
    r1.add(weights[4 * t + 1], value);
    r2.add(weights[4 * t + 2], value);
    r3.add(weights[4 * t + 3], value);
  }
  r0.put(acc);
  r1.put(acc + head_dim_v);
  r2.put(acc + 2 * head_dim_v);
  r3.put(acc + 3 * head_dim_v);
}

template <int kRows, int kTokens, class T>
inline void value_rows(const float* weights, const T* const* values, int64_t offset, float* acc,
                       int64_t head_dim_v) {
  constexpr int kPairs = 4 / kRows;  // eight sums
  int64_t c = 0;
  for (; c + 2 * kPairs * kLanes <= head_dim_v; c += 2 * kPairs * kLanes) {
    if constexpr (kRows == 4) {
      value_tile_4<kTokens>(weights, values, offset + c, acc + c, head_dim_v);
    } else {
      value_tile<kRows, kTokens, kPairs>(weights, values, offset + c, acc + c, head_dim_v);
    }
  }
  for (; c + 2 * kLanes <= head_dim_v; c += 2 * kLanes) {
    value_tile<kRows, kTokens, 1>(weights, values, offset + c, acc + c, head_dim_v);
  }
  for (; c < head_dim_v; c += kLanes) {  // what is left of an odd number
    for (int r = 0; r < kRows; ++r) {
      Vec sum = load(acc + r * head_dim_v + c);
      for (int t = 0; t < kTokens; ++t) {
        sum += weights[t * kRows + r] * load(values[t] + offset + c);
      }
      store(acc + r * head_dim_v + c, sum);
    }
  }
}

// Steps of a chunk, for kRows query heads from `head` on that share a kv head.
template <int kRows>
struct ScoreStep {  // of tokens [begin, end)
  template <class T>
  static void run(const Chunk<T>& chunk, int64_t kv_head, int64_t head, int64_t begin,
                  int64_t end) {
    const DecodeParams& p = chunk.p;
    const float* query = chunk.scaled + head * p.head_dim;
    const int64_t offset = kv_head * p.key_stride_head;
    float* scores = chunk.weights + head * kRoom;
#if PA_HP_BF16_DOT
    if constexpr (kRows == 4 && std::is_same_v<T, BFloat>) {
      if (p.head_dim % (2 * kLanes) == 0) {
        for (int64_t t = begin; t < end; t += kScoreTokens) {
          score_dot_4(chunk.query + head * p.query_stride_head, p.query_stride_head,
                      p.scale * kLog2E, chunk.keys + t, offset, p.head_dim, scores + t * kRows);
        }
        return;
      }
    }
#endif
    for (int64_t t = begin; t < end; t += kScoreTokens) {
      if constexpr (kRows == 4) {
        score_tile_4(query, chunk.keys + t, offset, p.head_dim, scores + t * kRows);
      } else {
        score_tile<kRows>(query, chunk.keys + t, offset, p.head_dim, scores + t * kRows);
      }
    }
  }
};

template <int kTokens>
struct Values {
  template <int kRows>
  struct Step {  // of tokens [begin, end)
    template <class T>
    static void run(const Chunk<T>& chunk, int64_t kv_head, int64_t head, int64_t begin,
                    int64_t end) {
      const DecodeParams& p = chunk.p;
      const float* weights = chunk.weights + head * kRoom;
      const int64_t offset = kv_head * p.value_stride_head;
      float* acc = chunk.state.acc + head * p.head_dim_v;
      int64_t t = begin;
      for (; t + kTokens <= end; t += kTokens) {
        value_rows<kRows, kTokens>(weights + t * kRows, chunk.values + t, offset, acc,
                                   p.head_dim_v);
      }
      for (; t < end; ++t) {
        value_rows<kRows, 1>(weights + t * kRows, chunk.values + t, offset, acc, p.head_dim_v);
      }
    }
  };
};
