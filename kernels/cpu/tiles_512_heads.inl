// Scores and values of a chunk for 16 query heads of a kv head at a time, which are the lanes of
// 64-byte vectors: included by kernel.inl for AVX-512. An element of a key or a value is then
// loaded once for all of them, and no sum crosses lanes. Rows are whole lines of kLine elements.
//
// Both phases compute on a tile of tokens in the L1 cache while they put the next one there, line
// by line between the multiply-adds, one line of each stream in turn. With 16 heads to one kv head
// a token in bfloat16 took 84 cycles of a Zen 5 core from L2 so, 140 by tiles of four tokens and
// eight heads; in float16 156 and 174, of which the multiply-adds are 128. That was before
// add_word.
//
// Meanwhile rows further on are fetched; during scores also the first tile of values, and during
// values the first ones of the next chunk's keys. Two Xeon cores without AMX, cold pages, ns a
// token and kv head in float16 and bfloat16: h64/kv4 121 and 140 with lines 1.25 KiB further on,
// 88 and 104 with rows; h16/kv1 82 and 103 without the first tiles, 77 and 98 with them.

constexpr int64_t kTile = 32;  // tokens of values
constexpr int kKeyTile = 16;   // tokens of keys, one vector of sums each

// Rows of the first values that are fetched for each tile of keys, all in a chunk of 256 tokens. To
// fetch more for each where there are fewer tiles is no faster.
constexpr int64_t kFirstValues = kTile * kKeyTile / kChunkTokens;

// bfloat16 is multiplied in pairs where there are dot products: a word is two neighbours of a key,
// or the same element of two tokens' values. Otherwise a word is one element in float32.
template <class T>
#if PA_HP_BF16_DOT
constexpr bool kDots = std::is_same_v<T, BFloat>;
#else
constexpr bool kDots = false;
#endif

// How many rows ahead lines are fetched: two tiles of keys or, of longer rows, which would not fit
// into L1 with them, one. ns of two Zen 5 cores for a token, cold pages, in one run each: h16/kv1
// in bfloat16 26.1 with 16 rows, 25.0 with 24, 25.3 with 32, on a slower day 29.8 with 24, 28.5
// with 32; with head_dim 256 49.0 with 16, 52.9 with 32; in float16 40.4 with 16 and 40.3 with 32,
// with head_dim 64 21.8 and 20.9. h64/kv4 in float16: 42.7 with 16, 44.6 with 32.
constexpr int64_t kMostAhead = 2 * kKeyTile;

template <class T>
int64_t rows_ahead(int64_t head_dim) {
  return head_dim <= (kDots<T> ? 128 : 64) ? kMostAhead : kKeyTile;
}

// Every place of find_rows that is fetched is one that it fills.
static_assert(kChunkTokens + kKeyTile + kMostAhead <= kRoom);

// Rows that lie next to each other are fetched into L1 on Zen 4 too, for the core's own prefetcher
// takes them into L2. Two cores, shares of a read with fetches into L1 and into L2: h16/kv1 0.42
// and 0.41 in float16, 0.71 and 0.69 in bfloat16, h64/kv4 0.29 and 0.31, 0.35 and 0.44.
template <class T>
bool keys_into_l2(const Chunk<T>& chunk) {
  return chunk.core == Core::kZen4 && chunk.p.key_stride_token != chunk.p.head_dim;
}

template <class T>
bool values_into_l2(const Chunk<T>& chunk) {
  return chunk.core == Core::kZen4 && chunk.p.value_stride_token != chunk.p.head_dim_v;
}

// sum += a * b, lane by lane, words as above.
template <class T>
[[gnu::always_inline]] inline void add_words(Vec& sum, Vec a, Vec b) {
#if PA_HP_BF16_DOT
  if constexpr (kDots<T>) return add_dot(sum, (BitVec)a, (BitVec)b);
#endif
  add_product(sum, a, b);
}

