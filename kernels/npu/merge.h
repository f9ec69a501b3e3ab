// Items that several clusters have parts of. The parts that begin inside the item lie in the
// workspace as partial results; the cluster that the item begins in has its own part in UB and
// merges them, each vector core its own rows.
#pragma once

#include "rows.h"
#include "schedule.h"

#if defined(__DAV_C220_VEC__)
namespace pa_hp::npu {

template <class T>
class Merge {
 public:
  // `row`, `count`: the core's rows of a tile. `tile`: of the piece that begins the item.
  __aicore__ Merge(const DecodePlan& plan, const Result<T>& result, __gm__ uint8_t* workspace,
                   const Tile& tile, int32_t row, int32_t count)
      : plan_(plan),
        result_(result),
        workspace_(workspace + (tile.first_cluster + 1) * int64_t{plan.ws_bytes} +
                   plan.ws_partials),
        tile_(tile),
        row_(row),
        count_(count),
        parts_(tile.last_cluster - tile.first_cluster + 1),
        width_(plan.head_dim_v + kRowTail),
        pitch_(width_ / kBlockLanes) {}

  // Takes the event kResultOut from the caller, and gives it back when the stores are done.
  __aicore__ void run() {
    const int32_t at_once = plan_.merge_rows / parts_;
    for (int32_t at = 0; at < count_; at += at_once) {
      if (at > 0) wait_flag(PIPE_MTE3, PIPE_V, (event_t)kResultOut);
      const int32_t rows = min(at_once, count_ - at);
      load(at, rows);
      merge(rows);
      result_.normalise(ub<float>(plan_.ub_merge), rows, tile_.seq,
                        tile_.head_group * plan_.rows + row_ + at);
      set_flag(PIPE_V, PIPE_MTE2, (event_t)kPartialsIn);
    }
  }

 private:
  // Part after part into UB, `rows` rows of each; this core's own first.
  __aicore__ void load(int32_t at, int32_t rows) {
    const int32_t blocks = rows * pitch_;
    __ubuf__ float* to = ub<float>(plan_.ub_merge);
    __gm__ float* from = (__gm__ float*)workspace_ + (row_ + at) * width_;
    wait_flag(PIPE_V, PIPE_MTE2, (event_t)kPartialsIn);
    copy_gm_to_ubuf(to + rows * width_, from, 0, parts_ - 1, blocks,
                    plan_.ws_bytes / kBlockBytes - blocks, 0);
    set_flag(PIPE_MTE2, PIPE_V, (event_t)kPartialsIn);
    copy_ubuf_to_ubuf(to, ub<float>(plan_.ub_acc) + at * width_, 0, 1, blocks, 0, 0);
    pipe_barrier(PIPE_V);
    wait_flag(PIPE_MTE2, PIPE_V, (event_t)kPartialsIn);
  }

  // Every part weighs exp(its maximum - the largest); what is merged stands in the first part.
  __aicore__ void merge(int32_t rows) {
    __ubuf__ float* acc = ub<float>(plan_.ub_merge);
    __ubuf__ float* max = acc + plan_.head_dim_v;
    __ubuf__ float* sum = max + kBlockLanes;
    __ubuf__ float* largest = ub<float>(plan_.ub_merge_weights);  // a block for every row
    __ubuf__ float* weights = largest + rows * kBlockLanes;       // and for every row of every part
    lanes(kBlockLanes);
    for (int32_t i = 1; i < parts_; ++i) {
      vmax(largest, i == 1 ? max : largest, max + i * rows * width_, rows, 1, 1, 1, 1,
           i == 1 ? pitch_ : 1, pitch_);
      pipe_barrier(PIPE_V);
    }
    for (int32_t i = 0; i < parts_; ++i) {
      vsub(weights + i * rows * kBlockLanes, max + i * rows * width_, largest, rows, 1, 1, 1, 1,
           pitch_, 1);
    }
    pipe_barrier(PIPE_V);
    vexp(weights, weights, parts_ * rows, 1, 1, 1, 1);
    if (result_.has_lse()) vadds(max, largest, 0.0f, rows, 1, 1, pitch_, 1);
    pipe_barrier(PIPE_V);
    for (int32_t i = 0; i < parts_; ++i) {
      __ubuf__ float* part = acc + i * rows * width_;
      __ubuf__ float* weight = weights + i * rows * kBlockLanes;
      // Sums, and the sum of weights in the tail.
      for (int32_t at = 0; at < plan_.head_dim_v; at += kLanes) {
        lanes(plan_.head_dim_v - at);
        add_weighted(acc + at, part + at, weight, rows, i == 0);
      }
      lanes(kBlockLanes);
      add_weighted(sum, sum + i * rows * width_, weight, rows, i == 0);
      pipe_barrier(PIPE_V);
    }
  }

  __aicore__ void add_weighted(__ubuf__ float* to, __ubuf__ float* from, __ubuf__ float* weights,
                               int32_t rows, bool first) {
    if (first) {
      vmul(to, from, weights, rows, 1, 1, 0, pitch_, pitch_, 1);
    } else {
      vmla(to, from, weights, rows, 1, 1, 0, pitch_, pitch_, 1);
    }
  }

  const DecodePlan& plan_;
  const Result<T>& result_;
  __gm__ uint8_t* workspace_;  // the second part's partial result
  const Tile& tile_;
  const int32_t row_;
  const int32_t count_;
  const int32_t parts_;
  const int32_t width_;  // of a row with its tail; and in blocks
  const int32_t pitch_;
};

}  // namespace pa_hp::npu
#endif
