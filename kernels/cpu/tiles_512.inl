// Scores and values of a chunk in tiles of 64-byte vectors, of which there are 32: included by
// kernel.inl for AVX-512.

// A token of each stream, so that every load instruction goes along one stream from tile to tile:
// that is what the core's own prefetcher follows. With tiles of 8 tokens, group 4 in bfloat16 has
// 19 GB/s on one Zen 5 core where this has 33.
constexpr int64_t kScoreTokens = kStreams;
constexpr int64_t kValueTokens = kStreams;

// From this many query heads to a kv head on, sums that are loaded and stored less often are worth
// more than the order. Shares of `read` of two Zen 5 cores in their slower state in float16, with 4
// and with 8 values at a time: group 4 0.93 and 0.84, 5 0.89 and 0.84, 6 0.84 and 0.83, 8 0.75 and
// 0.80; in their faster state group 4 0.83 and 0.84, and group 5 has on one core 22 and 19 ns a
// token. GB/s of two Xeon cores: 31 and 28 of group 4, 22.7 with either of group 5, 20 and 21 of 6.
constexpr int64_t kWideGroup = 5;
constexpr int64_t kWideValueTokens = 8;

// What is fetched ahead in each stream: with 2 KiB, group 4 in bfloat16 has 0.80 of a read of the
// same pages on one Zen 5 core, with 1 KiB 0.76, with 4 KiB 0.71, without 0.74. In tiles of several
// tokens of each: group 8 in bfloat16 on two cores 0.85 with 1 KiB and 1.25 KiB, 0.84 with 2 KiB,
// 0.81 with 0.5 KiB. At a page's end it goes astray, which harms nothing: a prefetch does not
// fault.
constexpr int64_t kAheadBytes = 2048;
constexpr int64_t kWideAheadBytes = 1280;

// Where what is fetched comes into L2 (fetches_into_l2), it comes into L1 from this far on: group 1
// in float16 has 36.6 GB/s on two Zen 4 cores instead of 33.8, head_dim 256 30.6 instead of 28.2,
// group 4 with 128 1 to 3 % more.
constexpr int64_t kNearBytes = 512;

