// Scores and values of a chunk in tiles of 64-byte vectors, of which there are 32: included by
// kernel.inl for AVX-512.

// A token of each stream, so that every load instruction goes along one stream from tile to tile:
// that is what the core's own prefetcher follows. With tiles of 8 tokens, group 4 in bfloat16 has
// 19 GB/s on one Zen 5 core where this has 33.
inline int64_t value_tokens(const DecodeParams&) { return kStreams; }

// What is fetched ahead in each stream: with 2 KiB, group 4 in bfloat16 has 0.80 of a read of the
// same pages on one Zen 5 core, with 1 KiB 0.76, with 4 KiB 0.71, without 0.74. At a page's end it
// goes astray, which harms nothing: a prefetch does not fault.
constexpr int64_t kAheadBytes = 2048;

// Zen 5 drops fetches that find no room as well: lines are fetched again this much nearer, but for
// calls whose heads fetch them several times anyway. docs/cpu.md, The order of memory.
constexpr int64_t kAgainBytes = 256;

// Where what is fetched comes into L2, on Zen 4, it comes into L1 from this far on: group 1 in
// float16 has 36.6 GB/s on two cores instead of 33.8, head_dim 256 30.6 instead of 28.2, group 4
// with 128 1 to 3 % more.
constexpr int64_t kNearBytes = 512;

// And into L2 twice, from kAheadBytes further on as well, for a fetch that finds no room is
// dropped: group 1 takes 4 to 12 % less time, group 2 6 to 10 %, group 4 2 to 5 %. At the last kv
// heads of a worker that has not all it goes astray. Calls for several fours or threes, each of
// which fetches, do so once: arithmetic holds them back, and groups of 8 would take 5 % more.
template <Fetch kFetch>
[[gnu::always_inline]] inline void fetch_ahead(const void* line, int64_t bytes = kAheadBytes) {
  const char* from = static_cast<const char*>(line);
  if constexpr (kFetch == kIntoL1 || kFetch == kIntoL1Twice) fetch<kIntoL1>(from + bytes);
  if constexpr (kFetch == kIntoL1Twice) fetch<kIntoL1>(from + bytes - kAgainBytes);
  if constexpr (kFetch == kIntoL2Twice) fetch<kIntoL2>(from + bytes + kAheadBytes);
  if constexpr (kFetch >= kIntoL2) {
    fetch<kIntoL2>(from + bytes);
    fetch<kIntoL1>(from + kNearBytes);
  }
}

// A call for others than the first query heads of its kv heads finds their lines nearby.
template <int kRows, class T>
Fetch fetch_for(const Chunk<T>& chunk, const Heads& heads) {
  if (heads.first > 0) return kNothing;
  const bool once = heads.last > kRows;
  switch (chunk.core) {
    case Core::kZen4:
      return once ? kIntoL2 : kIntoL2Twice;
    case Core::kZen5:
      return once ? kIntoL1 : kIntoL1Twice;
    default:
      return kIntoL1;
  }
}

// Sums of neighbouring lanes of both, in each quarter a's before b's.
[[gnu::always_inline]] inline Vec add_lanes(Vec a, Vec b) {
  return PA_HP_SHUFFLE(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
         PA_HP_SHUFFLE(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
}

// Sums of neighbouring quarters of both, a's before b's.
[[gnu::always_inline]] inline Vec add_quarters(Vec a, Vec b) {
  return PA_HP_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         PA_HP_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}

// Sums over the lanes of vectors, in two steps: `finish` writes them. A shuffle of two vectors
// within quarters or of whole quarters is cheaper than any other: with permutations and blends a
// tile of four tokens and four heads took a Zen 4 core 8 cycles more in float16 and 4 in bfloat16.
template <int kCount>
struct LaneSums {
  static_assert(kCount <= kLanes);
  Vec pairs[8];

  [[gnu::always_inline]] inline void start(const Vec (&v)[kCount]) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) pairs[i] = add_lanes(v[2 * i % kCount], v[(2 * i + 1) % kCount]);
  }

  [[gnu::always_inline]] inline void finish(float factor, float* out) const {
    Vec fours[4], eights[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) fours[i] = add_lanes(pairs[2 * i], pairs[2 * i + 1]);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) eights[i] = add_quarters(fours[2 * i], fours[2 * i + 1]);
    const Vec sums = add_quarters(eights[0], eights[1]) * factor;
    std::memcpy(out, &sums, kCount * sizeof(float));
  }
};

