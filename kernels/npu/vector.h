// A vector core: the online softmax of its half of a tile's rows, and their output.
//
//   S --MTE2--> UB --V--> P --MTE3--> workspace           two tiles ahead of
//   O --MTE2--> UB --V--> the piece's sum, and at its end --MTE3--> out, or a partial result
#pragma once

#include "merge.h"

#if defined(__DAV_C220_VEC__)
namespace pa_hp::npu {

template <class T>
class Vector {
 public:
  __aicore__ Vector(const DecodePlan& plan, const Result<T>& result, __gm__ uint8_t* workspace)
      : plan_(plan),
        result_(result),
        all_workspace_(workspace),
        workspace_(workspace + block_idx * plan.ws_bytes) {
    const int32_t half = ceil_div(plan.rows, 2);
    row_ = static_cast<int32_t>(get_subblockid()) * half;
    rows_ = row_ < plan.rows ? min(half, plan.rows - row_) : 0;
  }

  __aicore__ void run(Schedule& schedule) {
    together_ = schedule.merge_together();
    vector_dup(stat(kOnes), 1.0f, 1, 1, 1, 8, 0);
    Tile tiles[kTiles];
    bool more = true;
    while (more || accumulated_ < weighed_) {
      while (more && weighed_ - accumulated_ < kTiles) {
        Tile& tile = tiles[weighed_ % kTiles];
        more = schedule.next(tile);
        const bool inside = more && tile.piece_begin > 0;
        if (weighed_ == 0 && !inside && !together_) publish_partial();  // there is none to come
        if (more) weigh(tile);
      }
      if (accumulated_ == weighed_) break;
      const Tile& tile = tiles[accumulated_ % kTiles];
      accumulate(tile);
      if (tile.last) finish(tile);
    }
    if (together_) publish_partial();
    if (!merged_) wait_flag_dev(kPartialsReady);
    for (int32_t i = 0; i < parted_; ++i) merge_share(parts_[i]);
  }

 private:
  // ---- S to P ----------------------------------------------------------------------------------

  // P = exp(scale S - m) with the largest score m so far; what O and the sum decay by when m grows.
  __aicore__ void weigh(const Tile& tile) {
    const int32_t buffer = weighed_++ % kTiles;
    pieces_ += tile.first;
    wait_flag_dev(kScoresReady);
    if (rows_ > 0) weigh_rows(tile, buffer);
    publish(cross_flag(kCluster, kWeightsReady));
  }

  __aicore__ void weigh_rows(const Tile& tile, int32_t buffer) {
    const int32_t tokens = tile.end - tile.begin;
    const int32_t repeats = ceil_div(tokens, kLanes);  // of a row
    const int32_t pitch = repeats * kBlockLanes;       // of a row, in blocks
    __ubuf__ float* scores = ub<float>(plan_.ub_scores);
    load_scores(scores, buffer, tokens, pitch);
    vmuls(scores, scores, plan_.scale, rows_ * repeats, 1, 1, 8, 8);
    pipe_barrier(PIPE_V);
    if (tokens % kLanes != 0) {  // behind the length
      set_vector_mask(0, ~uint64_t{0} << tokens % kLanes);
      vector_dup(scores + (repeats - 1) * kLanes, -__builtin_inff(), rows_, 1, 1, pitch, 0);
      all_lanes();
      pipe_barrier(PIPE_V);
    }
    largest(scores, tile.first, repeats, pitch, buffer);
    __ubuf__ float* blocks = stat(kMaxBlocks);
    vbrcb((__ubuf__ uint32_t*)blocks, (__ubuf__ uint32_t*)stat(kMax + pieces_ % kTiles), 1, 8,
          ceil_div(rows_, 8));
    pipe_barrier(PIPE_V);
    for (int32_t i = 0; i < repeats; ++i) {
      vsub(scores + i * kLanes, scores + i * kLanes, blocks, rows_, 1, 1, 0, pitch, pitch, 1);
    }
    pipe_barrier(PIPE_V);
    vexp(scores, scores, rows_ * repeats, 1, 1, 8, 8);
    pipe_barrier(PIPE_V);
    store_weights(scores, buffer, tokens, repeats, pitch);
    add_up(scores, tile.first, repeats, pitch);
    set_flag(PIPE_V, PIPE_MTE2, (event_t)kScoresIn);
  }

