// What the vector cores do to rows in UB and in `out`, shared by the main loop and the merge.
#pragma once

#include "plan.h"

#if defined(__DAV_C220_VEC__)
namespace pa_hp::npu {

template <class T>
inline __aicore__ __ubuf__ T* ub(int32_t offset) {
  return (__ubuf__ T*)(uintptr_t)offset;
}

// The first `count` lanes of every repeat, or all.
inline __aicore__ void lanes(int32_t count) {
  set_vector_mask(0, count < kLanes ? (uint64_t{1} << count) - 1 : ~uint64_t{0});
}
inline __aicore__ void all_lanes() { set_vector_mask(~uint64_t{0}, ~uint64_t{0}); }

// Float to the dtype of `out`: 64 lanes a repeat, strides in blocks.
inline __aicore__ void narrow(__ubuf__ half* to, __ubuf__ float* from, int32_t repeats,
                              int32_t to_block, int32_t to_repeat, int32_t from_repeat) {
  vconv_f322f16(to, from, repeats, to_block, 1, to_repeat, from_repeat);
}
inline __aicore__ void narrow(__ubuf__ bfloat16_t* to, __ubuf__ float* from, int32_t repeats,
                              int32_t to_block, int32_t to_repeat, int32_t from_repeat) {
  vconv_f322bf16r(to, from, repeats, to_block, 1, to_repeat, from_repeat);
}

// Writes rows of `out` and of lse.
template <class T>
class Result {
 public:
  __aicore__ Result(const DecodePlan& plan, __gm__ T* out, __gm__ float* lse)
      : plan_(plan), out_(out), lse_(lse) {}

  // Finished rows from `head` on, with blocks of their maxima and sums of weights. Takes the event
  // kResultOut from the caller, and gives it back when the stores are done.
  __aicore__ void write(__ubuf__ float* rows, __ubuf__ float* max, __ubuf__ float* sum,
                        int32_t count, int32_t seq, int32_t head) const {
    const int32_t dim = plan_.head_dim_v;
    for (int32_t at = 0; at < dim; at += kLanes) {
      lanes(dim - at);
      narrow(ub<T>(plan_.ub_result) + at, rows + at, count, 1, dim / kFractal, dim / kBlockLanes);
    }
    all_lanes();
    if (lse_ != nullptr) {
      const int32_t repeats = ceil_div(count, kBlockLanes);
      vln(lse_blocks(), sum, repeats, 1, 1, 8, 8);
      pipe_barrier(PIPE_V);
      vadd(lse_blocks(), lse_blocks(), max, repeats, 1, 1, 1, 8, 8, 8);
    }
    store(count, seq, head);
  }

  // A sequence's rows that no tile covers: zeros, or NaN for a length out of range.
  __aicore__ void fill(int32_t seq, bool valid) const {
    const int32_t rows = min(plan_.heads, kMaxRows / 2);
    wait_flag(PIPE_MTE3, PIPE_V, (event_t)kResultOut);
    vector_dup(ub<uint32_t>(plan_.ub_result), valid ? 0u : kNanPair,
               ceil_div(rows * plan_.head_dim_v, 2 * kLanes), 1, 1, 8, 0);
    vector_dup(lse_blocks(), valid ? -__builtin_inff() : __builtin_nanf(""),
               ceil_div(rows, kBlockLanes), 1, 1, 8, 0);
    for (int32_t head = 0; head < plan_.heads; head += rows) {
      if (head > 0) wait_flag(PIPE_MTE3, PIPE_V, (event_t)kResultOut);
      store(min(rows, plan_.heads - head), seq, head);
    }
  }

 private:
  // From ub_result and the lse blocks.
  __aicore__ void store(int32_t rows, int32_t seq, int32_t head) const {
    set_flag(PIPE_V, PIPE_MTE3, (event_t)kResultOut);
    wait_flag(PIPE_V, PIPE_MTE3, (event_t)kResultOut);
    const int64_t gap = plan_.out_stride_head - plan_.head_dim_v;  // of one row it may be anything
    copy_ubuf_to_gm_align_b16(out_ + seq * plan_.out_stride_batch + head * plan_.out_stride_head,
                              ub<T>(plan_.ub_result), 0, rows, plan_.head_dim_v * sizeof(T), 0, 0,
                              0, rows > 1 ? gap * sizeof(T) : 0);
    if (lse_ != nullptr) {
      copy_ubuf_to_gm_align_b32(lse_ + static_cast<int64_t>(seq) * plan_.heads + head, lse_blocks(),
                                0, rows, sizeof(float), 0, 0, 0, 0);
    }
    set_flag(PIPE_MTE3, PIPE_V, (event_t)kResultOut);
  }

  __aicore__ __ubuf__ float* lse_blocks() const {
    return ub<float>(plan_.ub_stats) + kLseBlocks * kStatLanes;
  }

  const DecodePlan& plan_;
  __gm__ T* out_;
  __gm__ float* lse_;
};

}  // namespace pa_hp::npu
#endif
