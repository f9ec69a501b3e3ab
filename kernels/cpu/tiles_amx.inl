// Blocks of 16 and 8 query heads in bfloat16 by AMX, whose tile registers have up to 16 rows of 64
// bytes: included by kernel.inl behind tiles_512_heads.inl. A product adds 32 terms to each of up
// to 16 by 16 sums.
//
// Keys and values of some tokens are put into tiles in the cache in the order of memory, all kv
// heads of one token of each stream in turn; then all kv heads are computed from there. That takes
// most of the time, however few heads there are: groups of 4 are as fast without.

constexpr int64_t kTileRow = 64;  // bytes of a row of a tile register, kLanes pairs of bfloat16

// Registers: 0 for keys or values, then for either size of blocks one for the query or the weights
// and one for the sums.
template <int kRows>
constexpr int kFactor = kRows == 8 ? 1 : 3;
template <int kRows>
constexpr int kSums = kFactor<kRows> + 1;

// As LDTILECFG reads it (Intel 64 and IA-32 Architectures Software Developer's Manual).
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

// Scores: [token][pair] * [pair][head] = [token][head].
constexpr TileShapes kScoreShapes{1, 0, {}, {64, 32, 32, 64, 64}, {16, 16, 16, 16, 16}};
// Values: [head][pair of tokens] * [pair][column] = [head][column].
constexpr TileShapes kValueShapes{1, 0, {}, {64, 64, 64, 64, 64}, {16, 8, 8, 16, 16}};

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

template <int kRows>
struct TileScores {  // of kKeyTile tokens from `begin` on
  static void run(const Chunk<BFloat>& chunk, int64_t kv_head, int64_t head, int64_t begin,
                  int64_t end) {
    if constexpr (kRows < 8) {
      ScoreStep<kRows>::run(chunk, kv_head, head, begin, end);
    } else {
      constexpr int kQuery = kFactor<kRows>, kScores = kSums<kRows>;
      const int64_t head_dim = chunk.p.head_dim;
      const float* keys = chunk.tiles + (kv_head - chunk.kv_begin) * kKeyTile * head_dim / 2;
      const float* query = chunk.scaled + head * head_dim;
      float* scores = chunk.weights + head * kRoom + begin * kRows;
      clear_tile<kScores>();
      for (int64_t i = 0; i < head_dim; i += kLine) {
        load_tile<0>(keys, kTileRow);
        load_tile<kQuery>(query, kRows * sizeof(float));
        add_tiles<kScores, 0, kQuery>();
        keys += kKeyTile * kLanes;
        query += kLanes * kRows;
      }
      store_tile<kScores>(scores, kRows * sizeof(float));
      const float factor = chunk.p.scale * kLog2E;
      for (int i = 0; i < kKeyTile * kRows; i += kLanes)
        store(scores + i, load(scores + i) * factor);
    }
  }
};

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

// Weights of 32 tokens in bfloat16, [head][token], from [token][head].
template <int kRows>
[[gnu::always_inline]] inline void put_weights(const float* weights, float* tile) {
  Vec rows[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    rows[i] =
        narrow_weights<kRows>(load(weights + 2 * i * kLanes), load(weights + (2 * i + 1) * kLanes));
  }
  swap_rows<1>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) store(tile + i * kLanes, rows[i]);
}

template <int kRows>
struct TileValues {  // of kTile tokens from `begin` on, of which there are some up to `end`
  static void run(const Chunk<BFloat>& chunk, int64_t kv_head, int64_t head, int64_t begin,
                  int64_t end) {
    if constexpr (kRows < 8) {
      Values<kValueTokens>::Step<kRows>::run(chunk, kv_head, head, begin, end);
    } else {
      constexpr int kWeights = kFactor<kRows>, kOut = kSums<kRows>;
      const int64_t head_dim_v = chunk.p.head_dim_v;
      const float* values = chunk.tiles + (kv_head - chunk.kv_begin) * kTile * head_dim_v / 2;
      float* weights = chunk.weights + head * kRoom + begin * kRows;
      float* acc = chunk.state.acc + head * head_dim_v;
      std::fill(weights + (end - begin) * kRows, weights + kTile * kRows, 0.f);
      alignas(kTileRow) float narrow[kRows * kLanes];
      put_weights<kRows>(weights, narrow);
      load_tile<kWeights>(narrow, kTileRow);
      for (int64_t c = 0; c < head_dim_v; c += kLanes) {  // even elements of a line, then odd ones
        const int64_t stride = head_dim_v * sizeof(float);
        load_tile<kOut>(acc + c, stride);
        load_tile<0>(values + c / kLine * kTile * kLanes + c % kLine, 2 * kTileRow);
        add_tiles<kOut, kWeights, 0>();
        store_tile<kOut>(acc + c, stride);
      }
    }
  }
};