// load_pair's vectors, or the one at the end of a row.
enum Which { kFirst, kSecond, kOdd };

template <Which kWhich, class T>
[[gnu::always_inline]] inline Vec load_one(const T* p) {
  if constexpr (kWhich == kFirst) return load_pair(p).a;
  if constexpr (kWhich == kSecond) return load_second(p);
  return load(p);
}

// sums[token][row] += query[row] * keys[token], one vector of each. As a fold: GCC keeps sums in
// memory that a loop goes through.
template <Which kWhich, int kRows, class T, int... I>
[[gnu::always_inline]] inline void add_products(Vec (&sums)[sizeof...(I)], const float* query,
                                                int64_t stride, const T* const* keys, int64_t i,
                                                std::integer_sequence<int, I...>) {
  (add_product(sums[I], load(query + I % kRows * stride), load_one<kWhich>(keys[I / kRows] + i)),
   ...);
}

#if PA_HP_BF16_DOT
template <int kRows, int... I>
[[gnu::always_inline]] inline void add_dots(Vec (&sums)[sizeof...(I)], const BFloat* query,
                                            int64_t stride, const BFloat* const* keys, int64_t i,
                                            std::integer_sequence<int, I...>) {
  (add_dot(sums[I], load_words(query + I % kRows * stride), load_words(keys[I / kRows] + i)), ...);
}
#endif

// Four rows are as many multiply-adds of pairs as of elements where there is AMX: on a Xeon core
// from L2 a token of four heads takes 26 ns by elements and 29 by pairs, one head 15 and 14.
#if PA_HP_AMX
template <int kRows>
constexpr bool kPairs = kRows < 4;
#else
template <int kRows>
constexpr bool kPairs = true;
#endif

// A row's address, hidden from GCC, which adds the same offset to vectors of addresses and takes
// them apart again: two of a token's 23 cycles of scores in float16 on a Zen 5 core from L1.
template <class T>
[[gnu::always_inline]] inline const T* row_at(const T* row) {
  asm("" : "+r"(row));
  return row;
}

// Products of 2 * kLanes columns of keys and query rows, in float32 or, by pairs, as they came.
template <int kRows, Fetch kFetch, class Q, class T>
[[gnu::always_inline]] inline void add_columns(Vec (&sums)[kStreams * kRows], const Q* query,
                                               int64_t stride, const T* const* keys, int64_t i) {
  constexpr auto kEach = std::make_integer_sequence<int, kStreams * kRows>{};
#if PA_HP_BF16_DOT
  if constexpr (std::is_same_v<Q, BFloat>) {
    add_dots<kRows>(sums, query + i, stride, keys, i, kEach);
  }
#endif
  if constexpr (std::is_same_v<Q, float>) {
    add_products<kFirst, kRows>(sums, query + i, stride, keys, i, kEach);
    add_products<kSecond, kRows>(sums, query + i + kLanes, stride, keys, i, kEach);
  }
  for (int s = 0; s < kStreams; ++s) fetch_ahead<kFetch>(keys[s] + i);
}

