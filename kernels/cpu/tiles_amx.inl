// Blocks of query heads in bfloat16 and float16 by AMX: included by kernel.inl behind
// tiles_512_heads.inl. Tile registers have up to 16 rows of 64 bytes; a product of two adds 32
// terms to each of up to 16 by 16 sums.
//
// Keys or values of some tokens of a kv head are put into a tile in the first-level cache and
// multiplied there. Putting takes most of the time, however few heads there are, so that groups of
// 4 are no faster from cold pages than without; doing it between the products gains nothing, since
// floating-point vectors slow down beside them. Lines of the next tile are fetched during both,
// half of its tokens each: a core can wait for few lines at once. The first tiles of values and of
// the next chunk's keys are fetched during softmax and values.
//
// A float16 number is the sum of two in bfloat16, its parts, exactly. A product of two numbers is
// that of their parts, each with each. Infinities have no such parts and come out as NaN.

inline bool by_blocks(const DecodeParams& p) { return has_blocks(p) && whole_lines(p); }

template <class T>
constexpr int kParts = std::is_same_v<T, Half> ? 2 : 1;

constexpr int64_t kTileRow = 64;  // bytes of a row of a tile register, kLanes pairs of bfloat16

// As LDTILECFG reads it (Intel 64 and IA-32 Architectures Software Developer's Manual).
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

// Registers: keys or values, what they are multiplied by, a part each, and the sums.
// Scores: [token][word] * [word][head] = [token][head]. Values: [head][word] * [word][column] =
// [head][column]; the last block of a kv head, which has fewer rows, has registers of its own.
constexpr int kCache = 0, kQuery = 1, kScores = 3;
template <bool kLast>
constexpr int kWeights = kLast ? 1 : 4;
template <bool kLast>
constexpr int kOut = kLast ? 3 : 6;

TileShapes score_shapes(int width) {
  TileShapes shapes;
  for (int i = kCache; i <= kScores; ++i) {
    shapes.row_bytes[i] = i == kCache ? kTileRow : width * sizeof(float);
    shapes.rows[i] = kKeyTile;
  }
  return shapes;
}

TileShapes value_shapes(int width, int64_t group) {
  TileShapes shapes;
  for (int i = kCache; i <= kOut<false>; ++i) {
    shapes.row_bytes[i] = kTileRow;
    shapes.rows[i] = i == kCache            ? kTile / 2
                     : i >= kWeights<false> ? width
                                            : (group - 1) % width + 1;
  }
  return shapes;
}

#if PA_HP_LOWERED  // by a test: the operations spelled out, sums in another order
TileShapes tile_shapes;
float tile_registers[8][16][kLanes];

template <int kTile>
void load_tile(const void* from, int64_t stride) {
  for (int i = 0; i < tile_shapes.rows[kTile]; ++i) {
    const char* row = static_cast<const char*>(from) + i * stride;
    std::memcpy(tile_registers[kTile][i], row, tile_shapes.row_bytes[kTile]);
  }
}

template <int kTile>
void store_tile(void* to, int64_t stride) {
  for (int i = 0; i < tile_shapes.rows[kTile]; ++i) {
    char* row = static_cast<char*>(to) + i * stride;
    std::memcpy(row, tile_registers[kTile][i], tile_shapes.row_bytes[kTile]);
  }
}

template <int kTile>
void clear_tile() {
  std::memset(tile_registers[kTile], 0, sizeof tile_registers[kTile]);
}

template <int kSum, int kA, int kB>
void add_tiles() {
  for (int i = 0; i < tile_shapes.rows[kSum]; ++i) {
    Vec sums = {};
    for (int k = 0; k < kLanes; ++k) {
      const BitVec pair = BitVec{} + float_bits(tile_registers[kA][i][k]);
      add_dot(sums, pair, (BitVec)load(tile_registers[kB][k]));
    }
    store(tile_registers[kSum][i], load(tile_registers[kSum][i]) + sums);
  }
}

