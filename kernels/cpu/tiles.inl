// Scores and values of a chunk in tiles of vectors of up to 32 bytes: included by kernel.inl where
// vectors are shorter than AVX-512's.

// Tokens whose values are worked on together, of all kv heads in turn where a token's heads lie
// together: one of each stream, so that each load goes along a stream of its own. With so many
// query heads to a kv head that arithmetic takes longer than memory does, more at once, for the
// sums are loaded and stored less often: on two Zen 3 cores and cold pages up to 5 % faster with 16
// heads to one kv head. Scores are always of one token of each stream.
constexpr int64_t kWideGroup = 16;
constexpr int64_t kWideTokens = 2 * kStreams;

inline int64_t value_tokens(const DecodeParams& p) {
  return p.group < kWideGroup ? kStreams : kWideTokens;
}

// Lines are fetched this far ahead, one of each stream in turn, and again nearer, for Zen 3 drops
// fetches that it has no room for: docs/cpu.md, The order of memory. Other machines that have no
// longer vectors have not been measured.
constexpr int64_t kAheadBytes[] = {512, 256};

template <class T>
constexpr int64_t kLineElements = 64 / sizeof(T);

template <class T>
[[gnu::always_inline]] inline void fetch_ahead(const T* row) {
  for (const int64_t bytes : kAheadBytes) fetch<kIntoL1>(row + bytes / sizeof(T));
}

template <class T>
[[gnu::always_inline]] inline void fetch_ahead(const T* a, const T* b, const T* c, const T* d) {
  fetch_ahead(a);
  fetch_ahead(b);
  fetch_ahead(c);
  fetch_ahead(d);
}

// Sums of four vectors' lanes, for 32 bytes those of each half.
inline Vec add_lanes(Vec v0, Vec v1, Vec v2, Vec v3) {
#if PA_HP_VECTOR_BYTES == 16
  const Vec ab = PA_HP_SHUFFLE(v0, v1, 0, 4, 1, 5) + PA_HP_SHUFFLE(v0, v1, 2, 6, 3, 7);
  const Vec cd = PA_HP_SHUFFLE(v2, v3, 0, 4, 1, 5) + PA_HP_SHUFFLE(v2, v3, 2, 6, 3, 7);
  return PA_HP_SHUFFLE(ab, cd, 0, 1, 4, 5) + PA_HP_SHUFFLE(ab, cd, 2, 3, 6, 7);
#else
  const Vec ab = PA_HP_SHUFFLE(v0, v1, 0, 8, 1, 9, 4, 12, 5, 13) +
                 PA_HP_SHUFFLE(v0, v1, 2, 10, 3, 11, 6, 14, 7, 15);
  const Vec cd = PA_HP_SHUFFLE(v2, v3, 0, 8, 1, 9, 4, 12, 5, 13) +
                 PA_HP_SHUFFLE(v2, v3, 2, 10, 3, 11, 6, 14, 7, 15);
  return PA_HP_SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
         PA_HP_SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
#endif
}

// out[0..7]: what two results of add_lanes are the sums of.
inline void store_sums(Vec first, Vec second, float* out) {
#if PA_HP_VECTOR_BYTES == 16
  store(out, first);
  store(out + 4, second);
#else
  store(out, PA_HP_SHUFFLE(first, second, 0, 1, 2, 3, 8, 9, 10, 11) +
                 PA_HP_SHUFFLE(first, second, 4, 5, 6, 7, 12, 13, 14, 15));
#endif
}

// Scores of one or two query rows against kStreams keys, [token][row]. Eight numbers are
// written, of which the last four mean nothing if there is one row.
template <int kRows, class T>
inline void score_tile(const float* query, const T* const* keys, int64_t offset, int64_t head_dim,
                       float* scores) {
  // Two sums for each score of one row: four would wait for each other.
  constexpr int kSums = 2 / kRows;
  Vec sums[kSums][8] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= head_dim; i += 2 * kLanes) {
    for (int t = 0; t < kStreams; ++t) {
      if (i % kLineElements<T> == 0) fetch_ahead(keys[t] + offset + i);
      const Pair key = load_pair(keys[t] + offset + i);
      for (int r = 0; r < kRows; ++r) {
        sums[0][t * kRows + r] += load(query + r * head_dim + i) * key.a;
        sums[kSums - 1][t * kRows + r] += load(query + r * head_dim + i + kLanes) * key.b;
      }
    }
  }
  for (; i < head_dim; i += kLanes) {
    for (int t = 0; t < kStreams; ++t) {
      const Vec key = load(keys[t] + offset + i);
      for (int r = 0; r < kRows; ++r) {
        sums[0][t * kRows + r] += load(query + r * head_dim + i) * key;
      }
    }
  }
  for (int n = 0; kSums == 2 && n < 8; ++n) sums[0][n] += sums[1][n];
  store_sums(add_lanes(sums[0][0], sums[0][1], sums[0][2], sums[0][3]),
             add_lanes(sums[0][4], sums[0][5], sums[0][6], sums[0][7]), scores);
}