// Scores of tokens [begin, end), and of whole tiles, [token][row]. What is left to do of a tile's
// sums is done behind the next tile's first products: while it waits for the last products of its
// own, what it waits in is not there for others, which takes a Zen 4 core 26 to 39 cycles of a tile
// whose multiply-adds are 128. Scores of four heads from L1 take 40 cycles a token in float16 so
// and 23 in bfloat16, 42 and 29 otherwise.
template <int kRows, Fetch kFetch, class Q, class T>
[[gnu::noinline]] void score_tiles(const Chunk<T>& chunk, const Heads& heads, int64_t begin,
                                   int64_t end, const Q* query, int64_t stride, float factor) {
  constexpr int kSums = kStreams * kRows;
  const DecodeParams& p = chunk.p;
  const int64_t head_dim = p.head_dim;
  float* scores = nullptr;  // of the tile before
  LaneSums<kSums> before = {};
  for (int64_t kv_head = heads.kv_begin; kv_head < heads.kv_end; ++kv_head) {
    const int64_t offset = kv_head * p.key_stride_head;
    for (int64_t row = heads.first; row < heads.last; row += kRows) {
      const int64_t head = kv_head * p.group + row;
      const Q* q = query + head * stride;
      for (int64_t t = begin; t < end; t += kStreams) {
        const T* keys[kStreams];
        for (int s = 0; s < kStreams; ++s) keys[s] = row_at(chunk.keys[t + s] + offset);
        Vec sums[kSums] = {};
        add_columns<kRows, kFetch>(sums, q, stride, keys, 0);
        if (scores != nullptr) before.finish(factor, scores);
        int64_t i = 2 * kLanes;
        for (; i + 2 * kLanes <= head_dim; i += 2 * kLanes) {
          add_columns<kRows, kFetch>(sums, q, stride, keys, i);
        }
        if constexpr (std::is_same_v<Q, float>) {  // pairs are of whole lines
          if (i < head_dim) {
            add_products<kOdd, kRows>(sums, q + i, stride, keys, i,
                                      std::make_integer_sequence<int, kSums>{});
          }
        }
        before.start(sums);
        scores = chunk.weights + head * kRoom + t * kRows;
      }
    }
  }
  before.finish(factor, scores);
}

template <int kRows, class Q, class T>
void add_scores(const Chunk<T>& chunk, const Heads& heads, int64_t begin, int64_t end,
                const Q* query, int64_t stride, float factor) {
  constexpr decltype(&score_tiles<kRows, kNothing, Q, T>) kTiles[] = {
      // in the order of Fetch
      score_tiles<kRows, kNothing, Q, T>, score_tiles<kRows, kIntoL1, Q, T>,
      score_tiles<kRows, kIntoL1Twice, Q, T>, score_tiles<kRows, kIntoL2, Q, T>,
      score_tiles<kRows, kIntoL2Twice, Q, T>};
  kTiles[fetch_for<kRows>(chunk, heads)](chunk, heads, begin, end, query, stride, factor);
}

template <int kRows>
struct ScoreStep {
  template <class T>
  static void run(const Chunk<T>& chunk, const Heads& heads, int64_t begin, int64_t end) {
    const DecodeParams& p = chunk.p;
    if constexpr (kRows == kBlockHeads) {
      score_blocks(chunk, heads);
    } else {
#if PA_HP_BF16_DOT
      if constexpr (std::is_same_v<T, BFloat> && kPairs<kRows>) {
        if (p.head_dim % (2 * kLanes) == 0) {
          return add_scores<kRows>(chunk, heads, begin, end, chunk.query, p.query_stride_head,
                                   p.scale * kLog2E);
        }
      }
#endif
      add_scores<kRows>(chunk, heads, begin, end, chunk.scaled, p.head_dim, 1.f);
    }
  }
};

// A factor in every lane, kept in a register: compilers would load it anew for each of its uses.
[[gnu::always_inline]] inline Vec splat_once(const float* factor) {
#if PA_HP_F16C
  Vec v;
  asm("vbroadcastss %1, %0" : "=v"(v) : "m"(*factor));
  return v;
#else
  return splat(*factor);
#endif
}

// acc[row] += sum over kTokens tokens of weights[token][row] * values[token], one vector of
// columns.
template <int kRows, int kTokens>
[[gnu::always_inline]] inline void add_weighted(const Vec (&weights)[kTokens * kRows],
                                                const Vec (&values)[kTokens], float* acc,
                                                int64_t head_dim_v) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    Vec sum = load(acc + r * head_dim_v);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) add_product(sum, weights[t * kRows + r], values[t]);
    store(acc + r * head_dim_v, sum);
  }
}

