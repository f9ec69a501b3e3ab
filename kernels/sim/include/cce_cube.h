// Cube core: L1 to L0 (PIPE_MTE1), mad (PIPE_M), L0C outwards (PIPE_FIX). Signatures: CANN 8.1
// stub_fun.h; which of its overloads dav-c220 has: the dav_c220 headers of Ascend C.
#pragma once

// ---- Fractals to L0 ----------------------------------------------------------------------------

#define PA_SIM_LOAD(TO, SPACE, WAY, T)                                                             \
  inline void load_cbuf_to_##TO(SPACE T* dst, __cbuf__ T* src, sim::F16 base, sim::F8 repeat,      \
                                sim::F16 src_stride, sim::F16 dst_gap, sim::F8, bool transpose,    \
                                addr_cal_mode_t mode, PA_SITE) {                                   \
    sim::load_fractals("load_cbuf_to_" #TO, sim::Load::kL1To##WAY, sizeof(T), sim::at(dst),        \
                       sim::at(src), base, repeat, src_stride, dst_gap, transpose, mode, site);    \
  }                                                                                                \
  inline void load_cbuf_to_##TO(SPACE T* dst, __cbuf__ T* src, sim::F16 base, sim::F8 repeat,      \
                                sim::F16 src_stride, sim::F16 dst_gap, sim::F8, bool,              \
                                bool transpose, addr_cal_mode_t mode, PA_SITE) {                   \
    sim::load_fractals("load_cbuf_to_" #TO, sim::Load::kL1To##WAY, sizeof(T), sim::at(dst),        \
                       sim::at(src), base, repeat, src_stride, dst_gap, transpose, mode, site);    \
  }                                                                                                \
  inline void load_cbuf_to_##TO(SPACE T*, __cbuf__ T*, uint64_t, bool, addr_cal_mode_t, PA_SITE) { \
    sim::not_modelled("load_cbuf_to_" #TO " with a packed configuration", site);                   \
  }                                                                                                \
  inline void load_gm_to_##TO(SPACE T* dst, __gm__ T* src, sim::F16 base, sim::F8 repeat,          \
                              sim::F16 src_stride, sim::F16 dst_gap, sim::F8,                      \
                              addr_cal_mode_t mode, PA_SITE) {                                     \
    sim::load_fractals("load_gm_to_" #TO, sim::Load::kGmTo##WAY, sizeof(T), sim::at(dst),          \
                       sim::at(src), base, repeat, src_stride, dst_gap, false, mode, site);        \
  }
#define PA_SIM_LOAD_7(TO, SPACE, WAY, T)                                                      \
  inline void load_cbuf_to_##TO(SPACE T* dst, __cbuf__ T* src, sim::F16 base, sim::F8 repeat, \
                                sim::F16 src_stride, sim::F8, bool transpose, PA_SITE) {      \
    sim::load_fractals("load_cbuf_to_" #TO, sim::Load::kL1To##WAY, sizeof(T), sim::at(dst),   \
                       sim::at(src), base, repeat, src_stride, 0, transpose, 0, site);        \
  }                                                                                           \
  inline void load_gm_to_##TO(SPACE T* dst, __gm__ T* src, sim::F16 base, sim::F8 repeat,     \
                              sim::F16 src_stride, sim::F8, PA_SITE) {                        \
    sim::load_fractals("load_gm_to_" #TO, sim::Load::kGmTo##WAY, sizeof(T), sim::at(dst),     \
                       sim::at(src), base, repeat, src_stride, 0, false, 0, site);            \
  }
#define PA_SIM_LOAD_TRANSPOSE(TO, SPACE, WAY, T)                                                   \
  inline void load_cbuf_to_##TO##_transpose(SPACE T* dst, __cbuf__ T* src, sim::F16 base,          \
                                            sim::F8 repeat, sim::F16 src_stride, sim::F16 dst_gap, \
                                            bool decrement, sim::F16 dst_fractal_gap, PA_SITE) {   \
    sim::load_transposed("load_cbuf_to_" #TO "_transpose", sim::Load::kL1To##WAY, sizeof(T),       \
                         sim::at(dst), sim::at(src), base, repeat, src_stride, dst_gap, decrement, \
                         dst_fractal_gap, site);                                                   \
  }                                                                                                \
  inline void load_cbuf_to_##TO##_transpose(SPACE T*, __cbuf__ T*, uint64_t, uint64_t, PA_SITE) {  \
    sim::not_modelled("load_cbuf_to_" #TO "_transpose with a packed configuration", site);         \
  }
