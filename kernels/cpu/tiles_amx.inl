// Scores and values of a chunk for blocks of 16 query heads in bfloat16 by AMX, whose tile
// registers are 16 rows of 64 bytes: included by kernel.inl behind tiles_512_heads.inl, whose tiles
// in memory lie as AMX wants them. A product is 16 by 16 sums of 32 products, in 16 cycles.

#if PA_HP_LOWERED  // by a test: the operations spelled out
inline thread_local uint32_t amx_tiles[8][16][16];

template <int kTile>
void load_tile(const void* from, int64_t stride) {
  for (int i = 0; i < 16; ++i) {
    std::memcpy(amx_tiles[kTile][i], static_cast<const char*>(from) + i * stride, 64);
  }
}

template <int kTile>
void store_tile(void* to, int64_t stride) {
  for (int i = 0; i < 16; ++i) {
    std::memcpy(static_cast<char*>(to) + i * stride, amx_tiles[kTile][i], 64);
  }
}

template <int kTile>
void clear_tile() {
  std::memset(amx_tiles[kTile], 0, sizeof amx_tiles[kTile]);
}

template <int kSum, int kA, int kB>
void add_tiles() {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      Vec sums = {};
      for (int k = 0; k < 16; ++k) {
        add_dot(sums, BitVec{} + amx_tiles[kA][i][k], BitVec{} + amx_tiles[kB][k][j]);
      }
      float sum;
      std::memcpy(&sum, &amx_tiles[kSum][i][j], sizeof sum);
      sum += sums[0];
      std::memcpy(&amx_tiles[kSum][i][j], &sum, sizeof sum);
    }
  }
}

struct TileRegisters {
  explicit TileRegisters(bool) {}
};
#else
// As assembly: compilers' own intrinsics do not say that they read memory.
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

// kSum[i][j] += the sum of kA[i][k] * kB[k][j] over 16 pairs k.
template <int kSum, int kA, int kB>
[[gnu::always_inline]] inline void add_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
}

// All eight registers as whole tiles while it lives, if they are wanted. Callers may have shapes of
// their own and take it that these stay: they come back.
class TileRegisters {
 public:
  explicit TileRegisters(bool wanted) : wanted_(wanted) {
    if (!wanted) return;
    Shapes ours{};
    ours.palette = 1;
    std::fill_n(ours.row_bytes, 8, uint16_t{64});
    std::fill_n(ours.rows, 8, uint8_t{16});
    asm volatile("sttilecfg %0" : "=m"(before_));
    asm volatile("ldtilecfg %0" ::"m"(ours));
  }
  ~TileRegisters() {
    if (!wanted_) return;
    if (before_.palette != 0) {
      asm volatile("ldtilecfg %0" ::"m"(before_));
    } else {
      asm volatile("tilerelease");
    }
  }
  TileRegisters(const TileRegisters&) = delete;

 private:
  struct alignas(64) Shapes {  // of 16 registers, eight of which there are
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static_assert(sizeof(Shapes) == 64);
  const bool wanted_;
  Shapes before_;
};
#endif

constexpr int64_t kTileRow = 64;   // bytes of a row of a tile register
constexpr int64_t kTileDots = 16;  // pairs of a row

// Scores of 32 tokens at a time: a tile of the query is loaded for two of keys.
[[gnu::noinline]] void score_block(const Chunk<BFloat>& chunk, int64_t head, int64_t offset) {
  constexpr int kTokens = 2 * kKeyTile;
  const DecodeParams& p = chunk.p;
  const int64_t vectors = p.head_dim / kLine;
  const float factor = p.scale * kLog2E;
  const float* query = chunk.scaled + head * p.head_dim;
  float* scores = chunk.weights + head * kRoom;
  float* second = chunk.tiles + vectors * kKeyTile * kLanes;
  for (int64_t t = 0; t < chunk.tokens; t += kTokens, scores += kTokens * kBlockHeads) {
    const BFloat* const* keys = chunk.keys + t;
    for (int64_t row = 0; row < kKeyTile / kStreams; ++row) {
      for (int64_t v = 0; v < vectors; ++v) put_keys(keys, offset, row, v, chunk.tiles);
    }
    for (int64_t row = 0; row < kKeyTile / kStreams; ++row) {
      for (int64_t v = 0; v < vectors; ++v) put_keys(keys + kKeyTile, offset, row, v, second);
    }
    clear_tile<0>();
    clear_tile<1>();
    for (int64_t v = 0; v < vectors; ++v) {
      load_tile<4>(query + v * kTileDots * kBlockHeads, kTileRow);
      load_tile<2>(chunk.tiles + v * kKeyTile * kLanes, kTileRow);
      load_tile<3>(second + v * kKeyTile * kLanes, kTileRow);
      add_tiles<0, 2, 4>();
      add_tiles<1, 3, 4>();
    }
    store_tile<0>(scores, kTileRow);
    store_tile<1>(scores + kKeyTile * kBlockHeads, kTileRow);
    for (int i = 0; i < kTokens * kBlockHeads; i += kLanes) {
      store(scores + i, load(scores + i) * factor);
    }
  }
}

// Rows become columns where the index has the bit.
template <int kBit, int... I>
[[gnu::always_inline]] inline void swap_lanes(Vec& a, Vec& b, std::integer_sequence<int, I...>) {
  const Vec low = PA_HP_SHUFFLE(a, b, (I & kBit ? kLanes + (I ^ kBit) : I)...);
  b = PA_HP_SHUFFLE(a, b, (I & kBit ? kLanes + I : I ^ kBit)...);
  a = low;
}

template <int kBit>
[[gnu::always_inline]] inline void swap_lanes(Vec (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kBit) == 0) {
      swap_lanes<kBit>(rows[i], rows[i | kBit], std::make_integer_sequence<int, kLanes>{});
    }
  }
}