struct TileRegisters {
  void set(const TileShapes& shapes) { tile_shapes = shapes; }
};
#else
// As assembly, which needs no target: GCC's intrinsics do not say that they read memory.
template <int kTile>
[[gnu::always_inline]] inline void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
[[gnu::always_inline]] inline void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
[[gnu::always_inline]] inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// kSum[i][j] += the sum of kA[i][k] * kB[k][j] over kLanes pairs k.
template <int kSum, int kA, int kB>
[[gnu::always_inline]] inline void add_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}

// Callers may have set shapes once for many products of their own: they come back at the end.
class TileRegisters {
 public:
  TileRegisters() { asm volatile("sttilecfg %0" : "=m"(before_)); }
  ~TileRegisters() {
    if (before_.palette != 0) {
      set(before_);
    } else {
      asm volatile("tilerelease");
    }
  }
  TileRegisters(const TileRegisters&) = delete;
  void set(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }

 private:
  TileShapes before_;
};
#endif

// The parts of two numbers to a word, the first one's in its lower half. What the higher part
// leaves of a float16 number has nothing below its own upper half.
[[gnu::always_inline]] inline void split(Vec first, Vec second, BitVec (&parts)[2]) {
  const BitVec a = (BitVec)first & 0xffff0000u, b = (BitVec)second & 0xffff0000u;
  parts[0] = a >> 16 | b;
  parts[1] = (BitVec)(first - (Vec)a) >> 16 | (BitVec)(second - (Vec)b);
}

// A line of a key or a query. A word is two neighbours in bfloat16, in float16 two elements kLanes
// apart.
[[gnu::always_inline]] inline void split_line(const BFloat* line, BitVec (&parts)[1]) {
  parts[0] = load_words(line);
}

[[gnu::always_inline]] inline void split_line(const Half* line, BitVec (&parts)[2]) {
  split(load(line), load(line + kLanes), parts);
}

// The query of all blocks, [line][part][word][head of the block]. Heads that a block lacks are 0.
template <class T>
void load_query_blocks(const DecodeParams& p, int64_t seq, float* query) {
  const int64_t width = block_width(p), words = p.head_dim / 2 * kParts<T>;
  std::fill_n(query, padded_heads(p) * words, 0.f);
  for (int64_t head = 0; head < p.heads; ++head) {
    const T* row =
        static_cast<const T*>(p.query) + seq * p.query_stride_batch + head * p.query_stride_head;
    const int64_t lane = head % p.group % width;
    float* to = query + (padded_head(p, head) - lane) * words + lane;
    for (int64_t i = 0; i < p.head_dim; i += kLine) {
      BitVec parts[kParts<T>];
      split_line(row + i, parts);
      for (const BitVec& part : parts) {
        for (int j = 0; j < kLanes; ++j, to += width) *to = ((Vec)part)[j];
      }
    }
  }
}

// Keys of kKeyTile tokens from `begin` on, [line][part][token][word].
template <class T>
[[gnu::noinline]] void put_keys(const Chunk<T>& chunk, int64_t kv_head, int64_t begin) {
  const int64_t offset = kv_head * chunk.p.key_stride_head;
  for (int64_t row = 0; row < kKeyTile; row += kStreams) {
    const T* const* keys = chunk.keys + begin + row;
    float* to = chunk.tiles + row * kLanes;
    for (int64_t i = 0; i < chunk.p.head_dim; i += kLine, to += kParts<T> * kKeyTile * kLanes) {
#pragma GCC unroll 4
      for (int s = 0; s < kStreams; ++s) {
        BitVec parts[kParts<T>];
        split_line(keys[s] + offset + i, parts);
#pragma GCC unroll 2
        for (int part = 0; part < kParts<T>; ++part) {
          store(to + (part * kKeyTile + s) * kLanes, (Vec)parts[part]);
        }
      }
      if (row < kKeyTile / 2) fetch_lines<kIntoL1, kStreams>(keys + kKeyTile, offset + i);
    }
  }
}

