// Data movement (PIPE_MTE2, PIPE_MTE3, PIPE_V for UB to UB).
#pragma once

inline void copy_gm_to_ubuf(__ubuf__ void* dst, __gm__ void* src, sim::F8, sim::F16 bursts,
                            sim::F16 length, sim::F16 src_gap, sim::F16 dst_gap, PA_SITE) {
  sim::copy_blocks("copy_gm_to_ubuf", sim::Path::kGmToUb, sim::at(dst), sim::at(src), bursts, length,
                   src_gap, dst_gap, site);
}
inline void copy_ubuf_to_gm(__gm__ void* dst, __ubuf__ void* src, sim::F8, sim::F16 bursts,
                            sim::F16 length, sim::F16 src_gap, sim::F16 dst_gap, PA_SITE) {
  sim::copy_blocks("copy_ubuf_to_gm", sim::Path::kUbToGm, sim::at(dst), sim::at(src), bursts, length,
                   src_gap, dst_gap, site);
}
inline void copy_ubuf_to_ubuf(__ubuf__ void* dst, __ubuf__ void* src, sim::F8, sim::F16 bursts,
                              sim::F16 length, sim::F16 src_gap, sim::F16 dst_gap, PA_SITE) {
  sim::copy_blocks("copy_ubuf_to_ubuf", sim::Path::kUbToUb, sim::at(dst), sim::at(src), bursts, length,
                   src_gap, dst_gap, site);
}