// Keys of kKeyTile tokens from `begin` on, [kv head][line][token][kLine].
[[gnu::noinline]] void put_keys(const Chunk<BFloat>& chunk, int64_t begin) {
  const DecodeParams& p = chunk.p;
  for (int64_t row = 0; row < kKeyTile; row += kStreams) {
    const BFloat* const* keys = chunk.keys + begin + row;
    float* to = chunk.tiles + row * kLanes;
    for (int64_t kv_head = chunk.kv_begin; kv_head < chunk.kv_end; ++kv_head) {
      const int64_t offset = kv_head * p.key_stride_head;
      const BFloat* const from[kStreams] = {keys[0] + offset, keys[1] + offset, keys[2] + offset,
                                            keys[3] + offset};
      for (int64_t i = 0; i < p.head_dim; i += kLine, to += kKeyTile * kLanes) {
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s) {
          store(to + s * kLanes, (Vec)load_words(from[s] + i));
          fetch_ahead(from[s] + i, kWideAheadBytes);
        }
      }
    }
  }
}

// Values of kTile tokens from `begin` on, [kv head][line][pair of tokens][even and odd elements],
// zeros in place of tokens that there are not: infinity times 0 would be NaN.
template <bool kWhole>
[[gnu::noinline]] void put_values(const Chunk<BFloat>& chunk, int64_t begin) {
  const DecodeParams& p = chunk.p;
  for (int64_t row = 0; row < kTile; row += kStreams) {
    const BFloat* const* values = chunk.values + begin + row;
    const int64_t left = chunk.tokens - begin - row;
    float* to = chunk.tiles + row * kLanes;
    for (int64_t kv_head = chunk.kv_begin; kv_head < chunk.kv_end; ++kv_head) {
      const int64_t offset = kv_head * p.value_stride_head;
      const BFloat* const from[kStreams] = {values[0] + offset, values[1] + offset,
                                            values[2] + offset, values[3] + offset};
      for (int64_t i = 0; i < p.head_dim_v; i += kLine, to += kTile * kLanes) {
#pragma GCC unroll 2
        for (int s = 0; s < kStreams; s += 2) {
          const BitVec a = kWhole || s < left ? load_words(from[s] + i) : BitVec{};
          const BitVec b = kWhole || s + 1 < left ? load_words(from[s + 1] + i) : BitVec{};
          store(to + s * kLanes, (Vec)((a & 0xffffu) | b << 16));
          store(to + (s + 1) * kLanes, (Vec)(a >> 16 | (b & 0xffff0000u)));
          if (kWhole) {
            fetch_ahead(from[s] + i, kWideAheadBytes);
            fetch_ahead(from[s + 1] + i, kWideAheadBytes);
          }
        }
      }
    }
  }
}

// A whole chunk; sums of values are 0.
void attend_by_tiles(const Chunk<BFloat>& chunk) {
  TileRegisters registers;
  registers.set(kScoreShapes);
  for (int64_t t = 0; t < chunk.tokens; t += kKeyTile) {
    put_keys(chunk, t);
    each_head<TileScores>(chunk, t, std::min(t + kKeyTile, chunk.tokens));
  }
  each_head<SoftmaxStep>(chunk, 0, chunk.tokens);
  registers.set(kValueShapes);
  for (int64_t t = 0; t < chunk.tokens; t += kTile) {
    const auto put = t + kTile <= chunk.tokens ? put_values<true> : put_values<false>;
    put(chunk, t);
    each_head<TileValues>(chunk, t, std::min(t + kTile, chunk.tokens));
  }
}