// sum += a * the word at `b` in every lane. As an instruction by hand, for compilers load the word
// by one of its own: a token's scores take a Zen 4 core 180 cycles in float16 and 92 in bfloat16
// with those, 136 and 75 without.
template <class T>
[[gnu::always_inline]] inline void add_word(Vec& sum, Vec a, const float* b) {
#if PA_HP_F16C
  if constexpr (kDots<T>) {
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*b));
  } else {
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*b));
  }
#else
  add_words<T>(sum, a, splat(*b));
#endif
}

// Writes words of query head `head` where the lane of that head is, [word][head of the block].
template <class T>
void load_lane(const DecodeParams& p, int64_t head, const T* row, float* query) {
  const int64_t lane = head % p.group % kBlockHeads;
  float* to = query + (head - lane) * p.head_dim + lane;
  const float factor = p.scale * kLog2E;
  for (int64_t i = 0; i < p.head_dim; i += kLanes) {
    float words[kLanes];
    if constexpr (kDots<T>) {
      std::memcpy(words, row + i, kLanes * sizeof(T));
    } else {
      store(words, load(row + i) * factor);
    }
    for (int j = 0; j < (kDots<T> ? kLanes / 2 : kLanes); ++j, to += kBlockHeads) *to = words[j];
  }
}

// Of a tile's keys this many take their words by a shuffle of four that were loaded at once: what
// comes as a broadcast from memory leaves too few loads. Cycles of a Zen 4 core for a token's
// scores in float16 and bfloat16: 137 and 77 with 2, 136 and 75 with 4, 147 and 79 with 6; the
// multiply-adds are 128 and 64. On a Zen 5 core, before add_word, of 64 and 32: 80 and 41 with 1,
// 73 and 38 with 4, 80 and 42 with 6.
constexpr int kShuffled = 4;

inline Vec load_quads(const float* p) {
#if PA_HP_F16C
  return (Vec)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[i % 4];
  return v;
#endif
}

// sums[token] += query word kWord of all heads * that of the token.
template <int kWord, class T>
[[gnu::always_inline]] inline void add_column(Vec (&sums)[kKeyTile], const Vec (&quads)[kShuffled],
                                              const float* query, const float* words) {
  const Vec heads = load(query + kWord * kBlockHeads);
#pragma GCC unroll 16
  for (int t = 0; t < kKeyTile; ++t) {
    if (t < kShuffled) {
      constexpr int a = kWord, b = 4 + kWord, c = 8 + kWord, d = 12 + kWord;
      const Vec& quad = quads[t % kShuffled];
      add_words<T>(sums[t], heads,
                   PA_HP_SHUFFLE(quad, quad, a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d));
    } else {
      add_word<T>(sums[t], heads, words + t * kLanes + kWord);
    }
  }
}

// A line of each of kCount rows.
template <Fetch kFetch, int kCount, class T>
[[gnu::always_inline]] inline void fetch_lines(const T* const* rows, int64_t offset) {
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) fetch<kFetch>(rows[i] + offset);
}

// Rows of the first tile of values for tile `tile` of keys.
template <class T>
[[gnu::always_inline]] inline void fetch_first_values(const Chunk<T>& chunk, int64_t kv_head,
                                                      int64_t tile) {
  for (int64_t row = tile * kFirstValues; row < (tile + 1) * kFirstValues; ++row) {
    fetch_row(values_into_l2(chunk), chunk.values[row] + kv_head * chunk.p.value_stride_head,
              chunk.p.head_dim_v);
  }
}

// Of the first `rows` keys at kv head 0, with which the next chunk starts, those for tile `tile` of
// values. In blocks that end earlier the addresses go astray, which harms nothing.
template <class T>
[[gnu::always_inline]] inline void fetch_next_keys(const Chunk<T>& chunk, int64_t rows,
                                                   int64_t tile) {
  constexpr int64_t kTiles = kChunkTokens / kTile;
  for (int64_t row = rows * tile / kTiles; row < rows * (tile + 1) / kTiles; ++row) {
    const T* first = chunk.next_keys[row % kStreams];
    fetch_row(keys_into_l2(chunk), first + row / kStreams * chunk.p.key_stride_token,
              chunk.p.head_dim);
  }
}

