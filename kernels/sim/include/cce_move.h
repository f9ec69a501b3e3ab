// Data movement (PIPE_MTE2, PIPE_MTE3, PIPE_V for UB to UB). Signatures: CANN 8.1 stub_fun.h.
#pragma once

// ---- Blocks of 32 bytes ------------------------------------------------------------------------

inline void copy_gm_to_ubuf(__ubuf__ void* dst, __gm__ void* src, sim::F8, sim::F16 bursts,
                            sim::F16 length, sim::F16 src_gap, sim::F16 dst_gap, PA_SITE) {
  sim::copy_blocks("copy_gm_to_ubuf", sim::Path::kGmToUb, sim::at(dst), sim::at(src), bursts,
                   length, src_gap, dst_gap, site);
}
inline void copy_ubuf_to_gm(__gm__ void* dst, __ubuf__ void* src, sim::F8, sim::F16 bursts,
                            sim::F16 length, sim::F16 src_gap, sim::F16 dst_gap, PA_SITE) {
  sim::copy_blocks("copy_ubuf_to_gm", sim::Path::kUbToGm, sim::at(dst), sim::at(src), bursts,
                   length, src_gap, dst_gap, site);
}
inline void copy_ubuf_to_ubuf(__ubuf__ void* dst, __ubuf__ void* src, sim::F8, sim::F16 bursts,
                              sim::F16 length, sim::F16 src_gap, sim::F16 dst_gap, PA_SITE) {
  sim::copy_blocks("copy_ubuf_to_ubuf", sim::Path::kUbToUb, sim::at(dst), sim::at(src), bursts,
                   length, src_gap, dst_gap, site);
}
inline void copy_gm_to_cbuf(__cbuf__ void* dst, __gm__ void* src, sim::F8, sim::F16 bursts,
                            sim::F16 length, sim::F16 src_gap, sim::F16 dst_gap, pad_t pad,
                            PA_SITE) {
  if (pad != PAD_NONE) sim::not_modelled("copy_gm_to_cbuf with padding", site);
  sim::copy_blocks("copy_gm_to_cbuf", sim::Path::kGmToL1, sim::at(dst), sim::at(src), bursts,
                   length, src_gap, dst_gap, site);
}
inline void copy_cbuf_to_gm(__gm__ void* dst, __cbuf__ void* src, sim::F8, sim::F16 bursts,
                            sim::F16 length, sim::F16 src_gap, sim::F16 dst_gap, PA_SITE) {
  sim::copy_blocks("copy_cbuf_to_gm", sim::Path::kL1ToGm, sim::at(dst), sim::at(src), bursts,
                   length, src_gap, dst_gap, site);
}

// The packed forms. Bit fields as GVirt's xlite (kernel_macro.h, __set_dmi_config) packs them for
// GM to UB and UB to GM; nothing public shows them in use for the other paths.
inline void copy_gm_to_ubuf(__ubuf__ void* dst, __gm__ void* src, uint64_t config, PA_SITE) {
  copy_gm_to_ubuf(dst, src, config & 0xf, config >> 4 & 0xfff, config >> 16 & 0xffff,
                  config >> 32 & 0xffff, config >> 48, site);
}
inline void copy_ubuf_to_gm(__gm__ void* dst, __ubuf__ void* src, uint64_t config, PA_SITE) {
  copy_ubuf_to_gm(dst, src, config & 0xf, config >> 4 & 0xfff, config >> 16 & 0xffff,
                  config >> 32 & 0xffff, config >> 48, site);
}
inline void copy_ubuf_to_ubuf(__ubuf__ void*, __ubuf__ void*, uint64_t, PA_SITE) {
  sim::not_modelled("copy_ubuf_to_ubuf with a packed configuration", site);
}
inline void copy_gm_to_cbuf(__cbuf__ void*, __gm__ void*, uint64_t, pad_t, PA_SITE) {
  sim::not_modelled("copy_gm_to_cbuf with a packed configuration", site);
}
inline void copy_cbuf_to_gm(__gm__ void*, __cbuf__ void*, uint64_t, PA_SITE) {
  sim::not_modelled("copy_cbuf_to_gm with a packed configuration", site);
}