// img2col is not modelled; the calls name themselves.
#define PA_SIM_IMG2COL(TO, SPACE, T)                                                        \
  inline void img2colv2_cbuf_to_##TO(SPACE T*, __cbuf__ T*, sim::F16, sim::F16, sim::F16,   \
                                     sim::F16, sim::F8, sim::F8, sim::F8, sim::F8, sim::F8, \
                                     sim::F8, bool, bool, bool, bool, sim::F16, PA_SITE) {  \
    sim::not_modelled("img2colv2_cbuf_to_" #TO, site);                                      \
  }                                                                                         \
  inline void img2colv2_cbuf_to_##TO(SPACE T*, __cbuf__ T*, uint64_t, uint64_t, PA_SITE) {  \
    sim::not_modelled("img2colv2_cbuf_to_" #TO, site);                                      \
  }
#define PA_SIM_LOADS(T)                     \
  PA_SIM_LOAD(ca, __ca__, L0a, T)           \
  PA_SIM_LOAD(cb, __cb__, L0b, T)           \
  PA_SIM_LOAD_TRANSPOSE(ca, __ca__, L0a, T) \
  PA_SIM_LOAD_TRANSPOSE(cb, __cb__, L0b, T) \
  PA_SIM_IMG2COL(ca, __ca__, T)             \
  PA_SIM_IMG2COL(cb, __cb__, T)
PA_SIM_LOADS(half)
PA_SIM_LOADS(bfloat16_t)
PA_SIM_LOADS(float)
PA_SIM_LOADS(int32_t)
PA_SIM_LOADS(uint32_t)
PA_SIM_LOADS(int8_t)
PA_SIM_LOADS(uint8_t)
#define PA_SIM_LOADS_7(T)           \
  PA_SIM_LOAD_7(ca, __ca__, L0a, T) \
  PA_SIM_LOAD_7(cb, __cb__, L0b, T)
PA_SIM_LOADS_7(half)
PA_SIM_LOADS_7(bfloat16_t)
PA_SIM_LOADS_7(int8_t)
PA_SIM_LOADS_7(uint8_t)
#undef PA_SIM_LOADS
#undef PA_SIM_LOADS_7
#undef PA_SIM_LOAD
#undef PA_SIM_LOAD_7
#undef PA_SIM_LOAD_TRANSPOSE
#undef PA_SIM_IMG2COL

// Registers of img2col alone, which is not modelled: setting them changes nothing else.
inline void set_fmatrix(uint64_t) {}
inline void set_fmatrix_b(uint64_t) {}
inline void set_l3d_rpt(uint64_t) {}

// ---- mad ---------------------------------------------------------------------------------------

#define PA_SIM_MAD(C, T)                                                                           \
  inline void mad(__cc__ C* c, __ca__ T* a, __cb__ T* b, sim::F16 m, sim::F16 k, sim::F16 n,       \
                  sim::F8 unit_flag, bool k_direction_align, bool from_bias, bool from_zero,       \
                  PA_SITE) {                                                                       \
    sim::mad(sim::TypeOf<T>::value, sim::at(c), sim::at(a), sim::at(b), m, k, n, unit_flag,        \
             k_direction_align, from_bias, from_zero, site);                                       \
  }                                                                                                \
  inline void mad(__cc__ C*, __ca__ T*, __cb__ T*, uint64_t, PA_SITE) {                            \
    sim::not_modelled("mad with a packed configuration", site);                                    \
  }                                                                                                \
  inline void mad(__cc__ C*, __ca__ T*, __cb__ T*, uint64_t, sim::F16, sim::F16, sim::F16,         \
                  sim::F8, bool, bool, bool, PA_SITE) {                                            \
    sim::not_modelled("mad with a bias table", site);                                              \
  }                                                                                                \
  inline void mad(__cc__ C*, __ca__ T*, __cb__ T*, sim::F16, sim::F16, sim::F16, sim::F8, sim::F8, \
                  sim::F8, bool, bool, bool, bool, PA_SITE) {                                      \
    sim::not_modelled("mad with feature and mask offsets", site);                                  \
  }
PA_SIM_MAD(float, half)
PA_SIM_MAD(float, bfloat16_t)
PA_SIM_MAD(float, float)
PA_SIM_MAD(int32_t, int8_t)
#undef PA_SIM_MAD

// ---- Fixpipe -----------------------------------------------------------------------------------

#define PA_SIM_FIXPIPE(NAME, TO_GM, SPACE, T, S)                                                   \
  inline void NAME(SPACE T* dst, __cc__ S* src, sim::F8, sim::F16 columns, sim::F16 rows,          \
                   sim::F32 dst_stride, sim::F16 src_stride, sim::F8 unit_flag, QuantMode_t quant, \
                   sim::F8 relu, bool channel_split, bool nz_to_nd, PA_SITE) {                     \
    sim::fixpipe({#NAME, TO_GM, sim::TypeOf<T>::value, sim::TypeOf<S>::value, site}, sim::at(dst), \
                 sim::at(src), columns, rows, dst_stride, src_stride, unit_flag, quant, relu,      \
                 channel_split, nz_to_nd);                                                         \
  }                                                                                                \
  inline void NAME(SPACE T* dst, __cc__ S* src, uint64_t xm, uint64_t xt, PA_SITE) {               \
    sim::fixpipe_packed({#NAME, TO_GM, sim::TypeOf<T>::value, sim::TypeOf<S>::value, site},        \
                        sim::at(dst), sim::at(src), xm, xt);                                       \
  }
PA_SIM_FIXPIPE(copy_matrix_cc_to_gm, true, __gm__, float, float)
PA_SIM_FIXPIPE(copy_matrix_cc_to_gm, true, __gm__, half, float)
PA_SIM_FIXPIPE(copy_matrix_cc_to_gm, true, __gm__, bfloat16_t, float)
PA_SIM_FIXPIPE(copy_matrix_cc_to_gm, true, __gm__, int8_t, float)
PA_SIM_FIXPIPE(copy_matrix_cc_to_gm, true, __gm__, uint8_t, float)
PA_SIM_FIXPIPE(copy_matrix_cc_to_gm, true, __gm__, int32_t, int32_t)
PA_SIM_FIXPIPE(copy_matrix_cc_to_gm, true, __gm__, half, int32_t)
PA_SIM_FIXPIPE(copy_matrix_cc_to_gm, true, __gm__, int16_t, int32_t)
PA_SIM_FIXPIPE(copy_matrix_cc_to_gm, true, __gm__, int8_t, int32_t)
PA_SIM_FIXPIPE(copy_matrix_cc_to_gm, true, __gm__, uint8_t, int32_t)
PA_SIM_FIXPIPE(copy_matrix_cc_to_cbuf, false, __cbuf__, half, float)
PA_SIM_FIXPIPE(copy_matrix_cc_to_cbuf, false, __cbuf__, bfloat16_t, float)
PA_SIM_FIXPIPE(copy_matrix_cc_to_cbuf, false, __cbuf__, int8_t, float)
PA_SIM_FIXPIPE(copy_matrix_cc_to_cbuf, false, __cbuf__, half, int32_t)
PA_SIM_FIXPIPE(copy_matrix_cc_to_cbuf, false, __cbuf__, int16_t, int32_t)
PA_SIM_FIXPIPE(copy_matrix_cc_to_cbuf, false, __cbuf__, int8_t, int32_t)
PA_SIM_FIXPIPE(copy_matrix_cc_to_cbuf, false, __cbuf__, uint8_t, int32_t)
#undef PA_SIM_FIXPIPE

// Registers of quantising stores, which are not modelled: setting them changes nothing else.
inline void set_fpc(uint64_t) {}
inline void set_quant_pre(uint64_t) {}

// ---- Bias table and fixpipe buffer -------------------------------------------------------------

inline void copy_cbuf_to_bt(uint64_t, __cbuf__ void*, sim::F16, sim::F16, sim::F16, sim::F16,
                            sim::F16, PA_SITE) {
  sim::not_modelled("copy_cbuf_to_bt", site);
}
inline void copy_cbuf_to_bt(uint64_t, __cbuf__ void*, uint64_t, PA_SITE) {
  sim::not_modelled("copy_cbuf_to_bt", site);
}
inline void copy_cbuf_to_fbuf(__fbuf__ void*, __cbuf__ void*, sim::F16, sim::F16, sim::F16,
                              sim::F16, PA_SITE) {
  sim::not_modelled("copy_cbuf_to_fbuf", site);
}
inline void copy_cbuf_to_fbuf(__fbuf__ void*, __cbuf__ void*, uint64_t, PA_SITE) {
  sim::not_modelled("copy_cbuf_to_fbuf", site);
}
