// The cube core: S = Q K^T and O = P V, tile after tile, two tiles ahead with S.
//
//   GM --MTE2--> L1 --MTE1--> L0A, L0B --M--> L0C --FIX--> workspace
//
// K and V come through a ring of kSlots slots in L1, so that MTE2 never waits for the vector cores:
// while they turn S into P, it loads the next tiles' K and this tile's V.
#pragma once

#include "schedule.h"

#if defined(__DAV_C220_CUBE__)
namespace pa_hp::npu {

template <class T>
class Cube {
 public:
  __aicore__ Cube(const DecodePlan& plan, __gm__ T* query, __gm__ T* key_cache,
                  __gm__ T* value_cache, __gm__ int32_t* block_table, __gm__ uint8_t* workspace)
      : plan_(plan),
        query_(query),
        key_cache_(key_cache),
        value_cache_(value_cache),
        block_table_(block_table),
        workspace_(workspace + block_idx * plan.ws_bytes),
        pitch_(round_up(plan.rows, kFractal)),
        m_(round_up(plan.group, kFractal)) {}

  __aicore__ void run(Schedule& schedule) {
    set_nd_para(1);
    free_all();
    Tile tiles[kTiles];
    bool more = true;
    while (more || valued_ < scored_) {
      while (more && scored_ - valued_ < kTiles) {
        Tile& tile = tiles[scored_ % kTiles];
        more = schedule.next(tile);
        if (more) scores(tile);
      }
      if (valued_ < scored_) values(tiles[valued_ % kTiles]);
    }
    await_free();
  }

 private:
  // ---- Loads: GM to L1 -------------------------------------------------------------------------