// The same for four rows. Twelve sums, three keys and a query are the sixteen registers of AVX2, so
// the fourth token comes by itself. The sums have names: GCC keeps an array of twelve in memory.
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
[[gnu::always_inline]] inline void add_row_pairs(RowSums& r0, RowSums& r1, RowSums& r2, RowSums& r3,
                                                 const float* query, int64_t head_dim, const T* a,
                                                 const T* b, const T* c) {
  add_rows(r0, r1, r2, r3, query, head_dim, load_first(a), load_first(b), load_first(c));
  add_rows(r0, r1, r2, r3, query + kLanes, head_dim, load_second(a), load_second(b),
           load_second(c));
}

// One token's. There are two of them, of even and of odd vectors: four sums would wait for each
// other.
struct TokenSums {
  Vec r0 = {}, r1 = {}, r2 = {}, r3 = {};  // one a row
  [[gnu::always_inline]] inline void add(const float* query, int64_t head_dim, Vec key) {
    add_product(r0, key, query);
    add_product(r1, key, query + head_dim);
    add_product(r2, key, query + 2 * head_dim);
    add_product(r3, key, query + 3 * head_dim);
  }
};

template <class T>
[[gnu::always_inline]] inline void score_tile_4(const float* query, const T* const* keys,
                                                int64_t offset, int64_t head_dim, float* scores) {
  const T* a = keys[0] + offset;
  const T* b = keys[1] + offset;
  const T* c = keys[2] + offset;
  const T* d = keys[3] + offset;
  RowSums r0, r1, r2, r3;
  int64_t i = 0;
  for (; i + kLineElements<T> <= head_dim; i += kLineElements<T>) {
    fetch_ahead(a + i, b + i, c + i, d + i);
#pragma GCC unroll 4
    for (int64_t j = i; j < i + kLineElements<T>; j += 2 * kLanes) {
      add_row_pairs(r0, r1, r2, r3, query + j, head_dim, a + j, b + j, c + j);
    }
  }
  if (i < head_dim) fetch_ahead(a + i, b + i, c + i, d + i);
  for (; i + 2 * kLanes <= head_dim; i += 2 * kLanes) {
    add_row_pairs(r0, r1, r2, r3, query + i, head_dim, a + i, b + i, c + i);
  }
  for (; i < head_dim; i += kLanes) {
    add_rows(r0, r1, r2, r3, query + i, head_dim, load(a + i), load(b + i), load(c + i));
  }
  store_sums(add_lanes(r0.a, r1.a, r2.a, r3.a), add_lanes(r0.b, r1.b, r2.b, r3.b), scores);
  const Vec third = add_lanes(r0.c, r1.c, r2.c, r3.c);

  TokenSums even, odd;
#pragma GCC unroll 2
  for (i = 0; i + 2 * kLanes <= head_dim; i += 2 * kLanes) {
    even.add(query + i, head_dim, load_first(d + i));
    odd.add(query + i + kLanes, head_dim, load_second(d + i));
  }
  for (; i < head_dim; i += kLanes) even.add(query + i, head_dim, load(d + i));
  store_sums(third,
             add_lanes(even.r0 + odd.r0, even.r1 + odd.r1, even.r2 + odd.r2, even.r3 + odd.r3),
             scores + 8);
}

#if PA_HP_BF16_DOT
[[gnu::always_inline]] inline void add_dots(RowSums& sums, Vec& last, const BFloat* query,
                                            BitVec key_a, BitVec key_b, BitVec key_c,
                                            BitVec key_d) {
  const BitVec q = load_words(query);
  add_dot(sums.a, q, key_a);
  add_dot(sums.b, q, key_b);
  add_dot(sums.c, q, key_c);
  add_dot(last, q, key_d);
}