// ---- Bytes -------------------------------------------------------------------------------------

#define PA_SIM_ALIGN(SUFFIX, SIZE)                                                                 \
  inline void copy_gm_to_ubuf_align_##SUFFIX(                                                      \
      __ubuf__ void* dst, __gm__ void* src, sim::F8, sim::F16 bursts, sim::F32 length,             \
      sim::F8 left, sim::F8 right, sim::F32 src_gap, sim::F32 dst_gap, PA_SITE) {                  \
    sim::copy_gm_to_ubuf_align("copy_gm_to_ubuf_align_" #SUFFIX, SIZE, sim::at(dst), sim::at(src), \
                               bursts, length, left, right, src_gap, dst_gap, site);               \
  }                                                                                                \
  inline void copy_ubuf_to_gm_align_##SUFFIX(                                                      \
      __gm__ void* dst, __ubuf__ void* src, sim::F8, sim::F16 bursts, sim::F32 length,             \
      sim::F8 left, sim::F8 right, sim::F32 src_gap, sim::F32 dst_gap, PA_SITE) {                  \
    sim::copy_ubuf_to_gm_align("copy_ubuf_to_gm_align_" #SUFFIX, sim::at(dst), sim::at(src),       \
                               bursts, length, left, right, src_gap, dst_gap, site);               \
  }                                                                                                \
  inline void copy_gm_to_ubuf_align_##SUFFIX(__ubuf__ void*, __gm__ void*, uint64_t, uint64_t,     \
                                             PA_SITE) {                                            \
    sim::not_modelled("copy_gm_to_ubuf_align_" #SUFFIX " with a packed configuration", site);      \
  }                                                                                                \
  inline void copy_ubuf_to_gm_align_##SUFFIX(__gm__ void*, __ubuf__ void*, uint64_t, uint64_t,     \
                                             PA_SITE) {                                            \
    sim::not_modelled("copy_ubuf_to_gm_align_" #SUFFIX " with a packed configuration", site);      \
  }
PA_SIM_ALIGN(b8, 1)
PA_SIM_ALIGN(b16, 2)
PA_SIM_ALIGN(b32, 4)
#undef PA_SIM_ALIGN

// ---- Row-major to NZ ---------------------------------------------------------------------------

#define PA_SIM_ND2NZ(SUFFIX, T)                                                                    \
  inline void copy_gm_to_cbuf_multi_nd2nz_##SUFFIX(                                                \
      __cbuf__ T* dst, __gm__ T* src, sim::F8, sim::F16 matrices, sim::F16 rows, sim::F16 columns, \
      sim::F16 src_matrix_stride, sim::F16 src_row_stride, sim::F16 dst_column_stride,             \
      sim::F16 dst_row_stride, sim::F16 dst_matrix_stride, PA_SITE) {                              \
    sim::copy_nd2nz("copy_gm_to_cbuf_multi_nd2nz_" #SUFFIX, sizeof(T), sim::at(dst), sim::at(src), \
                    matrices, rows, columns, src_matrix_stride, src_row_stride, dst_column_stride, \
                    dst_row_stride, dst_matrix_stride, site);                                      \
  }                                                                                                \
  inline void copy_gm_to_cbuf_multi_nd2nz_##SUFFIX(__cbuf__ T*, __gm__ T*, uint64_t, uint64_t,     \
                                                   PA_SITE) {                                      \
    sim::not_modelled("copy_gm_to_cbuf_multi_nd2nz_" #SUFFIX " with a packed configuration",       \
                      site);                                                                       \
  }