  // K or V of the tokens from `begin` on, up to the end of their chunk, into the next slot: for
  // each kv head an NZ matrix of chunk_tokens rows. Returns that end.
  __aicore__ int32_t load(const Tile& tile, int32_t begin, bool key) {
    const int32_t slot = loaded_++ % kSlots;
    __cbuf__ T* l1 = slot_at(slot);
    const int32_t end = chunk_end(tile, begin, key);
    const __gm__ int32_t* pages = block_table_ + tile.seq * plan_.block_table_stride;
    const int64_t stride_block = key ? plan_.key_stride_block : plan_.value_stride_block;
    const int64_t stride_token = key ? plan_.key_stride_token : plan_.value_stride_token;
    const int64_t stride_head = key ? plan_.key_stride_head : plan_.value_stride_head;
    const int32_t dim = key ? plan_.head_dim : plan_.head_dim_v;
    wait_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kSlotEvent + slot));
    for (int32_t token = begin; token < end;) {
      int32_t page = token / plan_.block_size;
      const int32_t offset = token - page * plan_.block_size;
      const int32_t id = pages[page];
      int32_t stop = step_end(token, plan_.block_size, end, plan_.block_size);
      // Pages that lie behind each other come in one load.
      while (stop < end && stride_block == plan_.block_size * stride_token &&
             pages[page + 1] - int64_t{id} == (stop - token + offset) / plan_.block_size) {
        stop = step_end(stop, plan_.block_size, end, plan_.block_size);
        ++page;
      }
      __cbuf__ T* to = l1 + (token - begin) * kFractal;
      const int64_t last = int64_t{id} + page - token / plan_.block_size;
      if (id >= 0 && last < plan_.num_blocks) {
        __gm__ T* from = (key ? key_cache_ : value_cache_) + id * stride_block +
                         offset * stride_token + tile.head_group * plan_.tile_heads * stride_head;
        load_rows(to, from, stop - token, dim, stride_token, stride_head);
      } else if (key) {  // an id out of range: NaN scores make the row NaN
        fill_nan(to, stop - token);
      }
      token = stop;
    }
    set_flag(PIPE_MTE2, PIPE_MTE1, (event_t)(kSlotEvent + slot));
    return end;
  }

  __aicore__ void load_rows(__cbuf__ T* to, __gm__ T* from, int32_t rows, int32_t dim,
                            int64_t stride_token, int64_t stride_head) {
    const int32_t chunk = plan_.chunk_tokens;
    // Heads side by side are one wide matrix: their columns follow each other in NZ as well.
    const bool wide = stride_head == dim || plan_.tile_heads == 1;
    const int32_t columns = wide ? plan_.tile_heads * dim : dim;
    const int32_t matrices = wide ? 1 : plan_.tile_heads;
    const bool long_rows = stride_token > kMaxStride;
    const bool far_heads = !wide && stride_head > kMaxStride;
    for (int32_t row = 0; row < (long_rows ? rows : 1); ++row) {
      for (int32_t head = 0; head < (far_heads ? matrices : 1); ++head) {
        copy_gm_to_cbuf_multi_nd2nz_b16(
            to + row * kFractal + head * chunk * dim,
            from + row * stride_token + head * stride_head, 0, far_heads ? 1 : matrices,
            long_rows ? 1 : rows, columns, wide || far_heads ? 0 : stride_head,
            long_rows ? columns : stride_token, chunk, 1, wide || far_heads ? 0 : chunk * dim);
      }
    }
  }

  __aicore__ void fill_nan(__cbuf__ T* to, int32_t rows) {
    const int64_t columns = plan_.tile_heads * plan_.head_dim / kFractal;
    const int64_t gap = plan_.chunk_tokens - rows;
    create_cbuf_matrix((__cbuf__ uint32_t*)to, columns | int64_t{rows} << 16 | gap << 32, kNanPair);
  }

  __aicore__ void load_query(const Tile& tile) {
    const int32_t buffer = queries_++ % 2;
    __gm__ T* from = query_ + tile.seq * plan_.query_stride_batch +
                     static_cast<int64_t>(tile.head_group) * plan_.rows * plan_.query_stride_head;
    wait_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kQueryEvent + buffer));
    const bool far = plan_.query_stride_head > kMaxStride;
    for (int32_t row = 0; row < (far ? plan_.rows : 1); ++row) {
      copy_gm_to_cbuf_multi_nd2nz_b16(query_at(buffer) + row * kFractal,
                                      from + row * plan_.query_stride_head, 0, 1,
                                      far ? 1 : plan_.rows, plan_.head_dim, 0,
                                      far ? plan_.head_dim : plan_.query_stride_head, pitch_, 1, 0);
    }
    set_flag(PIPE_MTE2, PIPE_MTE1, (event_t)(kQueryEvent + buffer));
    wait_flag(PIPE_MTE2, PIPE_MTE1, (event_t)(kQueryEvent + buffer));
  }

  // P as the vector cores leave it: for every 16 tokens a column of 16 x rows.
  __aicore__ void load_weights(int32_t buffer, int32_t place, int32_t tokens) {
    wait_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kWeightsEvent + buffer));
    __gm__ T* from = (__gm__ T*)(workspace_ + plan_.ws_weights) + place * kMaxScores;
    copy_gm_to_cbuf(weights_at(buffer), from, 0, ceil_div(tokens, kFractal), plan_.rows, 0,
                    pitch_ - plan_.rows, PAD_NONE);
    set_flag(PIPE_MTE2, PIPE_MTE1, (event_t)(kWeightsEvent + buffer));
    wait_flag(PIPE_MTE2, PIPE_MTE1, (event_t)(kWeightsEvent + buffer));
  }

  // ---- Products --------------------------------------------------------------------------------

  __aicore__ void scores(const Tile& tile) {
    if (tile.first) load_query(tile);
    const int32_t query = (queries_ - 1) % 2;
    __gm__ float* to = (__gm__ float*)workspace_ + scored_++ % kTiles * kMaxScores;
    load(tile, tile.begin, true);
    for (int32_t begin = tile.begin; begin < tile.end;) {
      const int32_t end = chunk_end(tile, begin, true);
      if (end < tile.end) load(tile, end, true);
      __cbuf__ T* slot = take_slot();
      for (int32_t head = 0; head < plan_.tile_heads; ++head) {
        for (int32_t at = begin; at < end; at += plan_.key_step) {
          score_step(query, slot + head * plan_.chunk_tokens * plan_.head_dim, head, at - begin,
                     min(plan_.key_step, end - at),
                     to + head * plan_.group * plan_.tile_tokens + at - tile.begin);
        }
      }
      release_slot();
      begin = end;
    }
    if (tile.last) set_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kQueryEvent + query));
    publish(kScoresReady);
  }

  __aicore__ void score_step(int32_t query, __cbuf__ T* keys, int32_t head, int32_t token,
                             int32_t tokens, __gm__ float* to) {
    const int32_t half = begin_step();
    const int32_t depth = plan_.head_dim / kFractal;
    load_rows_l0a(half, query_at(query) + head * plan_.group * kFractal, depth);
    // K in NZ is K^T as L0B wants it. Of a part of the chunk's tokens, column by column, or row by
    // row where those are fewer.
    const int32_t blocks = ceil_div(tokens, kFractal);
    const int32_t chunk = plan_.chunk_tokens / kFractal;
    if (blocks < depth && blocks < chunk) {
      for (int32_t block = 0; block < blocks; ++block) {
        load_cbuf_to_cb(l0b(half) + block * kFractal * kFractal,
                        keys + (token + block * kFractal) * kFractal, 0, depth, chunk, blocks - 1,
                        0, false, inc);
      }
    } else {
      const bool all = blocks == chunk;
      for (int32_t column = 0; column < (all ? 1 : depth); ++column) {
        load_cbuf_to_cb(l0b(half) + column * blocks * kFractal * kFractal,
                        keys + token * kFractal + column * chunk * kFractal * kFractal, 0,
                        all ? depth * blocks : blocks, 1, 0, 0, false, inc);
      }
    }
    ready_step(half);
    const event_t event = (event_t)(kScoreEvent + half);
    __cc__ float* l0c = (__cc__ float*)(uintptr_t)(half * plan_.l0c_score_bytes);
    wait_flag(PIPE_FIX, PIPE_M, event);
    mad(l0c, l0a(half), l0b(half), m_, plan_.head_dim, tokens, 0, false, false, true);
    end_step(half);
    set_flag(PIPE_M, PIPE_FIX, event);
    wait_flag(PIPE_M, PIPE_FIX, event);
    copy_matrix_cc_to_gm(to, l0c, 0, tokens, plan_.group, plan_.tile_tokens, m_, 0, NoQuant, 0,
                         false, true);
    set_flag(PIPE_FIX, PIPE_M, event);
  }

  __aicore__ void values(const Tile& tile) {
    const int32_t number = valued_++;
    const int32_t buffer = number % 2;
    int32_t loaded = load(tile, tile.begin, false);
    // Of the only tile there is nothing else to load until P is there.
    if (scored_ == 1 && loaded < tile.end) loaded = load(tile, loaded, false);
    wait_flag_dev(kWeightsReady);
    load_weights(buffer, number % kTiles, tile.end - tile.begin);
    wait_flag(PIPE_FIX, PIPE_M, (event_t)kOutputEvent);
    for (int32_t begin = tile.begin; begin < tile.end;) {
      const int32_t end = chunk_end(tile, begin, false);
      if (loaded < tile.end) loaded = load(tile, loaded, false);
      __cbuf__ T* slot = take_slot();
      for (int32_t head = 0; head < plan_.tile_heads; ++head) {
        for (int32_t at = begin; at < end; at += plan_.value_step) {
          value_step(buffer, slot + head * plan_.chunk_tokens * plan_.head_dim_v, head, at - begin,
                     min(plan_.value_step, end - at), at - tile.begin);
        }
      }
      release_slot();
      begin = end;
    }
    set_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kWeightsEvent + buffer));
    set_flag(PIPE_M, PIPE_FIX, (event_t)kOutputEvent);
    wait_flag(PIPE_M, PIPE_FIX, (event_t)kOutputEvent);
    __gm__ float* to = (__gm__ float*)(workspace_ + plan_.ws_output) +
                       number % kTiles * kMaxRows * plan_.head_dim_v;
    // The heads' products lie side by side in L0C: one matrix of all their columns.
    const int32_t columns = plan_.tile_heads * plan_.head_dim_v;
    copy_matrix_cc_to_gm(to, output_at(0), 0, columns, plan_.group, columns, m_, 0, NoQuant, 0,
                         false, true);
    set_flag(PIPE_FIX, PIPE_M, (event_t)kOutputEvent);
    publish(kOutputReady);
  }

  // Adds the tokens [token, token + tokens) of a chunk, `column` in the tile, to O. The product's
  // depth is the number of tokens, not a multiple of 16: what lies behind them in L1 does not
  // count.
  __aicore__ void value_step(int32_t buffer, __cbuf__ T* values, int32_t head, int32_t token,
                             int32_t tokens, int32_t column) {
    const int32_t half = begin_step();
    const int32_t depth = ceil_div(tokens, kFractal);
    load_rows_l0a(half, weights_at(buffer) + head * plan_.group * kFractal + column * pitch_,
                  depth);
    const int32_t width = plan_.head_dim_v / kFractal;
    const int32_t chunk = plan_.chunk_tokens / kFractal;
    for (int32_t block = 0; block < depth; ++block) {
      load_cbuf_to_cb_transpose(l0b(half) + block * width * kFractal * kFractal,
                                values + (token + block * kFractal) * kFractal, 0, width, chunk, 0,
                                false, 0);
    }
    ready_step(half);
    mad(output_at(head), l0a(half), l0b(half), m_, tokens, plan_.head_dim_v, 0, false, false,
        column == 0);
    end_step(half);
    pipe_barrier(PIPE_M);  // sums of small products go through L0C one after the other
  }

  // Rows of 16 x rows columns in L1 (NZ) to L0A (zZ), m_ rows from `from` on. Rows of other heads,
  // or of nobody, come along; they give rows of the product that nobody reads.
  __aicore__ void load_rows_l0a(int32_t half, __cbuf__ T* from, int32_t depth) {
    for (int32_t row = 0; row < m_; row += kFractal) {
      load_cbuf_to_ca(l0a(half) + row * depth * kFractal, from + row * kFractal, 0, depth,
                      pitch_ / kFractal, 0, 0, false, inc);
    }
  }

  // ---- Order -----------------------------------------------------------------------------------

  __aicore__ void free_all() {
    for (int32_t i = 0; i < kSlots; ++i) {
      set_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kSlotEvent + i));
    }
    for (int32_t i = 0; i < 2; ++i) {
      set_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kWeightsEvent + i));
      set_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kQueryEvent + i));
      set_flag(PIPE_M, PIPE_MTE1, (event_t)(kL0Event + i));
      set_flag(PIPE_FIX, PIPE_M, (event_t)(kScoreEvent + i));
    }
    set_flag(PIPE_FIX, PIPE_M, (event_t)kOutputEvent);
  }
  // Takes every flag back: the next kernel finds them down.
  __aicore__ void await_free() {
    for (int32_t i = 0; i < kSlots; ++i) {
      wait_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kSlotEvent + i));
    }
    for (int32_t i = 0; i < 2; ++i) {
      wait_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kWeightsEvent + i));
      wait_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kQueryEvent + i));
      wait_flag(PIPE_M, PIPE_MTE1, (event_t)(kL0Event + i));
      wait_flag(PIPE_FIX, PIPE_M, (event_t)(kScoreEvent + i));
    }
    wait_flag(PIPE_FIX, PIPE_M, (event_t)kOutputEvent);
  }

  __aicore__ __cbuf__ T* take_slot() {
    const int32_t slot = taken_ % kSlots;
    wait_flag(PIPE_MTE2, PIPE_MTE1, (event_t)(kSlotEvent + slot));
    return slot_at(slot);
  }
  __aicore__ void release_slot() {
    set_flag(PIPE_MTE1, PIPE_MTE2, (event_t)(kSlotEvent + taken_++ % kSlots));
  }

  // One product: MTE1 fills a half of L0A and L0B, M uses it.
  __aicore__ int32_t begin_step() {
    const int32_t half = steps_++ % 2;
    wait_flag(PIPE_M, PIPE_MTE1, (event_t)(kL0Event + half));
    return half;
  }
  __aicore__ void ready_step(int32_t half) {
    set_flag(PIPE_MTE1, PIPE_M, (event_t)(kL0Event + half));
    wait_flag(PIPE_MTE1, PIPE_M, (event_t)(kL0Event + half));
  }
  __aicore__ void end_step(int32_t half) {
    set_flag(PIPE_M, PIPE_MTE1, (event_t)(kL0Event + half));
  }

  // Stores first, then the signal: a vector core must not see it before them.
  __aicore__ void publish(CrossFlag flag) {
    pipe_barrier(PIPE_FIX);
    dsb(DSB_DDR);
    ffts_cross_core_sync(PIPE_FIX, cross_flag(kCluster, flag));
  }

  // ---- Places ----------------------------------------------------------------------------------

  // A tile's loads are all but equal. The share's last ones of V grow shorter: nothing hides the
  // last one's way through the rest of the pipeline.
  __aicore__ int32_t chunk_end(const Tile& tile, int32_t token, bool key) const {
    const int32_t chunk = tile.load_tokens;
    const int32_t end = token + even_part(tile.end - token, chunk);
    if (key || tile.behind >= kTaper) return end;
    const int32_t rest = tile.piece_end - token + static_cast<int32_t>(tile.behind);
    for (int32_t leave = kTaper; leave >= kLastLoad; leave -= kTaper - kLastLoad) {
      const int32_t before = rest - leave;
      if (before > 0 && token + round_up(before, kFractal) < end) {
        return token + round_up(before, kFractal);
      }
    }
    return end;
  }
  __aicore__ __cbuf__ T* slot_at(int32_t slot) const {
    return (__cbuf__ T*)(uintptr_t)(slot * plan_.l1_slot_bytes);
  }
  __aicore__ __cbuf__ T* query_at(int32_t buffer) const {
    return (__cbuf__ T*)(uintptr_t)(plan_.l1_query + buffer * plan_.l1_query_bytes);
  }
  __aicore__ __cbuf__ T* weights_at(int32_t buffer) const {
    return (__cbuf__ T*)(uintptr_t)(plan_.l1_weights + buffer * plan_.l1_weights_bytes);
  }
  __aicore__ __ca__ T* l0a(int32_t half) const { return (__ca__ T*)(uintptr_t)(half * kL0Half); }
  __aicore__ __cb__ T* l0b(int32_t half) const { return (__cb__ T*)(uintptr_t)(half * kL0Half); }
  __aicore__ __cc__ float* output_at(int32_t head) const {
    return (__cc__ float*)(uintptr_t)plan_.l0c_output + head * m_ * plan_.head_dim_v;
  }

  const DecodePlan& plan_;
  __gm__ T* query_;
  __gm__ T* key_cache_;
  __gm__ T* value_cache_;
  __gm__ int32_t* block_table_;
  __gm__ uint8_t* workspace_;
  const int32_t pitch_;  // rows of a column of Q and P in L1
  const int32_t m_;      // rows of a product
  int32_t loaded_ = 0;   // so far, of each ring
  int32_t taken_ = 0;
  int32_t queries_ = 0;
  int32_t scored_ = 0;
  int32_t valued_ = 0;
  int32_t steps_ = 0;
};

}  // namespace pa_hp::npu
#endif
