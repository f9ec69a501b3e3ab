// Items that several clusters have parts of: when every vector core has left its partial results,
// the vector cores of those clusters merge them, each some of the rows.
#pragma once

#include "vector.h"

#if defined(__DAV_C220_VEC__)
namespace pa_hp::npu {

template <class T>
class Merge {
 public:
  __aicore__ Merge(const DecodePlan& plan, const Result<T>& result, __gm__ uint8_t* workspace)
      : plan_(plan),
        result_(result),
        workspace_(workspace),
        width_(plan.head_dim_v + kRowTail),
        pitch_(width_ / kBlockLanes) {}

  // This core's rows of an item.
  __aicore__ void run(const Cut& cut) {
    const int32_t parts = cut.last_cluster - cut.first_cluster + 1;
    const int32_t workers = 2 * parts;
    const int32_t worker =
        2 * (static_cast<int32_t>(block_idx) - cut.first_cluster) + static_cast<int32_t>(get_subblockid());
    const int32_t stop = plan_.rows * (worker + 1) / workers;
    const int32_t at_once = kMergeRows / parts;  // rows whose parts fit
    for (int32_t row = plan_.rows * worker / workers; row < stop; row += at_once) {
      merge(cut, parts, row, min(at_once, stop - row));
    }
  }

 private:
  __aicore__ void merge(const Cut& cut, int32_t parts, int32_t row, int32_t rows) {
    wait_flag(PIPE_MTE3, PIPE_V, (event_t)kResultOut);
    load(cut, parts, row, rows);
    __ubuf__ float* acc = ub<float>(plan_.ub_merge);
    __ubuf__ float* max = acc + plan_.head_dim_v;
    __ubuf__ float* sum = max + kBlockLanes;
    __ubuf__ float* weights = ub<float>(plan_.ub_merge_weights);  // a block for every row of a part
    __ubuf__ float* total = weights + kMergeRows * kBlockLanes;   // a block for every row
    lanes(kBlockLanes);
    // The largest maximum of every row, then each part's weight exp(max - largest).
    vadds(total, max, 0.0f, rows, 1, 1, 1, pitch_);
    pipe_barrier(PIPE_V);
    for (int32_t part = 1; part < parts; ++part) {
      vmax(total, total, max + part * rows * width_, rows, 1, 1, 1, 1, 1, pitch_);
      pipe_barrier(PIPE_V);
    }
    for (int32_t part = 0; part < parts; ++part) {
      vsub(weights + part * rows * kBlockLanes, max + part * rows * width_, total, rows, 1, 1, 1, 1,
           pitch_, 1);
    }
    pipe_barrier(PIPE_V);
    vexp(weights, weights, parts * rows, 1, 1, 1, 1);
    vadds(max, total, 0.0f, rows, 1, 1, pitch_, 1);
    pipe_barrier(PIPE_V);
    vmul(sum, sum, weights, parts * rows, 1, 1, 1, pitch_, pitch_, 1);
    scale_rows(acc, weights, parts * rows, plan_.head_dim_v, pitch_, 1);
    // Sums over the parts, the upper half of them onto the lower.
    for (int32_t left = parts; left > 1;) {
      const int32_t half = left / 2;
      const int32_t from = (left - half) * rows * width_;
      for (int32_t at = 0; at < plan_.head_dim_v; at += kLanes) {
        lanes(plan_.head_dim_v - at);
        vadd(acc + at, acc + at, acc + from + at, half * rows, 1, 1, 1, pitch_, pitch_, pitch_);
      }
      lanes(kBlockLanes);
      vadd(sum, sum, sum + from, half * rows, 1, 1, 1, pitch_, pitch_, pitch_);
      pipe_barrier(PIPE_V);
      left -= half;
    }
    set_flag(PIPE_V, PIPE_MTE2, (event_t)kOutputIn);
    result_.normalise(acc, rows, cut.seq, cut.head_group * plan_.rows + row);
  }

  // Part after part, `rows` rows of each. The first cluster's piece ends inside the item, the others'
  // begin there.
  __aicore__ void load(const Cut& cut, int32_t parts, int32_t row, int32_t rows) {
    const int64_t first = static_cast<int64_t>(cut.first_cluster) * plan_.ws_bytes;
    __gm__ float* from = (__gm__ float*)(workspace_ + first + plan_.ws_partials) + row * width_;
    __gm__ float* next = (__gm__ float*)(workspace_ + first + plan_.ws_bytes + plan_.ws_partials) + row * width_;
    const int32_t blocks = rows * pitch_;
    __ubuf__ float* to = ub<float>(plan_.ub_merge);
    wait_flag(PIPE_V, PIPE_MTE2, (event_t)kOutputIn);
    copy_gm_to_ubuf(to, from + kMaxRows * width_, 0, 1, blocks, 0, 0);
    copy_gm_to_ubuf(to + rows * width_, next, 0, parts - 1, blocks,
                    plan_.ws_bytes / kBlockBytes - blocks, 0);
    set_flag(PIPE_MTE2, PIPE_V, (event_t)kOutputIn);
    wait_flag(PIPE_MTE2, PIPE_V, (event_t)kOutputIn);
  }

  const DecodePlan& plan_;
  const Result<T>& result_;
  __gm__ uint8_t* workspace_;
  const int32_t width_;
  const int32_t pitch_;
};

}  // namespace pa_hp::npu
#endif