// Scores of the tokens in the tile, the first one of which is `begin`, before they are scaled.
template <class T, int kWidth>
[[gnu::noinline]] void multiply_keys(const Chunk<T>& chunk, int64_t kv_head, int64_t begin) {
  constexpr int64_t kStride = kWidth * sizeof(float);
  const DecodeParams& p = chunk.p;
  const T* const* next = chunk.keys + begin + kKeyTile + kKeyTile / 2;
  const int64_t words = p.head_dim / 2 * kParts<T>;
  const int64_t first = padded_head(p, kv_head * p.group);
  for (int64_t head = first; head < first + padded_group(p); head += kWidth) {
    const float* keys = chunk.tiles;
    const float* query = chunk.scaled + head * words;
    clear_tile<kScores>();
    for (int64_t i = 0; i < p.head_dim; i += kLine) {
      load_tile<kCache>(keys, kTileRow);
      load_tile<kQuery>(query, kStride);
      add_tiles<kScores, kCache, kQuery>();
      if constexpr (kParts<T> == 2) {
        load_tile<kQuery + 1>(query + kLanes * kWidth, kStride);
        add_tiles<kScores, kCache, kQuery + 1>();
        load_tile<kCache>(keys + kKeyTile * kLanes, kTileRow);
        add_tiles<kScores, kCache, kQuery>();
        add_tiles<kScores, kCache, kQuery + 1>();
      }
      keys += kParts<T> * kKeyTile * kLanes;
      query += kParts<T> * kLanes * kWidth;
      fetch_lines<kIntoL1, kKeyTile / 2>(next, kv_head * p.key_stride_head + i);
    }
    store_tile<kScores>(chunk.weights + head * kRoom + begin * kWidth, kStride);
  }
}

// Lanes kBit apart change places, of b where a has the bit clear.
template <int kBit, int... I>
[[gnu::always_inline]] inline void swap_lanes(Vec& a, Vec& b, std::integer_sequence<int, I...>) {
  const Vec low = PA_HP_SHUFFLE(a, b, (I & kBit ? kLanes + (I ^ kBit) : I)...);
  b = PA_HP_SHUFFLE(a, b, (I & kBit ? kLanes + I : I ^ kBit)...);
  a = low;
}

template <int kBit, int kRows>
[[gnu::always_inline]] inline void swap_rows(Vec (&rows)[kRows]) {
  if constexpr (kBit < kRows) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      if ((i & kBit) == 0) {
        swap_lanes<kBit * kLanes / kRows>(rows[i], rows[i | kBit],
                                          std::make_integer_sequence<int, kLanes>{});
      }
    }
    swap_rows<2 * kBit>(rows);
  }
}

// Rounded to bfloat16, to nearest.
inline Vec upper_part(Vec x) { return (Vec)(((BitVec)x + 0x8000u) & 0xffff0000u); }

// Weights of 32 tokens become those of a tile, [part][head][token], from [token][head]: the first
// part is rounded, the second one is what that leaves, rounded itself.
template <class T, int kWidth>
[[gnu::always_inline]] inline void put_weights(float* weights) {
  Vec parts[kParts<T>][kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    const float* from = weights + 2 * i * kLanes;
    Vec first = load(from), second = load(from + kLanes);
    if constexpr (kParts<T> == 2) {
      const Vec high = upper_part(first), second_high = upper_part(second);
      parts[1][i] = narrow_weights<kWidth>(first - high, second - second_high);
      first = high;
      second = second_high;
    }
    parts[0][i] = narrow_weights<kWidth>(first, second);
  }
  for (auto& rows : parts) {
    swap_rows<1>(rows);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) store(weights + i * kLanes, rows[i]);
    weights += kWidth * kLanes;
  }
}