// As score_tile_4, with the query as it came: half the instructions. `head_dim` is a multiple of
// 2 * kLanes.
[[gnu::always_inline]] inline void score_dot_4(const BFloat* query, int64_t query_stride,
                                               float factor, const BFloat* const* keys,
                                               int64_t offset, int64_t head_dim, float* scores) {
  RowSums r0, r1, r2, r3;
  TokenSums last;
  for (int64_t i = 0; i < head_dim; i += 2 * kLanes) {
    const BitVec a = load_words(keys[0] + offset + i);
    const BitVec b = load_words(keys[1] + offset + i);
    const BitVec c = load_words(keys[2] + offset + i);
    const BitVec d = load_words(keys[3] + offset + i);
    add_dots(r0, last.r0, query + i, a, b, c, d);
    add_dots(r1, last.r1, query + query_stride + i, a, b, c, d);
    add_dots(r2, last.r2, query + 2 * query_stride + i, a, b, c, d);
    add_dots(r3, last.r3, query + 3 * query_stride + i, a, b, c, d);
  }
  store_sums(add_lanes(r0.a, r1.a, r2.a, r3.a) * factor, add_lanes(r0.b, r1.b, r2.b, r3.b) * factor,
             scores);
  store_sums(add_lanes(r0.c, r1.c, r2.c, r3.c) * factor,
             add_lanes(last.r0, last.r1, last.r2, last.r3) * factor, scores + 8);
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
      const T* row = values[t] + offset + 2 * c * kLanes;
      if (2 * c * kLanes % kLineElements<T> == 0) fetch_ahead(row);
      const Pair value = load_pair(row);
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
[[gnu::always_inline]] inline void value_pair_4(const float* weights, const T* const* values,
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
      if (c % kLineElements<T> == 0) {  // of the next tile's rows: several of a stream come at once
        for (int t = 0; t < kTokens; ++t) fetch<kIntoL1>(values[kTokens + t] + offset + c);
      }
      value_pair_4<kTokens>(weights, values, offset + c, acc + c, head_dim_v);
    } else {
      value_tile<kRows, kTokens, kPairs>(weights, values, offset + c, acc + c, head_dim_v);
    }
  }
  if constexpr (kPairs > 1) {
    for (; c + 2 * kLanes <= head_dim_v; c += 2 * kLanes) {
      value_tile<kRows, kTokens, 1>(weights, values, offset + c, acc + c, head_dim_v);
    }
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

// One row's weights for four values. All four rows' are more than there are registers: GCC leaves
// the rest in memory, from where a multiply-add takes them ("xm", which makes Clang leave all).
struct RowWeights {
  Vec a, b, c, d;
  [[gnu::always_inline]] explicit inline RowWeights(const float* weights)
      : a(splat(weights[0])), b(splat(weights[4])), c(splat(weights[8])), d(splat(weights[12])) {}
  [[gnu::always_inline]] static inline void add(Vec& sum, Vec value, const Vec& weight) {
#if PA_HP_F16C && !defined(__clang__)
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(value), "xm"(weight));
#else
    sum += value * weight;
#endif
  }
  [[gnu::always_inline]] inline void add_to(float* acc, Vec va, Vec vb, Vec vc, Vec vd) const {
    Vec sum = load(acc);
    add(sum, va, a);
    add(sum, vb, b);
    add(sum, vc, c);
    add(sum, vd, d);
    store(acc, sum);
  }
};

// One vector of columns of four rows.
[[gnu::always_inline]] inline void add_columns(const RowWeights& r0, const RowWeights& r1,
                                               const RowWeights& r2, const RowWeights& r3,
                                               float* acc, int64_t head_dim_v, Vec a, Vec b, Vec c,
                                               Vec d) {
  r0.add_to(acc, a, b, c, d);
  r1.add_to(acc + head_dim_v, a, b, c, d);
  r2.add_to(acc + 2 * head_dim_v, a, b, c, d);
  r3.add_to(acc + 3 * head_dim_v, a, b, c, d);
}

template <class T>
[[gnu::always_inline]] inline void add_column_pairs(const RowWeights& r0, const RowWeights& r1,
                                                    const RowWeights& r2, const RowWeights& r3,
                                                    float* acc, int64_t head_dim_v, const T* a,
                                                    const T* b, const T* c, const T* d) {
  add_columns(r0, r1, r2, r3, acc, head_dim_v, load_first(a), load_first(b), load_first(c),
              load_first(d));
  add_columns(r0, r1, r2, r3, acc + kLanes, head_dim_v, load_second(a), load_second(b),
              load_second(c), load_second(d));
}

// As value_rows for four rows and four tokens.
template <class T>
[[gnu::always_inline]] inline void value_tile_4(const float* weights, const T* const* values,
                                                int64_t offset, float* acc, int64_t head_dim_v) {
  const T* a = values[0] + offset;
  const T* b = values[1] + offset;
  const T* c = values[2] + offset;
  const T* d = values[3] + offset;
  const RowWeights r0(weights), r1(weights + 1), r2(weights + 2), r3(weights + 3);
  int64_t i = 0;
  for (; i + kLineElements<T> <= head_dim_v; i += kLineElements<T>) {
    fetch_ahead(a + i, b + i, c + i, d + i);
#pragma GCC unroll 4
    for (int64_t j = i; j < i + kLineElements<T>; j += 2 * kLanes) {
      add_column_pairs(r0, r1, r2, r3, acc + j, head_dim_v, a + j, b + j, c + j, d + j);
    }
  }
  if (i < head_dim_v) fetch_ahead(a + i, b + i, c + i, d + i);
  for (; i + 2 * kLanes <= head_dim_v; i += 2 * kLanes) {
    add_column_pairs(r0, r1, r2, r3, acc + i, head_dim_v, a + i, b + i, c + i, d + i);
  }
  for (; i < head_dim_v; i += kLanes) {
    add_columns(r0, r1, r2, r3, acc + i, head_dim_v, load(a + i), load(b + i), load(c + i),
                load(d + i));
  }
}