  __aicore__ void load_scores(__ubuf__ float* scores, int32_t buffer, int32_t tokens,
                              int32_t pitch) {
    __gm__ float* from = (__gm__ float*)workspace_ + buffer * kMaxScores + row_ * plan_.tile_tokens;
    const int32_t blocks = ceil_div(tokens, kBlockLanes);
    wait_flag(PIPE_V, PIPE_MTE2, (event_t)kScoresIn);
    copy_gm_to_ubuf(scores, from, 0, rows_, blocks, plan_.tile_tokens / kBlockLanes - blocks,
                    pitch - blocks);
    set_flag(PIPE_MTE2, PIPE_V, (event_t)kScoresIn);
    wait_flag(PIPE_MTE2, PIPE_V, (event_t)kScoresIn);
  }

  // The rows' largest scores so far, and the decay exp(old - new).
  __aicore__ void largest(__ubuf__ float* scores, bool first, int32_t repeats, int32_t pitch,
                          int32_t buffer) {
    __ubuf__ float* fold = ub<float>(plan_.ub_fold);
    __ubuf__ float* max = stat(kMax + pieces_ % kTiles);
    __ubuf__ float* tile_max = first ? max : stat(kTileMax);
    for (int32_t i = 1; i < repeats; ++i) {
      vmax(fold, i == 1 ? scores : fold, scores + i * kLanes, rows_, 1, 1, 1, 8, i == 1 ? pitch : 8,
           pitch);
      pipe_barrier(PIPE_V);
    }
    vcmax(tile_max, repeats == 1 ? scores : fold, rows_, 1, 1, 8, ONLY_VALUE);
    pipe_barrier(PIPE_V);
    // Of scores that are all -inf the maximum stays finite, so that exp(score - max) is 0 and not
    // NaN.
    vmaxs(tile_max, tile_max, -3.4028234e38f, 1, 1, 1, 8, 8);
    pipe_barrier(PIPE_V);
    if (first) return;
    __ubuf__ float* decay = stat(kDecay);
    vmax(tile_max, tile_max, max, 1, 1, 1, 1, 8, 8, 8);
    pipe_barrier(PIPE_V);
    vsub(decay, max, tile_max, 1, 1, 1, 1, 8, 8, 8);
    pipe_barrier(PIPE_V);
    vexp(decay, decay, 1, 1, 1, 8, 8);
    vadds(max, tile_max, 0.0f, 1, 1, 1, 8, 8);
    pipe_barrier(PIPE_V);
    vbrcb((__ubuf__ uint32_t*)stat(kDecayBlocks + 4 * buffer), (__ubuf__ uint32_t*)decay, 1, 8,
          ceil_div(rows_, 8));
  }

  // P goes out in columns of 16 tokens x rows, which the cube core needs no transposition for.
  __aicore__ void store_weights(__ubuf__ float* scores, int32_t buffer, int32_t tokens,
                                int32_t repeats, int32_t pitch) {
    __ubuf__ T* weights = ub<T>(plan_.ub_weights);
    wait_flag(PIPE_MTE3, PIPE_V, (event_t)kWeightsOut);
    for (int32_t i = 0; i < repeats; ++i) {
      narrow(weights + i * kLanes * rows_, scores + i * kLanes, rows_, rows_, 1, pitch);
    }
    set_flag(PIPE_V, PIPE_MTE3, (event_t)kWeightsOut);
    wait_flag(PIPE_V, PIPE_MTE3, (event_t)kWeightsOut);
    __gm__ T* to =
        (__gm__ T*)(workspace_ + plan_.ws_weights) + buffer * kMaxScores + row_ * kFractal;
    copy_ubuf_to_gm(to, weights, 0, ceil_div(tokens, kFractal), rows_, 0, plan_.rows - rows_);
    set_flag(PIPE_MTE3, PIPE_V, (event_t)kWeightsOut);
  }