// Vector `vector` of words of each stream's key in row `row` of a tile, [vector][token][16 words],
// from where a stream has its next one on. Fetches what comes later.
template <Fetch kFetch, class T>
[[gnu::always_inline]] inline void put_keys(const T* const* keys, int64_t offset, int64_t row,
                                            int64_t vector, int64_t ahead, float* tile) {
  constexpr int kElements = kDots<T> ? 2 * kLanes : kLanes;
  float* to = tile + (vector * kKeyTile + row * kStreams) * kLanes;
#pragma GCC unroll 4
  for (int s = 0; s < kStreams; ++s) {
    const T* from = keys[row * kStreams + s] + offset + vector * kElements;
    if constexpr (kDots<T>) {
      std::memcpy(to + s * kLanes, from, sizeof(Vec));
    } else {
      store(to + s * kLanes, load(from));
    }
  }
  fetch_lines<kFetch, kStreams>(keys + row * kStreams + ahead, offset + vector * kElements);
}

template <Fetch kFetch, class T>
[[gnu::noinline]] void score_block(const Chunk<T>& chunk, int64_t kv_head, int64_t head) {
  const DecodeParams& p = chunk.p;
  const int64_t offset = kv_head * p.key_stride_head;
  const int64_t words = p.head_dim / (kDots<T> ? 2 : 1), vectors = words / kLanes;
  const int64_t ahead = rows_ahead<T>(p.head_dim);
  const float factor = kDots<T> ? p.scale * kLog2E : 1.f;
  float* tile = chunk.tiles;
  float* next = tile + vectors * kKeyTile * kLanes;
  for (int64_t row = 0; row < kKeyTile / kStreams; ++row) {
    for (int64_t v = 0; v < vectors; ++v) put_keys<kFetch>(chunk.keys, offset, row, v, ahead, tile);
  }
  float* scores = chunk.weights + head * kRoom;
  Vec top = splat(-kInfinity);
  for (int64_t t = 0; t < chunk.tokens; t += kKeyTile, scores += kKeyTile * kBlockHeads) {
    fetch_first_values(chunk, kv_head, t / kKeyTile);
    const T* const* next_keys = chunk.keys + t + kKeyTile;  // or what find_rows put there
    const float* query = chunk.scaled + head * p.head_dim;
    int64_t row = 0, next_vector = 0;
    // A quarter of a key at a time: sums are no longer so than with the narrowest vectors, which
    // docs/numerics.md derives its limits for.
    for (int64_t end = words / 4, word = 0; end <= words; end += words / 4) {
      Vec sums[kKeyTile] = {};
      for (; word < end; word += 4, query += 4 * kBlockHeads) {
        const float* from = tile + word / kLanes * kKeyTile * kLanes + word % kLanes;
        Vec quads[kShuffled];
#pragma GCC unroll 4
        for (int i = 0; i < kShuffled; ++i) quads[i] = load_quads(from + i * kLanes);
        add_column<0, T>(sums, quads, query, from);
        add_column<1, T>(sums, quads, query, from);
        add_column<2, T>(sums, quads, query, from);
        add_column<3, T>(sums, quads, query, from);
        put_keys<kFetch>(next_keys, offset, row, next_vector, ahead, next);
        if (++next_vector == vectors) next_vector = 0, ++row;
      }
#pragma GCC unroll 16
      for (int i = 0; i < kKeyTile; ++i) {
        float* score = scores + i * kBlockHeads;
        const Vec before = end == words / 4 ? Vec{} : load(score);
        store(score, sums[i] * factor + before);
      }
    }
    // Only of what is live: behind the last token it comes again, but may be rounded differently.
    for (int i = 0; i < kKeyTile && t + i < chunk.tokens; ++i) {
      top = max(load(scores + i * kBlockHeads), top);
    }
    std::swap(tile, next);
  }
  store(chunk.state.max + head, top);
}

template <class T>
void score_blocks(const Chunk<T>& chunk, const Heads& heads) {
  const auto block = keys_into_l2(chunk) ? score_block<kIntoL2, T> : score_block<kIntoL1, T>;
  for (int64_t kv_head = heads.kv_begin; kv_head < heads.kv_end; ++kv_head) {
    for (int64_t i = heads.first; i < heads.last; i += kBlockHeads) {
      block(chunk, kv_head, kv_head * chunk.p.group + i);
    }
  }
}

