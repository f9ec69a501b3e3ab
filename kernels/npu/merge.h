// Items that several clusters have parts of. The parts lie in the workspace as partial results; one
// cluster merges some rows of them, or all rows, and then its own part may still be in UB.
#pragma once

#include "rows.h"
#include "schedule.h"

#if defined(__DAV_C220_VEC__)
namespace pa_hp::npu {

template <class T>
class Merge {
 public:
  // `row`, `count`: the core's rows of a tile. `tile`: of any of the item's pieces. `stored`: the
  // first part is in the workspace too, not in UB.
  __aicore__ Merge(const DecodePlan& plan, const Result<T>& result, __gm__ uint8_t* workspace,
                   const Tile& tile, int32_t row, int32_t count, bool stored)
      : plan_(plan),
        result_(result),
        workspace_(workspace + tile.first_cluster * int64_t{plan.ws_bytes}),
        tile_(tile),
        row_(row),
        count_(count),
        stored_(stored),
        parts_(tile.last_cluster - tile.first_cluster + 1),
        dim_(plan.head_dim_v) {}

  // `count` of the core's rows. Takes the event kResultOut from the caller, and gives it back when
  // the stores are done.
  __aicore__ void run(int32_t from, int32_t count) {
    const int32_t at_once = plan_.merge_rows / parts_;
    for (int32_t at = from; at < from + count; at += at_once) {
      if (at > from) wait_flag(PIPE_MTE3, PIPE_V, (event_t)kResultOut);
      rows_ = min(at_once, from + count - at);
      max_ = ub<float>(plan_.ub_merge_weights);
      sum_ = max_ + round_up(parts_ * rows_, kBlockLanes) * kBlockLanes;
      largest_ = sum_ + round_up(parts_ * rows_, kBlockLanes) * kBlockLanes;
      load(at);
      weigh();
      add_up();
      result_.write(acc_, largest_, sum_, rows_, tile_.seq,
                    tile_.head_group * plan_.rows + row_ + at);
      set_flag(PIPE_V, PIPE_MTE2, (event_t)kPartialsIn);
    }
  }

 private:
  // Part after part into UB, from row `at` on.
  __aicore__ void load(int32_t at) {
    const int32_t sums = rows_ * dim_ / kBlockLanes;  // blocks
    const int32_t max_at = count_ * dim_ + at * kBlockLanes;
    const int32_t sum_at = max_at + count_ * kBlockLanes;
    wait_flag(PIPE_V, PIPE_MTE2, (event_t)kPartialsIn);
    load_parts(max_, max_at, rows_);
    load_parts(sum_, sum_at, rows_);
    load_parts(acc_, at * dim_, sums);
    set_flag(PIPE_MTE2, PIPE_V, (event_t)kPartialsIn);
    if (!stored_) {
      __ubuf__ float* own = ub<float>(plan_.ub_acc);
      copy_ubuf_to_ubuf(max_, own + max_at, 0, 1, rows_, 0, 0);
      copy_ubuf_to_ubuf(sum_, own + sum_at, 0, 1, rows_, 0, 0);
      copy_ubuf_to_ubuf(acc_, own + at * dim_, 0, 1, sums, 0, 0);
      pipe_barrier(PIPE_V);
    }
    wait_flag(PIPE_MTE2, PIPE_V, (event_t)kPartialsIn);
  }

  // `blocks` of every part, `at` floats behind its beginning.
  __aicore__ void load_parts(__ubuf__ float* to, int32_t at, int32_t blocks) {
    __gm__ float* from = (__gm__ float*)workspace_ + row_ * (dim_ + kRowTail) + at;
    if (stored_) copy_gm_to_ubuf(to, from + kFirstPart / sizeof(float), 0, 1, blocks, 0, 0);
    copy_gm_to_ubuf(to + blocks * kBlockLanes,
                    from + (plan_.ws_bytes + plan_.ws_partials) / sizeof(float), 0, parts_ - 1,
                    blocks, plan_.ws_bytes / kBlockBytes - blocks, 0);
  }