// Weights of 32 tokens and 16 heads as bfloat16 pairs of tokens, [head][pair].
[[gnu::always_inline]] inline void put_weights(const float* weights, float* tile) {
  Vec rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const float* even = weights + 2 * i * kBlockHeads;
    rows[i] = weight_pairs(load(even), load(even + kBlockHeads));
  }
  swap_lanes<1>(rows);
  swap_lanes<2>(rows);
  swap_lanes<4>(rows);
  swap_lanes<8>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(tile + i * kLanes, rows[i]);
}

// Values of 64 tokens at a time: sums go through memory half as often as with 32.
[[gnu::noinline]] void add_values_of_block(const Chunk<BFloat>& chunk, int64_t head,
                                           int64_t offset) {
  constexpr int kTokens = 2 * kTile;
  const int64_t head_dim_v = chunk.p.head_dim_v, lines = head_dim_v / kLine;
  float* weights = chunk.weights + head * kRoom;
  float* acc = chunk.state.acc + head * head_dim_v;
  BFloat* tile = reinterpret_cast<BFloat*>(chunk.tiles);
  BFloat* second = tile + kTile * head_dim_v;
  const int64_t sum_stride = head_dim_v * sizeof(float), pair_stride = 2 * kTileRow;
  alignas(64) float weight_tiles[2][kBlockHeads * kLanes];
  for (int64_t t = chunk.tokens; t % kTokens != 0; ++t) store(weights + t * kBlockHeads, Vec{});
  for (int64_t t = 0; t < chunk.tokens; t += kTokens, weights += kTokens * kBlockHeads) {
    const BFloat* const* values = chunk.values + t;
    const int64_t left = chunk.tokens - t;
    for (int64_t row = 0; row < kTile / kStreams; ++row) {
      for (int64_t line = 0; line < lines; ++line) {
        put_values(values, left, offset, row, line, tile);
      }
    }
    for (int64_t row = 0; row < kTile / kStreams; ++row) {
      for (int64_t line = 0; line < lines; ++line) {
        put_values(values + kTile, left - kTile, offset, row, line, second);
      }
    }
    put_weights(weights, weight_tiles[0]);
    put_weights(weights + kTile * kBlockHeads, weight_tiles[1]);
    load_tile<0>(weight_tiles[0], kTileRow);
    load_tile<1>(weight_tiles[1], kTileRow);
    for (int64_t line = 0; line < lines; ++line) {
      float* sums = acc + line * kLine;
      const BFloat* even = tile + line * kTile * kLine;
      const BFloat* more = second + line * kTile * kLine;
      load_tile<2>(sums, sum_stride);
      load_tile<3>(sums + kLanes, sum_stride);
      load_tile<4>(even, pair_stride);
      load_tile<5>(even + kLine, pair_stride);
      add_tiles<2, 0, 4>();
      add_tiles<3, 0, 5>();
      load_tile<6>(more, pair_stride);
      load_tile<7>(more + kLine, pair_stride);
      add_tiles<2, 1, 6>();
      add_tiles<3, 1, 7>();
      store_tile<2>(sums, sum_stride);
      store_tile<3>(sums + kLanes, sum_stride);
    }
  }
}