// Scores of the tile of four tokens at t for query heads [head, last), by fours that share a kv
// head, the first one `kv_head`. All fours of a kv head fetch its lines, which is faster than if
// the first ones did: docs/cpu.md. Not inlined: what the caller keeps in registers would drive sums
// out of them.
template <class T>
[[gnu::noinline]] void score_fours(const Chunk<T>& chunk, int64_t t, int64_t kv_head, int64_t head,
                                   int64_t last) {
  const DecodeParams& p = chunk.p;
  for (int64_t next = (kv_head + 1) * p.group; head < last; head += 4) {
    if (head == next) {
      ++kv_head;
      next += p.group;
    }
    const int64_t offset = kv_head * p.key_stride_head;
    float* scores = chunk.weights + head * kRoom + 4 * t;
#if PA_HP_BF16_DOT
    if constexpr (std::is_same_v<T, BFloat>) {
      if (p.head_dim % (2 * kLanes) == 0) {
        score_dot_4(chunk.query + head * p.query_stride_head, p.query_stride_head, p.scale * kLog2E,
                    chunk.keys + t, offset, p.head_dim, scores);
        continue;
      }
    }
#endif
    score_tile_4(chunk.scaled + head * p.head_dim, chunk.keys + t, offset, p.head_dim, scores);
  }
}

template <class T>
[[gnu::noinline]] void value_fours(const Chunk<T>& chunk, int64_t t, int64_t kv_head, int64_t head,
                                   int64_t last) {
  const DecodeParams& p = chunk.p;
  for (int64_t next = (kv_head + 1) * p.group; head < last; head += 4) {
    if (head == next) {
      ++kv_head;
      next += p.group;
    }
    value_tile_4(chunk.weights + head * kRoom + 4 * t, chunk.values + t,
                 kv_head * p.value_stride_head, chunk.state.acc + head * p.head_dim_v,
                 p.head_dim_v);
  }
}

// Heads of a step are all query heads of their kv heads, by fours, or some of one (each_step).
template <int kRows>
struct ScoreStep {
  template <class T>
  static void run(const Chunk<T>& chunk, const Heads& heads, int64_t begin, int64_t end) {
    const DecodeParams& p = chunk.p;
    const int64_t head = heads.kv_begin * p.group + heads.first;
    const int64_t last = (heads.kv_end - 1) * p.group + heads.last;
    for (int64_t t = begin; t < end; t += kStreams) {
      if constexpr (kRows == 4) {
        score_fours(chunk, t, heads.kv_begin, head, last);
      } else {
        score_tile<kRows>(chunk.scaled + head * p.head_dim, chunk.keys + t,
                          heads.kv_begin * p.key_stride_head, p.head_dim,
                          chunk.weights + head * kRoom + t * kRows);
      }
    }
  }
};

// By tiles of as many tokens as value_tokens says, and what is left one by one.
template <int kRows>
struct ValueStep {
  template <class T>
  static void run(const Chunk<T>& chunk, const Heads& heads, int64_t begin, int64_t end) {
    const int64_t group = chunk.p.group, tokens = value_tokens(chunk.p);
    const int64_t head = heads.kv_begin * group + heads.first;
    const int64_t last = (heads.kv_end - 1) * group + heads.last;
    int64_t t = begin;
    for (; t + tokens <= end; t += tokens) {
      if (tokens == kWideTokens) {
        add<kWideTokens>(chunk, heads, t);
      } else if constexpr (kRows == 4) {
        value_fours(chunk, t, heads.kv_begin, head, last);
      } else {
        add<kStreams>(chunk, heads, t);
      }
    }
    for (; t < end; ++t) add<1>(chunk, heads, t);
  }

 private:
  template <int kTokens, class T>
  static void add(const Chunk<T>& chunk, const Heads& heads, int64_t t) {
    const DecodeParams& p = chunk.p;
    for (int64_t kv_head = heads.kv_begin; kv_head < heads.kv_end; ++kv_head) {
      for (int64_t row = heads.first; row < heads.last; row += kRows) {
        const int64_t head = kv_head * p.group + row;
        value_rows<kRows, kTokens>(chunk.weights + head * kRoom + t * kRows, chunk.values + t,
                                   kv_head * p.value_stride_head,
                                   chunk.state.acc + head * p.head_dim_v, p.head_dim_v);
      }
    }
  }
};