// The same for whole rows. All weights stay in registers, so that a sum is loaded, gets its
// products and is stored at once: stores that come one by one, each of what was just computed, cost
// a Zen 4 core nothing beside multiply-adds, others up to one and a half of them. Four tokens and
// four heads take 136 cycles in float16 and 133 in bfloat16, 164 and 143 with 16 sums in registers
// and weights as they come; the multiply-adds are 128.
template <int kRows, int kTokens, Fetch kFetch, class T>
[[gnu::noinline]] void value_tile(const float* weights, const T* const* tokens, int64_t offset,
                                  int64_t ahead, float* acc, int64_t head_dim_v) {
  const T* rows[kTokens];
  for (int t = 0; t < kTokens; ++t) rows[t] = row_at(tokens[t] + offset);
  Vec weight[kTokens * kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kTokens * kRows; ++i) weight[i] = splat_once(weights + i);
  int64_t c = 0;
  for (; c + 2 * kLanes <= head_dim_v; c += 2 * kLanes) {
    Vec first[kTokens], second[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const Pair pair = load_pair(rows[t] + c);
      first[t] = pair.a;
      second[t] = pair.b;
      fetch_ahead<kFetch>(rows[t] + c, ahead);
    }
    add_weighted<kRows>(weight, first, acc + c, head_dim_v);
    add_weighted<kRows>(weight, second, acc + c + kLanes, head_dim_v);
  }
  if (c < head_dim_v) {
    Vec value[kTokens];
    for (int t = 0; t < kTokens; ++t) value[t] = load(rows[t] + c);
    add_weighted<kRows>(weight, value, acc + c, head_dim_v);
  }
}

// Bytes from a line of values to the one that is fetched with it: whole rows further on, which are
// those of other kv heads, behind the last one in the next tile, or those of other tokens.
template <class T>
int64_t value_ahead(const Chunk<T>& chunk, int64_t kv_head, int64_t rows) {
  constexpr int64_t kSize = sizeof(T);
  const DecodeParams& p = chunk.p;
  if (p.value_stride_token < p.value_stride_head) return rows * p.value_stride_token * kSize;
  int64_t elements = rows * p.value_stride_head;
  if (kv_head + rows >= chunk.kv_end) {
    elements += p.value_stride_token - (chunk.kv_end - chunk.kv_begin) * p.value_stride_head;
  }
  return elements * kSize;
}

template <int kRows>
struct ValueStep {
  template <class T>
  static void run(const Chunk<T>& chunk, const Heads& heads, int64_t begin, int64_t end) {
    if constexpr (kRows == kBlockHeads) {
      add_values_of_blocks(chunk, heads);
    } else {
      const DecodeParams& p = chunk.p;
      const int64_t rows = std::max<int64_t>(1, kAheadBytes / (p.head_dim_v * sizeof(T)));
      constexpr decltype(&value_tile<kRows, kStreams, kNothing, T>) kTiles[] = {
          // as Fetch
          value_tile<kRows, kStreams, kNothing, T>, value_tile<kRows, kStreams, kIntoL1, T>,
          value_tile<kRows, kStreams, kIntoL1Twice, T>, value_tile<kRows, kStreams, kIntoL2, T>,
          value_tile<kRows, kStreams, kIntoL2Twice, T>};
      const auto tile = kTiles[fetch_for<kRows>(chunk, heads)];
      for (int64_t kv_head = heads.kv_begin; kv_head < heads.kv_end; ++kv_head) {
        const int64_t offset = kv_head * p.value_stride_head;
        const int64_t ahead = value_ahead(chunk, kv_head, rows);
        for (int64_t i = heads.first; i < heads.last; i += kRows) {
          const int64_t head = kv_head * p.group + i;
          const float* weights = chunk.weights + head * kRoom;
          float* acc = chunk.state.acc + head * p.head_dim_v;
          int64_t t = begin;
          for (; t + kStreams <= end; t += kStreams) {
            tile(weights + t * kRows, chunk.values + t, offset, ahead, acc, p.head_dim_v);
          }
          for (; t < end; ++t) {
            value_tile<kRows, 1, kNothing>(weights + t * kRows, chunk.values + t, offset, 0, acc,
                                           p.head_dim_v);
          }
        }
      }
    }
  }
};