// Weights of 32 / kRows tokens, [token][head], as bfloat16 numbers [head][token]. With dot products
// of pairs they are rounded like that, which a token of 16 heads in float32 would take twice the
// cycles without.
template <int kRows, int... I>
[[gnu::always_inline]] inline Vec narrow_weights(Vec first, Vec second,
                                                 std::integer_sequence<int, I...>) {
  typedef uint16_t Words __attribute__((vector_size(PA_HP_VECTOR_BYTES)));
#if PA_HP_F16C && PA_HP_BF16_DOT
  const Words words = (Words)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
  BFloat each[2 * kLanes];
  for (int i = 0; i < kLanes; ++i) narrow(first[i], each + i);
  for (int i = 0; i < kLanes; ++i) narrow(second[i], each + kLanes + i);
  Words words;
  std::memcpy(&words, each, sizeof words);
#endif
  constexpr int kTokens = kLine / kRows;
#if defined(__clang__)
  return (Vec)__builtin_shufflevector(words, words, (I % kTokens * kRows + I / kTokens)...);
#else
  return (Vec)__builtin_shuffle(words, Words{(I % kTokens * kRows + I / kTokens)...});
#endif
}

template <int kRows>
[[gnu::always_inline]] inline Vec narrow_weights(Vec first, Vec second) {
  return narrow_weights<kRows>(first, second, std::make_integer_sequence<int, kLine>{});
}

// The even elements of two rows, pair by pair, and the odd ones: as load_pair has them.
[[gnu::always_inline]] inline void pair_words(BitVec a, BitVec b, BitVec& even, BitVec& odd) {
  even = (a & 0xffffu) | b << 16;
  odd = a >> 16 | (b & 0xffff0000u);
}

// Line `line` of each stream's value in row `row` of a tile, [line][token][kLine], or pairs of two
// tokens' words; zeros in place of tokens that there are not: infinity times 0 would be NaN.
template <Fetch kFetch, class T>
[[gnu::always_inline]] inline void put_values(const T* const* values, int64_t left, int64_t offset,
                                              int64_t row, int64_t line, int64_t ahead, T* tile) {
  T* to = tile + (line * kTile + row * kStreams) * kLine;
  const int64_t token = row * kStreams;
  if constexpr (kDots<T>) {
#pragma GCC unroll 2
    for (int s = 0; s < kStreams; s += 2) {
      BitVec a = {}, b = {};
      if (token + s < left) a = load_words(values[token + s] + offset + line * kLine);
      if (token + s + 1 < left) b = load_words(values[token + s + 1] + offset + line * kLine);
      BitVec even, odd;
      pair_words(a, b, even, odd);
      std::memcpy(to + s * kLine, &even, sizeof even);
      std::memcpy(to + (s + 1) * kLine, &odd, sizeof odd);
    }
  } else {
    typedef char Line __attribute__((vector_size(kLine * sizeof(T))));
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      Line elements = {};
      if (token + s < left) {
        std::memcpy(&elements, values[token + s] + offset + line * kLine, sizeof elements);
      }
      std::memcpy(to + s * kLine, &elements, sizeof elements);
    }
  }
  if (token < left) fetch_lines<kFetch, kStreams>(values + token + ahead, offset + line * kLine);
}