// Scores of all blocks become the weights of tiles, 0 behind the last token; meanwhile four tokens
// of the first tile of values are fetched for each: all of it in a chunk of 256.
template <class T, int kWidth>
[[gnu::noinline]] void softmax_blocks(const Chunk<T>& chunk) {
  constexpr int kEach = kTile * kTile / kChunkTokens;
  const DecodeParams& p = chunk.p;
  const int64_t count = chunk.tokens * kWidth;
  const float factor = p.scale * kLog2E;
  for (int64_t kv_head = chunk.kv_begin; kv_head < chunk.kv_end; ++kv_head) {
    for (int64_t place = 0; place < p.group; place += kWidth) {
      const int64_t head = kv_head * p.group + place;
      float* weights = chunk.weights + padded_head(p, head) * kRoom;
      for (int64_t i = 0; i < count; i += kLanes) store(weights + i, load(weights + i) * factor);
      for (int64_t i = count; i % kLanes != 0; ++i) weights[i] = -kInfinity;
      float max[kWidth], sum[kWidth];
      softmax_rows<kWidth>(weights, chunk.tokens, max, sum);
      const int64_t rows = std::min<int64_t>(kWidth, p.group - place);
      std::copy_n(max, rows, chunk.state.max + head);
      std::copy_n(sum, rows, chunk.state.sum + head);
      std::fill_n(weights + count, kTile * kWidth, 0.f);
      for (int64_t t = 0; t < chunk.tokens; t += kTile) {
        put_weights<T, kWidth>(weights + t * kWidth);
        for (int64_t i = 0; i < p.head_dim_v; i += kLine) {
          fetch_lines<kIntoL1, kEach>(chunk.values + t / kTile * kEach,
                                      kv_head * p.value_stride_head + i);
        }
      }
    }
  }
}

// A line of the values of two tokens. A word is the same element of both; halves of the line are
// even and odd elements in bfloat16, as `store_pair` has them.
[[gnu::always_inline]] inline void split_values(const BFloat* first, const BFloat* second,
                                                BitVec (&halves)[2][1]) {
  pair_words(load_words(first), load_words(second), halves[0][0], halves[1][0]);
}

[[gnu::always_inline]] inline void split_values(const Half* first, const Half* second,
                                                BitVec (&halves)[2][2]) {
  split(load(first), load(second), halves[0]);
  split(load(first + kLanes), load(second + kLanes), halves[1]);
}

// Values of kTile tokens from `begin` on, [line][part][pair of tokens][half][word]; zeros in place
// of tokens that there are not: infinity times 0 would be NaN.
template <class T, bool kWhole>
[[gnu::noinline]] void put_values(const Chunk<T>& chunk, int64_t kv_head, int64_t begin) {
  alignas(kTileRow) static const T kZeros[kLine] = {};
  const int64_t offset = kv_head * chunk.p.value_stride_head;
  for (int64_t row = 0; row < kTile; row += kStreams) {
    const T* const* values = chunk.values + begin + row;
    const int64_t left = chunk.tokens - begin - row;
    float* to = chunk.tiles + row * kLanes;
    for (int64_t i = 0; i < chunk.p.head_dim_v; i += kLine, to += kParts<T> * kTile * kLanes) {
#pragma GCC unroll 2
      for (int s = 0; s < kStreams; s += 2) {
        BitVec halves[2][kParts<T>];
        split_values(kWhole || s < left ? values[s] + offset + i : kZeros,
                     kWhole || s + 1 < left ? values[s + 1] + offset + i : kZeros, halves);
#pragma GCC unroll 2
        for (int part = 0; part < kParts<T>; ++part) {
          store(to + (part * kTile + s) * kLanes, (Vec)halves[0][part]);
          store(to + (part * kTile + s + 1) * kLanes, (Vec)halves[1][part]);
        }
      }
      if (kWhole && row < kTile / 2) fetch_lines<kIntoL1, kStreams>(values + kTile, offset + i);
    }
  }
}

// acc += weights * values of the tokens in the tile, for a block.
template <class T, int kWidth, bool kLast>
[[gnu::always_inline]] inline void add_block(const Chunk<T>& chunk, const float* weights,
                                             float* acc, const T* const* next, int64_t offset) {
  constexpr int kBy = kWeights<kLast>, kTo = kOut<kLast>;
  const int64_t head_dim_v = chunk.p.head_dim_v;
  const int64_t stride = head_dim_v * sizeof(float);
  load_tile<kBy>(weights, kTileRow);
  if constexpr (kParts<T> == 2) load_tile<kBy + 1>(weights + kWidth * kLanes, kTileRow);
  for (int64_t c = 0; c < head_dim_v; c += kLanes) {
    const int64_t line = c / kLine, half = c % kLine;
    const float* values = chunk.tiles + line * kParts<T> * kTile * kLanes + half;
    load_tile<kTo>(acc + c, stride);
    load_tile<kCache>(values, 2 * kTileRow);
    add_tiles<kTo, kBy, kCache>();
    if constexpr (kParts<T> == 2) {
      add_tiles<kTo, kBy + 1, kCache>();
      load_tile<kCache>(values + kTile * kLanes, 2 * kTileRow);
      add_tiles<kTo, kBy, kCache>();
      add_tiles<kTo, kBy + 1, kCache>();
    }
    store_tile<kTo>(acc + c, stride);
    fetch_lines<kIntoL1, kTile / 4>(next + half / 2, offset + line * kLine);
  }
}