  // A part weighs exp(its maximum - the largest) / the sum of all; that takes the maxima's place.
  __aicore__ void weigh() {
    const int32_t repeats = ceil_div(parts_ * rows_, kBlockLanes);
    for (int32_t count = parts_, half = 0; count > 1; count = half) {
      half = ceil_div(count, 2);  // of an odd number the middle one is in two pairs
      __ubuf__ float* from = count == parts_ ? max_ : largest_;
      vmax(largest_, from, from + (count - half) * rows_ * kBlockLanes,
           ceil_div(half * rows_, kBlockLanes), 1, 1, 1, 8, 8, 8);
      pipe_barrier(PIPE_V);
    }
    for (int32_t row = 0; row < rows_; row += kBlockLanes) {
      const int32_t at = row * kBlockLanes;
      lanes((rows_ - row) * kBlockLanes);
      vsub(max_ + at, max_ + at, largest_ + at, parts_, 1, 1, 1, rows_, rows_, 0);
    }
    all_lanes();
    pipe_barrier(PIPE_V);
    vexp(max_, max_, repeats, 1, 1, 8, 8);
    pipe_barrier(PIPE_V);
    vmul(sum_, sum_, max_, repeats, 1, 1, 1, 8, 8, 8);
    pipe_barrier(PIPE_V);
    for (int32_t count = parts_; count > 1;) {
      const int32_t half = ceil_div(count, 2);
      add_blocks(sum_, sum_ + half * rows_ * kBlockLanes, (count - half) * rows_);
      pipe_barrier(PIPE_V);
      count = half;
    }
    for (int32_t row = 0; row < rows_; row += kBlockLanes) {
      const int32_t at = row * kBlockLanes;
      lanes((rows_ - row) * kBlockLanes);
      vdiv(max_ + at, max_ + at, sum_ + at, parts_, 1, 1, 1, rows_, rows_, 0);
    }
    all_lanes();
    pipe_barrier(PIPE_V);
  }

  __aicore__ void add_blocks(__ubuf__ float* to, __ubuf__ float* from, int32_t blocks) {
    const int32_t repeats = blocks / kBlockLanes;
    const int32_t at = repeats * kLanes;
    if (repeats > 0) vadd(to, to, from, repeats, 1, 1, 1, 8, 8, 8);
    if (blocks == repeats * kBlockLanes) return;
    lanes(blocks * kBlockLanes - at);
    vadd(to + at, to + at, from + at, 1, 1, 1, 1, 8, 8, 8);
    all_lanes();
  }

  // What is merged stands in the first part.
  __aicore__ void add_up() {
    const int32_t pitch = dim_ / kBlockLanes;
    for (int32_t i = 0; i < parts_; ++i) {
      __ubuf__ float* weights = max_ + i * rows_ * kBlockLanes;
      for (int32_t at = 0; at < dim_; at += kLanes) {
        __ubuf__ float* part = acc_ + i * rows_ * dim_ + at;
        lanes(dim_ - at);
        if (i == 0) {
          vmul(part, part, weights, rows_, 1, 1, 0, pitch, pitch, 1);
        } else {
          vmla(acc_ + at, part, weights, rows_, 1, 1, 0, pitch, pitch, 1);
        }
      }
      pipe_barrier(PIPE_V);
    }
    all_lanes();
  }

  const DecodePlan& plan_;
  const Result<T>& result_;
  __gm__ uint8_t* workspace_;  // of the cluster that the item begins in
  const Tile& tile_;
  const int32_t row_;
  const int32_t count_;
  const bool stored_;
  const int32_t parts_;
  const int32_t dim_;
  int32_t rows_ = 0;  // that are merged at once
  __ubuf__ float* acc_ = ub<float>(plan_.ub_merge);
  __ubuf__ float* max_ = nullptr;  // blocks: of every part and row
  __ubuf__ float* sum_ = nullptr;
  __ubuf__ float* largest_ = nullptr;  // of every row
};

}  // namespace pa_hp::npu
#endif