template <Fetch kFetch, class T>
[[gnu::noinline]] void add_values_of_block(const Chunk<T>& chunk, int64_t kv_head, int64_t head) {
  constexpr int kRows = kBlockHeads / 2;  // with two vectors of each, sums take half the registers
  constexpr int kTokens = kDots<T> ? 2 : 1;
  const int64_t offset = kv_head * chunk.p.value_stride_head;
  const int64_t head_dim_v = chunk.p.head_dim_v, lines = head_dim_v / kLine;
  const int64_t ahead = rows_ahead<T>(head_dim_v);
  float* weights = chunk.weights + head * kRoom;
  float* acc = chunk.state.acc + head * head_dim_v;
  T* tile = reinterpret_cast<T*>(chunk.tiles);
  T* next = tile + kTile * head_dim_v;
  for (int64_t t = chunk.tokens; t % kTile != 0; ++t) {
    store(weights + t * kBlockHeads, splat(-kInfinity));
  }
  const Vec base = finite_or_zero(load(chunk.state.max + head));
  Vec total = {};
  for (int64_t row = 0; row < kTile / kStreams; ++row) {
    for (int64_t line = 0; line < lines; ++line) {
      put_values<kFetch>(chunk.values, chunk.tokens, offset, row, line, ahead, tile);
    }
  }
  for (int64_t t = 0; t < chunk.tokens; t += kTile, weights += kTile * kBlockHeads) {
    if (head == chunk.kv_begin * chunk.p.group) {
      fetch_next_keys(chunk, rows_ahead<T>(chunk.p.head_dim), t / kTile);
    }
    // Scores become weights, and those behind the last token, -inf, 0.
    for (int i = 0; i < kTile; i += 2) {
      float* score = weights + i * kBlockHeads;
      const Vec even = exp2(load(score) - base), odd = exp2(load(score + kBlockHeads) - base);
      total += even;
      total += odd;
      if constexpr (kDots<T>) {
        store(weights + i / 2 * kBlockHeads, narrow_weights<kBlockHeads>(even, odd));
      } else {
        store(score, even);
        store(score + kBlockHeads, odd);
      }
    }
    const T* const* next_values = chunk.values + t + kTile;
    const int64_t left = chunk.tokens - t - kTile;
    int64_t row = 0, next_line = 0;
    for (int64_t c = 0; c < head_dim_v; c += kLine) {
      for (int first = 0; first < kBlockHeads; first += kRows) {
        float* to = acc + first * head_dim_v + c;
        const float* weight = weights + first;
        const T* value = tile + c * kTile;
        Pair sums[kRows];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sums[r] = {load(to + r * head_dim_v), load(to + r * head_dim_v + kLanes)};
        }
        for (int i = 0; i < kTile; i += 8) {
#pragma GCC unroll 8
          for (int j = 0; j < 8; j += kTokens, value += kTokens * kLine, weight += kBlockHeads) {
            Pair words;
            if constexpr (kDots<T>) {
              words = {(Vec)load_words(value), (Vec)load_words(value + kLine)};
            } else {
              words = load_pair(value);
            }
#pragma GCC unroll 8
            for (int r = 0; r < kRows; ++r) {
              // Weights once for both vectors: all for dot products, half of them otherwise. In
              // float16 a token's values take a Zen 4 core 154 cycles so, 152 if none are and 167
              // if all; in bfloat16 85, and 83 with half, 95 with none. On a Zen 5 core scores and
              // values together take 7 % less in bfloat16 with all than with half, in float16 2 %.
              if (kDots<T> || r % 2 == 0) {
                const Vec both = splat(weight[r]);
                add_words<T>(sums[r].a, words.a, both);
                add_words<T>(sums[r].b, words.b, both);
              } else {
                add_word<T>(sums[r].a, words.a, weight + r);
                add_word<T>(sums[r].b, words.b, weight + r);
              }
            }
          }
          put_values<kFetch>(next_values, left, offset, row, next_line, ahead, next);
          if (++next_line == lines) next_line = 0, ++row;
        }
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          store(to + r * head_dim_v, sums[r].a);
          store(to + r * head_dim_v + kLanes, sums[r].b);
        }
      }
    }
    std::swap(tile, next);
  }
  store(chunk.state.sum + head, total);
}

template <class T>
void add_values_of_blocks(const Chunk<T>& chunk, const Heads& heads) {
  const auto block =
      values_into_l2(chunk) ? add_values_of_block<kIntoL2, T> : add_values_of_block<kIntoL1, T>;
  for (int64_t kv_head = heads.kv_begin; kv_head < heads.kv_end; ++kv_head) {
    for (int64_t i = heads.first; i < heads.last; i += kBlockHeads) {
      block(chunk, kv_head, kv_head * chunk.p.group + i);
    }
  }
}