  // The rows' sums of weights, in float32 and before P is rounded.
  __aicore__ void add_up(__ubuf__ float* scores, bool first, int32_t repeats, int32_t pitch) {
    __ubuf__ float* fold = ub<float>(plan_.ub_fold);
    __ubuf__ float* sum = stat(kSum + pieces_ % kTiles);
    __ubuf__ float* tile_sum = first ? sum : stat(kTileSum);
    for (int32_t i = 1; i < repeats; ++i) {
      vadd(fold, i == 1 ? scores : fold, scores + i * kLanes, rows_, 1, 1, 1, 8, i == 1 ? pitch : 8,
           pitch);
      pipe_barrier(PIPE_V);
    }
    // Eight sums a row, then one: 112 cycles on the model for 32 rows, where vcadd takes 270.
    __ubuf__ float* eighths = repeats == 1 ? fold : scores;
    vcgadd(eighths, repeats == 1 ? scores : fold, rows_, 1, 1, 8);
    pipe_barrier(PIPE_V);
    vcgadd(tile_sum, eighths, ceil_div(rows_, kBlockLanes), 1, 1, 8);
    pipe_barrier(PIPE_V);
    if (first) return;
    vmul(sum, sum, stat(kDecay), 1, 1, 1, 1, 8, 8, 8);
    pipe_barrier(PIPE_V);
    vadd(sum, sum, tile_sum, 1, 1, 1, 1, 8, 8, 8);
    pipe_barrier(PIPE_V);
  }

  // ---- O ---------------------------------------------------------------------------------------

  // Adds a tile's P V to the piece's, which decays first.
  __aicore__ void accumulate(const Tile& tile) {
    const int32_t buffer = accumulated_++ % kTiles;
    wait_flag_dev(kOutputReady);
    if (rows_ == 0) return;
    __ubuf__ float* output = ub<float>(plan_.ub_output);
    __ubuf__ float* acc = ub<float>(plan_.ub_acc);
    const int32_t dim = plan_.head_dim_v;
    wait_flag(PIPE_V, PIPE_MTE2, (event_t)kOutputIn);
    load_output(output, buffer);
    set_flag(PIPE_MTE2, PIPE_V, (event_t)kOutputIn);
    if (tile.first) wait_flag(PIPE_MTE3, PIPE_V, (event_t)kResultOut);
    const bool finished = tile.last && tile.whole();
    if (tile.last) add_tails(finished);
    wait_flag(PIPE_MTE2, PIPE_V, (event_t)kOutputIn);
    if (!tile.first) {
      const int32_t pitch = dim / kBlockLanes;
      for (int32_t at = 0; at < dim; at += kLanes) {  // acc = decay acc + output
        lanes(dim - at);
        vmadd(acc + at, stat(kDecayBlocks + 4 * buffer), output + at, rows_, 1, 0, 1, pitch, 1,
              pitch);
      }
      all_lanes();
    } else if (!finished) {
      copy_ubuf_to_ubuf(acc, output, 0, 1, rows_ * dim / kBlockLanes, 0, 0);
    }
    pipe_barrier(PIPE_V);
    if (finished) {
      normalise(tile.first ? output : acc);
      pipe_barrier(PIPE_V);
    }
    set_flag(PIPE_V, PIPE_MTE2, (event_t)kOutputIn);
  }

  // acc = sums / sum of weights
  __aicore__ void normalise(__ubuf__ float* sums) {
    const int32_t pitch = plan_.head_dim_v / kBlockLanes;
    for (int32_t at = 0; at < plan_.head_dim_v; at += kLanes) {
      lanes(plan_.head_dim_v - at);
      vmul(ub<float>(plan_.ub_acc) + at, sums + at, stat(kInverse), rows_, 1, 1, 0, pitch, pitch,
           1);
    }
    all_lanes();
  }

  // The core's rows of P V, which the cube core leaves as `group` rows of all the tile's heads.
  __aicore__ void load_output(__ubuf__ float* output, int32_t buffer) {
    const int32_t dim = plan_.head_dim_v;
    __gm__ float* from = (__gm__ float*)(workspace_ + plan_.ws_output) + buffer * kMaxRows * dim;
    const int32_t gap = (plan_.tile_heads - 1) * dim / kBlockLanes;
    for (int32_t row = row_, count = 0; row < row_ + rows_; row += count) {
      const int32_t head = row / plan_.group;
      const int32_t member = row - head * plan_.group;
      count = min(plan_.group - member, row_ + rows_ - row);
      copy_gm_to_ubuf(output + (row - row_) * dim, from + (member * plan_.tile_heads + head) * dim,
                      0, count, dim / kBlockLanes, gap, 0);
    }
  }