template <Fetch kFetch>
[[gnu::always_inline]] inline void fetch_ahead(const void* line, int64_t bytes = kAheadBytes) {
  const char* at = static_cast<const char*>(line);
  fetch<kFetch>(at + bytes);
  if constexpr (kFetch == kIntoL2) fetch<kIntoL1>(at + kNearBytes);
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

// out[i] is the sum of v[i]'s lanes. A shuffle of two vectors within quarters or of whole quarters
// is cheaper than any other: with those a tile of four tokens and four heads takes a Zen 4 core 164
// cycles in float16 and 98 in bfloat16, with permutations and blends 172 and 102.
template <int kCount>
[[gnu::always_inline]] inline void store_sums(const Vec (&v)[kCount], float factor, float* out) {
  Vec ones[8], twos[4], fours[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) ones[i] = add_lanes(v[2 * i % kCount], v[(2 * i + 1) % kCount]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) twos[i] = add_lanes(ones[2 * i], ones[2 * i + 1]);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) fours[i] = add_quarters(twos[2 * i], twos[2 * i + 1]);
  const Vec sums = add_quarters(fours[0], fours[1]) * factor;
  std::memcpy(out, &sums, kCount * sizeof(float));
}

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
                                                int64_t head_dim, const T* const* keys, int64_t i,
                                                std::integer_sequence<int, I...>) {
  (add_product(sums[I], load(query + I % kRows * head_dim), load_one<kWhich>(keys[I / kRows] + i)),
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

// Eight rows leave registers for the keys of two tokens. In float16 a key is then converted half as
// often: 16 heads to one kv head have 11.5 GB/s from the L2 cache on a Zen 5 core, 10.8 by fours.
template <int kRows>
constexpr int kTileTokens = kRows == 8 ? 2 : kScoreTokens;

// Four rows are as many multiply-adds of pairs as of elements where there is AMX: on a Xeon core
// from L2 a token of four heads takes 26 ns by elements and 29 by pairs, one head 15 and 14.
template <int kRows>
constexpr bool kPairs = kRows < 4 || kDotsOfFour;

// A row's address, hidden from GCC, which adds the same offset to vectors of addresses and takes
// them apart again: two of a token's 23 cycles of scores in float16 on a Zen 5 core from L1.
template <class T>
[[gnu::always_inline]] inline const T* row_at(const T* row) {
  asm("" : "+r"(row));
  return row;
}

// Scores of kRows query rows against kTileTokens keys, [token][row].
template <int kRows, Fetch kFetch, class T>
[[gnu::noinline]] void score_tile(const Chunk<T>& chunk, int64_t head, const T* const* tokens,
                                  int64_t offset, float* scores) {
  constexpr int kTokens = kTileTokens<kRows>, kSums = kTokens * kRows;
  constexpr auto kEach = std::make_integer_sequence<int, kSums>{};
  const DecodeParams& p = chunk.p;
  const T* keys[kTokens];
  for (int t = 0; t < kTokens; ++t) keys[t] = row_at(tokens[t] + offset);
  Vec sums[kSums] = {};
#if PA_HP_BF16_DOT
  if constexpr (std::is_same_v<T, BFloat> && kPairs<kRows>) {
    if (p.head_dim % (2 * kLanes) == 0) {
      const BFloat* query = chunk.query + head * p.query_stride_head;
      for (int64_t i = 0; i < p.head_dim; i += 2 * kLanes) {
        add_dots<kRows>(sums, query + i, p.query_stride_head, keys, i, kEach);
        for (int t = 0; t < kTokens; ++t) fetch_ahead<kFetch>(keys[t] + i);
      }
      return store_sums(sums, p.scale * kLog2E, scores);
    }
  }
#endif
  const float* query = chunk.scaled + head * p.head_dim;
  int64_t i = 0;
  for (; i + 2 * kLanes <= p.head_dim; i += 2 * kLanes) {
    add_products<kFirst, kRows>(sums, query + i, p.head_dim, keys, i, kEach);
    add_products<kSecond, kRows>(sums, query + i + kLanes, p.head_dim, keys, i, kEach);
    for (int t = 0; t < kTokens; ++t) fetch_ahead<kFetch>(keys[t] + i);
  }
  if (i < p.head_dim) add_products<kOdd, kRows>(sums, query + i, p.head_dim, keys, i, kEach);
  store_sums(sums, 1.f, scores);
}

// sums[row][vector] += weights[row] * value[vector].
template <int kVecs, int... I>
[[gnu::always_inline]] inline void add_weighted(Vec (&sums)[sizeof...(I)], const float* weights,
                                                const Vec (&value)[kVecs],
                                                std::integer_sequence<int, I...>) {
  (add_product(sums[I], splat(weights[I / kVecs]), value[I % kVecs]), ...);
}

// Whether a tile's products are added to each other first and then to the sums of those before.
// That takes as many multiply-adds but one, a multiplication for it, and an addition, which on Zen
// has ports of its own. On a Zen 4 core four stores beside 16 multiply-adds take 6 cycles more,
// beside multiplications none; presumably data go the way of the third operand. Four tokens and
// four heads take 160 cycles in float16 and 143 in bfloat16 so, 171 to 217 otherwise; the
// multiply-adds are 128. Intel's ports would have a quarter more to do: avx512_bf16 is for AMD's
// CPUs, of which Zen 5 is not measured.
constexpr bool kAddLast = kDotsOfFour;

// acc[row] += sum over kTokens tokens of weights[token][row] * values[token], for kVecs vectors of
// columns: pairs, or one at the end of a row.
template <int kRows, int kVecs, Fetch kFetch, int kTokens, class T>
[[gnu::always_inline]] inline void value_tile(const float* weights,
                                              const T* const (&values)[kTokens], int64_t ahead,
                                              int64_t column, float* acc, int64_t head_dim_v) {
  constexpr int kSums = kRows * kVecs;
  Vec sums[kSums];
  if constexpr (!kAddLast) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      sums[i] = load(acc + i / kVecs * head_dim_v + column + i % kVecs * kLanes);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
    const T* from = values[t] + column;
    Vec value[kVecs];
    if constexpr (kVecs == 1) {
      value[0] = load(from);
    } else {
#pragma GCC unroll 16
      for (int c = 0; c < kVecs; c += 2) {
        const Pair pair = load_pair(from + c * kLanes);
        value[c] = pair.a;
        value[c + 1] = pair.b;
        fetch_ahead<kFetch>(from + c * kLanes, ahead);
      }
    }
    if (kAddLast && t == 0) {
#pragma GCC unroll 16
      for (int i = 0; i < kSums; ++i) sums[i] = splat(weights[i / kVecs]) * value[i % kVecs];
    } else {
      add_weighted(sums, weights + t * kRows, value, std::make_integer_sequence<int, kSums>{});
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) {
    float* to = acc + i / kVecs * head_dim_v + column + i % kVecs * kLanes;
    store(to, kAddLast ? load(to) + sums[i] : sums[i]);
  }
}

// The same for whole rows.
template <int kRows, int kTokens, Fetch kFetch, class T>
[[gnu::noinline]] void value_rows(const float* weights, const T* const* tokens, int64_t offset,
                                  int64_t ahead, float* acc, int64_t head_dim_v) {
  constexpr int kVecs = kRows == 8 ? 2 : kRows == 4 ? 4 : 8;
  const T* values[kTokens];
  for (int t = 0; t < kTokens; ++t) values[t] = row_at(tokens[t] + offset);
  int64_t c = 0;
  for (; c + kVecs * kLanes <= head_dim_v; c += kVecs * kLanes) {
    value_tile<kRows, kVecs, kFetch>(weights, values, ahead, c, acc, head_dim_v);
  }
  for (; kVecs > 2 && c + 2 * kLanes <= head_dim_v; c += 2 * kLanes) {
    value_tile<kRows, 2, kFetch>(weights, values, ahead, c, acc, head_dim_v);
  }
  if (c < head_dim_v) value_tile<kRows, 1, kFetch>(weights, values, ahead, c, acc, head_dim_v);
}

template <int kRows>
struct ScoreStep {  // of tokens [begin, end), and of whole tiles
  template <class T>
  static void run(const Chunk<T>& chunk, int64_t kv_head, int64_t head, int64_t begin,
                  int64_t end) {
    const int64_t offset = kv_head * chunk.p.key_stride_head;
    if constexpr (kRows == kBlockHeads) {
      score_block(chunk, kv_head, head);
    } else {
      float* scores = chunk.weights + head * kRoom;
      const bool first = head % chunk.p.group == 0;  // of those that read these keys
      const auto tile = !first          ? score_tile<kRows, kNothing, T>
                        : chunk.into_l2 ? score_tile<kRows, kIntoL2, T>
                                        : score_tile<kRows, kIntoL1, T>;
      for (int64_t t = begin; t < end; t += kTileTokens<kRows>) {
        tile(chunk, head, chunk.keys + t, offset, scores + t * kRows);
      }
    }
  }
};

// Bytes from a line of values to the one that is fetched with it: whole rows further on, which are
// those of other kv heads, behind the last one in the next tile, or those of other tokens.
template <int kTokens, class T>
int64_t value_ahead(const Chunk<T>& chunk, int64_t kv_head) {
  constexpr int64_t kEach = kTokens / kStreams;  // tokens of a stream
  constexpr int64_t kBytes = kEach == 1 ? kAheadBytes : kWideAheadBytes, kSize = sizeof(T);
  const DecodeParams& p = chunk.p;
  const int64_t rows = std::max<int64_t>(1, kBytes / (p.head_dim_v * kSize));
  if (p.value_stride_token < p.value_stride_head) return rows * p.value_stride_token * kSize;
  int64_t elements = rows * p.value_stride_head;
  if (kv_head + rows >= chunk.kv_end) {
    elements += kEach * p.value_stride_token;
    elements -= (chunk.kv_end - chunk.kv_begin) * p.value_stride_head;
  }
  return elements * kSize;
}

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
      if constexpr (kRows == kBlockHeads) {
        add_values_of_block(chunk, kv_head, head);
      } else {
        const bool first = head % p.group == 0;  // of those that read these values
        const auto rows = !first          ? value_rows<kRows, kTokens, kNothing, T>
                          : chunk.into_l2 ? value_rows<kRows, kTokens, kIntoL2, T>
                                          : value_rows<kRows, kTokens, kIntoL1, T>;
        const int64_t ahead = value_ahead<kTokens>(chunk, kv_head);
        int64_t t = begin;
        for (; t + kTokens <= end; t += kTokens) {
          rows(weights + t * kRows, chunk.values + t, offset, ahead, acc, p.head_dim_v);
        }
        for (; t < end; ++t) {
          value_rows<kRows, 1, kNothing>(weights + t * kRows, chunk.values + t, offset, 0, acc,
                                         p.head_dim_v);
        }
      }
    }
  };
};