PA_SIM_ND2NZ(b8, int8_t)
PA_SIM_ND2NZ(b8, uint8_t)
PA_SIM_ND2NZ(b16, half)
PA_SIM_ND2NZ(b16, bfloat16_t)
PA_SIM_ND2NZ(b16, int16_t)
PA_SIM_ND2NZ(b16, uint16_t)
PA_SIM_ND2NZ(b32s, float)
PA_SIM_ND2NZ(b32s, int32_t)
PA_SIM_ND2NZ(b32s, uint32_t)
#undef PA_SIM_ND2NZ

// ---- Fills -------------------------------------------------------------------------------------

// A value of the destination's width. Of the mixed pairs only 16-bit integers from half bits and
// 32-bit types from a 32-bit pattern have a documented meaning (Ascend C, InitConstValue).
#define PA_SIM_FILL(NAME, SPACE, TO)                                                          \
  inline void NAME(SPACE half* dst, int64_t repeat, half value, PA_SITE) {                    \
    sim::fill(#NAME, sim::FillTo::TO, sim::at(dst), repeat, value.bits, 2, site);             \
  }                                                                                           \
  inline void NAME(SPACE int16_t* dst, int64_t repeat, half value, PA_SITE) {                 \
    sim::fill(#NAME, sim::FillTo::TO, sim::at(dst), repeat, value.bits, 2, site);             \
  }                                                                                           \
  inline void NAME(SPACE uint16_t* dst, int64_t repeat, half value, PA_SITE) {                \
    sim::fill(#NAME, sim::FillTo::TO, sim::at(dst), repeat, value.bits, 2, site);             \
  }                                                                                           \
  inline void NAME(SPACE float* dst, int64_t repeat, uint32_t value, PA_SITE) {               \
    sim::fill(#NAME, sim::FillTo::TO, sim::at(dst), repeat, value, 4, site);                  \
  }                                                                                           \
  inline void NAME(SPACE int32_t* dst, int64_t repeat, uint32_t value, PA_SITE) {             \
    sim::fill(#NAME, sim::FillTo::TO, sim::at(dst), repeat, value, 4, site);                  \
  }                                                                                           \
  inline void NAME(SPACE uint32_t* dst, int64_t repeat, uint32_t value, PA_SITE) {            \
    sim::fill(#NAME, sim::FillTo::TO, sim::at(dst), repeat, value, 4, site);                  \
  }                                                                                           \
  inline void NAME##_bf16(SPACE bfloat16_t* dst, int64_t repeat, bfloat16_t value, PA_SITE) { \
    sim::fill(#NAME "_bf16", sim::FillTo::TO, sim::at(dst), repeat, value.bits, 2, site);     \
  }
PA_SIM_FILL(create_cbuf_matrix, __cbuf__, kL1)
PA_SIM_FILL(create_ca_matrix, __ca__, kL0a)
PA_SIM_FILL(create_cb_matrix, __cb__, kL0b)
#undef PA_SIM_FILL

// ---- Atomic stores -----------------------------------------------------------------------------

inline void set_atomic_none() { sim::set_atomic_none(); }
inline void set_atomic_add() { sim::set_atomic(sim::Atomic::kAdd); }
inline void set_atomic_max() { sim::set_atomic(sim::Atomic::kMax); }
inline void set_atomic_min() { sim::set_atomic(sim::Atomic::kMin); }
inline void set_atomic_f32() { sim::set_atomic_type(sim::Type::kF32); }
inline void set_atomic_f16() { sim::set_atomic_type(sim::Type::kF16); }
inline void set_atomic_bf16() { sim::set_atomic_type(sim::Type::kBf16); }
inline void set_atomic_s32() { sim::set_atomic_type(sim::Type::kI32); }
inline void set_atomic_s16() { sim::set_atomic_type(sim::Type::kI16); }
inline void set_atomic_s8() { sim::set_atomic_type(sim::Type::kI8); }

// ---- The scalar unit's data cache: scalar loads and stores of the model go straight to GM ------

inline void dcci(__gm__ void*, uint64_t) {}
inline void dcci(__gm__ void*, uint64_t, uint64_t) {}
inline void dc_preload(__gm__ uint64_t*, int64_t) {}