  // The end of a piece. A whole item goes to `out`. Of others the cluster that has the beginning
  // merges the parts, or all that have one do so together when they are done.
  __aicore__ void finish(const Tile& tile) {
    const bool begins = tile.piece_begin == 0;
    if (tile.whole()) {
      if (rows_ > 0) {
        result_.write(ub<float>(plan_.ub_acc), maxima(), maxima() + rows_ * kBlockLanes, rows_,
                      tile.seq, tile.head_group * plan_.rows + row_);
      }
    } else if (together_) {
      if (rows_ > 0) store_partial(begins ? kFirstPart : plan_.ws_partials);
      parts_[parted_++] = tile;
    } else if (begins) {
      wait_flag_dev(kPartialsReady);
      merged_ = true;
      if (rows_ > 0) merge(tile, 0, rows_, false);
    } else {
      if (rows_ > 0) store_partial(plan_.ws_partials);
      publish_partial();
    }
  }

  // The cluster's rows of an item that it has a part of.
  __aicore__ void merge_share(const Tile& tile) {
    const int32_t share = ceil_div(rows_, tile.last_cluster - tile.first_cluster + 1);
    const int32_t from = (static_cast<int32_t>(block_idx) - tile.first_cluster) * share;
    if (from >= rows_) return;
    wait_flag(PIPE_MTE3, PIPE_V, (event_t)kResultOut);
    merge(tile, from, min(share, rows_ - from), true);
  }

  __aicore__ void merge(const Tile& tile, int32_t from, int32_t count, bool stored) {
    Merge<T>(plan_, result_, all_workspace_, tile, row_, rows_, stored).run(from, count);
  }

  // To `place` in the cluster's workspace.
  __aicore__ void store_partial(int32_t place) {
    set_flag(PIPE_V, PIPE_MTE3, (event_t)kResultOut);
    wait_flag(PIPE_V, PIPE_MTE3, (event_t)kResultOut);
    const int32_t width = plan_.head_dim_v + kRowTail;
    __gm__ float* to = (__gm__ float*)(workspace_ + place) + row_ * width;
    copy_ubuf_to_gm(to, ub<float>(plan_.ub_acc), 0, 1, rows_ * width / kBlockLanes, 0, 0);
    set_flag(PIPE_MTE3, PIPE_V, (event_t)kResultOut);
  }

  // Once a launch, on every vector core.
  __aicore__ void publish_partial() { publish(cross_flag(kAllVectorCores, kPartialsReady)); }
  // Stores first, then the signal: another core must not see it before them.
  __aicore__ void publish(uint64_t flag) {
    pipe_barrier(PIPE_MTE3);
    dsb(DSB_DDR);
    ffts_cross_core_sync(PIPE_MTE3, flag);
  }

  // The piece's maxima and sums behind its rows, a block of each; of a whole item 1 / sum as well.
  __aicore__ void add_tails(bool whole) {
    const int32_t piece = ++finished_ % kTiles;
    const int32_t repeats = ceil_div(rows_, kBlockLanes);
    __ubuf__ float* sums = maxima() + rows_ * kBlockLanes;
    vbrcb((__ubuf__ uint32_t*)maxima(), (__ubuf__ uint32_t*)stat(kMax + piece), 1, 8, repeats);
    pipe_barrier(PIPE_V);  // eight blocks are written at a time, into the sums' place too
    vbrcb((__ubuf__ uint32_t*)sums, (__ubuf__ uint32_t*)stat(kSum + piece), 1, 8, repeats);
    if (!whole) return;
    pipe_barrier(PIPE_V);
    vdiv(stat(kInverse), stat(kOnes), sums, repeats, 1, 1, 1, 8, 0, 8);
  }

  __aicore__ __ubuf__ float* maxima() const {
    return ub<float>(plan_.ub_acc) + rows_ * plan_.head_dim_v;
  }
  __aicore__ __ubuf__ float* stat(int32_t number) const {
    return ub<float>(plan_.ub_stats) + number * kStatLanes;
  }

  const DecodePlan& plan_;
  const Result<T>& result_;
  __gm__ uint8_t* all_workspace_;
  __gm__ uint8_t* workspace_;  // the cluster's
  int32_t row_;                // the core's first row of a tile, and how many
  int32_t rows_;
  int32_t weighed_ = 0;
  int32_t accumulated_ = 0;
  int32_t pieces_ = 0;
  int32_t finished_ = 0;
  bool merged_ = false;
  bool together_ = false;
  Tile parts_[2];  // last tiles of the pieces that are parts of items, when all merge together
  int32_t parted_ = 0;
};

}  // namespace pa_hp::npu
#endif