// Sums of values of the tokens in the tile, the first one of which is `begin`.
template <class T, int kWidth>
[[gnu::noinline]] void multiply_values(const Chunk<T>& chunk, int64_t kv_head, int64_t begin) {
  const DecodeParams& p = chunk.p;
  const T* const* next = chunk.values + begin + kTile + kTile / 2;
  const int64_t offset = kv_head * p.value_stride_head;
  for (int64_t place = 0; place < p.group; place += kWidth) {
    const int64_t head = kv_head * p.group + place;
    const float* weights = chunk.weights + padded_head(p, head) * kRoom + begin * kWidth;
    float* acc = chunk.state.acc + head * p.head_dim_v;
    if (place + kWidth < p.group) {
      add_block<T, kWidth, false>(chunk, weights, acc, next, offset);
    } else {
      add_block<T, kWidth, true>(chunk, weights, acc, next, offset);
    }
  }
}

template <class T, int kWidth>
void attend_blocks(const Chunk<T>& chunk) {
  TileRegisters registers;
  registers.set(score_shapes(kWidth));
  for (int64_t t = 0; t < chunk.tokens; t += kKeyTile) {
    for (int64_t kv_head = chunk.kv_begin; kv_head < chunk.kv_end; ++kv_head) {
      put_keys(chunk, kv_head, t);
      multiply_keys<T, kWidth>(chunk, kv_head, t);
    }
  }
  softmax_blocks<T, kWidth>(chunk);
  registers.set(value_shapes(kWidth, chunk.p.group));
  for (int64_t t = 0; t < chunk.tokens; t += kTile) {
    const auto put = t + kTile <= chunk.tokens ? put_values<T, true> : put_values<T, false>;
    fetch_next_keys(chunk, kKeyTile, t / kTile);
    for (int64_t kv_head = chunk.kv_begin; kv_head < chunk.kv_end; ++kv_head) {
      put(chunk, kv_head, t);
      multiply_values<T, kWidth>(chunk, kv_head, t);
    }
  }
}

inline bool any_nan(const float* from, const float* to) {
  BitVec found = {};
  for (; from < to; from += kLanes) {
    const Vec v = load(from);
    found |= (BitVec)(v != v);
  }
  uint32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= found[i];
  return any != 0;
}

// A whole chunk of sequence `seq`; sums of values are 0, and `query` is load_query's. A kv head
// that float16's parts made NaN of is computed again by rows, each by itself: its bits must not
// depend on which others this call has.
template <class T>
void attend_blocks(const Chunk<T>& chunk, int64_t seq, float* query) {
  const DecodeParams& p = chunk.p;
  if constexpr (kParts<T> == 1) {
    block_width(p) == 8 ? attend_blocks<T, 8>(chunk) : attend_blocks<T, 16>(chunk);
  } else {
    attend_blocks<T, 16>(chunk);
    for (int64_t kv_head = chunk.kv_begin; kv_head < chunk.kv_end; ++kv_head) {
      float* acc = chunk.state.acc + kv_head * p.group * p.head_dim_v;
      float* end = acc + p.group * p.head_dim_v;
      if (!any_nan(acc, end)) continue;
      std::fill(acc, end, 0.f);
      Chunk<T> again = chunk;
      again.kv_begin = kv_head;
      again.kv_end = kv_head + 1;
      load_query_rows<T>(p, seq, query);
      attend_rows(again);
      load_query_blocks<T>(p, seq, query);
    }
  }
}
