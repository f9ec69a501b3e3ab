// Vector builtins (PIPE_V). Types and widths of the arguments: CANN 8.1 stub_fun.h, of its
// overloads those that Ascend C's dav_c220 headers call. Where the stub has both 8-bit and 16-bit
// repeat strides, an integer of either width means the 16-bit form. Of the packed `uint64_t config`
// forms those of the arithmetic and the conversions are here; their bit fields are the ones that
// GVirt's xlite (kernel_macro.h: set_vector_xt, set_vector_1src_xt) packs for the same builtins.
#pragma once

namespace sim {

template <class T>
uint32_t scalar_bits(T value) {
  if constexpr (sizeof(T) == 4) {
    return __builtin_bit_cast(uint32_t, value);
  } else {
    return __builtin_bit_cast(uint16_t, value);
  }
}

// The fields of a packed configuration: repeats in the top byte, then the strides from the bottom.
inline uint64_t packed_repeats(uint64_t config) { return config >> 56; }
inline uint64_t packed_byte(uint64_t config, int shift) { return config >> shift & 0xff; }
inline uint64_t packed_half(uint64_t config, int shift) { return config >> shift & 0xffff; }

}  // namespace sim

// ---- Two sources
// --------------------------------------------------------------------------------------

#define PA_SIM_BINARY_MIXED(NAME, WHAT, D, T)                                                     \
  inline void NAME(__ubuf__ D* dst, __ubuf__ T* src0, __ubuf__ T* src1, sim::F8 repeat,           \
                   sim::F8 dst_block, sim::F8 src0_block, sim::F8 src1_block, sim::F8 dst_repeat, \
                   sim::F8 src0_repeat, sim::F8 src1_repeat, PA_SITE) {                           \
    sim::vector_binary(#NAME, sim::Vector::WHAT, sim::TypeOf<D>::value, sim::TypeOf<T>::value,    \
                       sim::at(dst), sim::at(src0), sim::at(src1), repeat, dst_block, src0_block, \
                       src1_block, dst_repeat, src0_repeat, src1_repeat, site);                   \
  }                                                                                               \
  inline void NAME(__ubuf__ D* dst, __ubuf__ T* src0, __ubuf__ T* src1, uint64_t config,          \
                   PA_SITE) {                                                                     \
    NAME(dst, src0, src1, sim::packed_repeats(config), sim::packed_byte(config, 0),               \
         sim::packed_byte(config, 8), sim::packed_byte(config, 16), sim::packed_byte(config, 24), \
         sim::packed_byte(config, 32), sim::packed_byte(config, 40), site);                       \
  }
#define PA_SIM_BINARY(NAME, WHAT, T) PA_SIM_BINARY_MIXED(NAME, WHAT, T, T)
#define PA_SIM_BINARY_FLOAT(NAME, WHAT) \
  PA_SIM_BINARY(NAME, WHAT, float)      \
  PA_SIM_BINARY(NAME, WHAT, half)
#define PA_SIM_BINARY_ARITHMETIC(NAME, WHAT) \
  PA_SIM_BINARY_FLOAT(NAME, WHAT)            \
  PA_SIM_BINARY(NAME, WHAT, int32_t)         \
  PA_SIM_BINARY(NAME, WHAT, int16_t)
PA_SIM_BINARY_ARITHMETIC(vadd, kAdd)
PA_SIM_BINARY_ARITHMETIC(vsub, kSub)
PA_SIM_BINARY_ARITHMETIC(vmul, kMul)
PA_SIM_BINARY_ARITHMETIC(vmax, kMax)
PA_SIM_BINARY_ARITHMETIC(vmin, kMin)
PA_SIM_BINARY_FLOAT(vdiv, kDiv)
PA_SIM_BINARY(vand, kAnd, int16_t)
PA_SIM_BINARY(vand, kAnd, uint16_t)
PA_SIM_BINARY(vor, kOr, int16_t)
PA_SIM_BINARY(vor, kOr, uint16_t)
PA_SIM_BINARY_FLOAT(vaddrelu, kAddRelu)
PA_SIM_BINARY(vaddrelu, kAddRelu, int16_t)
PA_SIM_BINARY_FLOAT(vsubrelu, kSubRelu)
PA_SIM_BINARY(vsubrelu, kSubRelu, int16_t)
PA_SIM_BINARY_FLOAT(vmla, kMla)  // dst = src0 * src1 + dst
PA_SIM_BINARY_MIXED(vmla, kMla, float, half)
PA_SIM_BINARY_FLOAT(vmadd, kMadd)  // dst = src0 * dst + src1
PA_SIM_BINARY_FLOAT(vmaddrelu, kMaddRelu)
#undef PA_SIM_BINARY_ARITHMETIC
#undef PA_SIM_BINARY_FLOAT
#undef PA_SIM_BINARY
#undef PA_SIM_BINARY_MIXED

// ---- One source
// ---------------------------------------------------------------------------------------

#define PA_SIM_UNARY(NAME, WHAT, T)                                                                \
  inline void NAME(__ubuf__ T* dst, __ubuf__ T* src, sim::F8 repeat, sim::F16 dst_block,           \
                   sim::F16 src_block, sim::F16 dst_repeat, sim::F16 src_repeat, PA_SITE) {        \
    sim::vector_unary(#NAME, sim::Vector::WHAT, sim::TypeOf<T>::value, sim::at(dst), sim::at(src), \
                      repeat, dst_block, src_block, dst_repeat, src_repeat, site);                 \
  }                                                                                                \
  inline void NAME(__ubuf__ T* dst, __ubuf__ T* src, uint64_t config, PA_SITE) {                   \
    NAME(dst, src, sim::packed_repeats(config), sim::packed_half(config, 0),                       \
         sim::packed_half(config, 16), sim::packed_byte(config, 32), sim::packed_byte(config, 40), \
         site);                                                                                    \
  }
#define PA_SIM_UNARY_FLOAT(NAME, WHAT) \
  PA_SIM_UNARY(NAME, WHAT, float)      \
  PA_SIM_UNARY(NAME, WHAT, half)
PA_SIM_UNARY_FLOAT(vabs, kAbs)
PA_SIM_UNARY_FLOAT(vexp, kExp)
PA_SIM_UNARY_FLOAT(vln, kLn)
PA_SIM_UNARY_FLOAT(vrec, kRec)
PA_SIM_UNARY_FLOAT(vsqrt, kSqrt)
PA_SIM_UNARY_FLOAT(vrsqrt, kRsqrt)
PA_SIM_UNARY_FLOAT(vrelu, kRelu)
PA_SIM_UNARY(vrelu, kRelu, int32_t)
PA_SIM_UNARY(vnot, kNot, int16_t)
PA_SIM_UNARY(vnot, kNot, uint16_t)
PA_SIM_UNARY(vcopy, kCopy, int16_t)
PA_SIM_UNARY(vcopy, kCopy, uint16_t)
PA_SIM_UNARY(vcopy, kCopy, int32_t)
PA_SIM_UNARY(vcopy, kCopy, uint32_t)
#undef PA_SIM_UNARY_FLOAT
#undef PA_SIM_UNARY

// ---- One source and a scalar
// --------------------------------------------------------------------------

#define PA_SIM_SCALAR_MIXED(NAME, WHAT, D, T)                                                      \
  inline void NAME(__ubuf__ D* dst, __ubuf__ T* src, T scalar, sim::F8 repeat, sim::F16 dst_block, \
                   sim::F16 src_block, sim::F16 dst_repeat, sim::F16 src_repeat, PA_SITE) {        \
    sim::vector_scalar(#NAME, sim::Vector::WHAT, sim::TypeOf<D>::value, sim::TypeOf<T>::value,     \
                       sim::at(dst), sim::at(src), sim::scalar_bits(scalar), repeat, dst_block,    \
                       src_block, dst_repeat, src_repeat, site);                                   \
  }                                                                                                \
  inline void NAME(__ubuf__ D* dst, __ubuf__ T* src, T scalar, uint64_t config, PA_SITE) {         \
    NAME(dst, src, scalar, sim::packed_repeats(config), sim::packed_half(config, 0),               \
         sim::packed_half(config, 16), sim::packed_byte(config, 32), sim::packed_byte(config, 40), \
         site);                                                                                    \
  }
#define PA_SIM_SCALAR(NAME, WHAT, T) PA_SIM_SCALAR_MIXED(NAME, WHAT, T, T)
#define PA_SIM_SCALAR_FLOAT(NAME, WHAT) \
  PA_SIM_SCALAR(NAME, WHAT, float)      \
  PA_SIM_SCALAR(NAME, WHAT, half)
#define PA_SIM_SCALAR_ARITHMETIC(NAME, WHAT) \
  PA_SIM_SCALAR_FLOAT(NAME, WHAT)            \
  PA_SIM_SCALAR(NAME, WHAT, int32_t)         \
  PA_SIM_SCALAR(NAME, WHAT, int16_t)
PA_SIM_SCALAR_ARITHMETIC(vadds, kAdds)
PA_SIM_SCALAR_ARITHMETIC(vmuls, kMuls)
PA_SIM_SCALAR_ARITHMETIC(vmaxs, kMaxs)
PA_SIM_SCALAR_ARITHMETIC(vmins, kMins)
PA_SIM_SCALAR_FLOAT(vlrelu, kLeakyRelu)
PA_SIM_SCALAR_FLOAT(vaxpy, kAxpy)  // dst = src * scalar + dst
PA_SIM_SCALAR_MIXED(vaxpy, kAxpy, float, half)
#undef PA_SIM_SCALAR_ARITHMETIC
#undef PA_SIM_SCALAR_FLOAT
#undef PA_SIM_SCALAR
#undef PA_SIM_SCALAR_MIXED

#define PA_SIM_SHIFT(T, DISTANCE)                                                                 \
  inline void vshl(__ubuf__ T* dst, __ubuf__ T* src, uint32_t distance, sim::F8 repeat,           \
                   sim::F16 dst_block, sim::F16 src_block, sim::F16 dst_repeat,                   \
                   sim::F16 src_repeat, PA_SITE) {                                                \
    sim::vector_scalar("vshl", sim::Vector::kShl, sim::TypeOf<T>::value, sim::TypeOf<T>::value,   \
                       sim::at(dst), sim::at(src), distance, repeat, dst_block, src_block,        \
                       dst_repeat, src_repeat, site);                                             \
  }                                                                                               \
  inline void vshr(__ubuf__ T* dst, __ubuf__ T* src, DISTANCE distance, sim::F8 repeat,           \
                   sim::F16 dst_block, sim::F16 src_block, sim::F16 dst_repeat,                   \
                   sim::F16 src_repeat, bool round, PA_SITE) {                                    \
    sim::vector_scalar("vshr", round ? sim::Vector::kShrRound : sim::Vector::kShr,                \
                       sim::TypeOf<T>::value, sim::TypeOf<T>::value, sim::at(dst), sim::at(src),  \
                       static_cast<uint32_t>(distance), repeat, dst_block, src_block, dst_repeat, \
                       src_repeat, site);                                                         \
  }
PA_SIM_SHIFT(int16_t, int32_t)
PA_SIM_SHIFT(int32_t, int32_t)
PA_SIM_SHIFT(uint16_t, uint32_t)
PA_SIM_SHIFT(uint32_t, uint32_t)
#undef PA_SIM_SHIFT

#define PA_SIM_DUP(T, REPEAT_STRIDE)                                                              \
  inline void vector_dup(__ubuf__ T* dst, T scalar, sim::F8 repeat, sim::F16 dst_block, sim::F16, \
                         REPEAT_STRIDE dst_repeat, REPEAT_STRIDE, PA_SITE) {                      \
    sim::vector_scalar("vector_dup", sim::Vector::kDup, sim::TypeOf<T>::value,                    \
                       sim::TypeOf<T>::value, sim::at(dst), 0, sim::scalar_bits(scalar), repeat,  \
                       dst_block, 0, dst_repeat.value, 0, site);                                  \
  }
PA_SIM_DUP(float, sim::F16)
PA_SIM_DUP(half, sim::F16)
PA_SIM_DUP(bfloat16_t, sim::F16)
PA_SIM_DUP(int16_t, sim::F16)
PA_SIM_DUP(uint16_t, sim::F16)
PA_SIM_DUP(int32_t, sim::F16)
PA_SIM_DUP(uint32_t, sim::F16)
#undef PA_SIM_DUP

// ---- Conversions
// --------------------------------------------------------------------------------------

// Suffix: r nearest even, a nearest with ties away from zero, f floor, c ceiling, z towards zero, o
// to odd.
#define PA_SIM_CONVERT(NAME, TO, FROM, ROUND)                                                      \
  inline void NAME(__ubuf__ TO* dst, __ubuf__ FROM* src, sim::F8 repeat, sim::F16 dst_block,       \
                   sim::F16 src_block, sim::F16 dst_repeat, sim::F16 src_repeat, PA_SITE) {        \
    sim::vector_convert(#NAME, sim::TypeOf<TO>::value, sim::TypeOf<FROM>::value,                   \
                        sim::Round::ROUND, sim::at(dst), sim::at(src), repeat, dst_block,          \
                        src_block, dst_repeat, src_repeat, site);                                  \
  }                                                                                                \
  inline void NAME(__ubuf__ TO* dst, __ubuf__ FROM* src, uint64_t config, PA_SITE) {               \
    NAME(dst, src, sim::packed_repeats(config), sim::packed_half(config, 0),                       \
         sim::packed_half(config, 16), sim::packed_byte(config, 32), sim::packed_byte(config, 40), \
         site);                                                                                    \
  }
#define PA_SIM_CONVERT_ROUNDED(NAME, TO, FROM) \
  PA_SIM_CONVERT(NAME##r, TO, FROM, kRint)     \
  PA_SIM_CONVERT(NAME##a, TO, FROM, kAway)     \
  PA_SIM_CONVERT(NAME##f, TO, FROM, kFloor)    \
  PA_SIM_CONVERT(NAME##c, TO, FROM, kCeil)     \
  PA_SIM_CONVERT(NAME##z, TO, FROM, kTrunc)
// No suffix: exact, or to nearest even (Ascend C, Cast: CAST_NONE).
PA_SIM_CONVERT(vconv_f162f32, float, half, kRint)
PA_SIM_CONVERT(vconv_bf162f32, float, bfloat16_t, kRint)
PA_SIM_CONVERT(vconv_f322f16, half, float, kRint)
PA_SIM_CONVERT_ROUNDED(vconv_f322f16, half, float)
PA_SIM_CONVERT(vconv_f322f16o, half, float, kOdd)
PA_SIM_CONVERT_ROUNDED(vconv_f322bf16, bfloat16_t, float)
PA_SIM_CONVERT_ROUNDED(vconv_f322f32, float, float)  // to a whole number
PA_SIM_CONVERT_ROUNDED(vconv_f322s32, int32_t, float)
PA_SIM_CONVERT_ROUNDED(vconv_f322s16, int16_t, float)
PA_SIM_CONVERT_ROUNDED(vconv_f162s32, int32_t, half)
PA_SIM_CONVERT_ROUNDED(vconv_f162s16, int16_t, half)
PA_SIM_CONVERT(vconv_f162s8, int8_t, half, kRint)
PA_SIM_CONVERT_ROUNDED(vconv_f162s8, int8_t, half)
PA_SIM_CONVERT(vconv_f162u8, uint8_t, half, kRint)
PA_SIM_CONVERT_ROUNDED(vconv_f162u8, uint8_t, half)
PA_SIM_CONVERT_ROUNDED(vconv_bf162s32, int32_t, bfloat16_t)
PA_SIM_CONVERT(vconv_s322f32, float, int32_t, kRint)
PA_SIM_CONVERT_ROUNDED(vconv_s322f32, float, int32_t)
PA_SIM_CONVERT(vconv_s322s16, int16_t, int32_t, kRint)
PA_SIM_CONVERT(vconv_s162f32, float, int16_t, kRint)
PA_SIM_CONVERT(vconv_s162f16, half, int16_t, kRint)
PA_SIM_CONVERT_ROUNDED(vconv_s162f16, half, int16_t)
PA_SIM_CONVERT(vconv_s82f16, half, int8_t, kRint)
PA_SIM_CONVERT(vconv_u82f16, half, uint8_t, kRint)
#undef PA_SIM_CONVERT_ROUNDED
#undef PA_SIM_CONVERT

inline void set_deqscale(half scale) { sim::set_register(sim::kDeqScale, scale.bits); }
inline void set_deqscale(uint64_t config) { sim::set_register(sim::kDeqScale, config); }
inline void vconv_deq(__ubuf__ half* dst, __ubuf__ int32_t* src, sim::F8 repeat, sim::F16 dst_block,
                      sim::F16 src_block, sim::F8 dst_repeat, sim::F8 src_repeat, PA_SITE) {
  sim::vector_dequantise("vconv_deq", sim::at(dst), sim::at(src), repeat, dst_block, src_block,
                         dst_repeat, src_repeat, site);
}
#define PA_SIM_REQUANTISE(NAME, T, UPPER, TABLE)                                                   \
  inline void NAME(__ubuf__ T* dst, __ubuf__ int16_t* src, sim::F8 repeat, sim::F16 dst_block,     \
                   sim::F16 src_block, sim::F8 dst_repeat, sim::F8 src_repeat, PA_SITE) {          \
    sim::vector_requantise(#NAME, sim::TypeOf<T>::value, UPPER, TABLE, sim::at(dst), sim::at(src), \
                           repeat, dst_block, src_block, dst_repeat, src_repeat, site);            \
  }
PA_SIM_REQUANTISE(vconv_deqs162b8h, int8_t, true, false)
PA_SIM_REQUANTISE(vconv_deqs162b8h, uint8_t, true, false)
PA_SIM_REQUANTISE(vconv_deqs162b8l, int8_t, false, false)
PA_SIM_REQUANTISE(vconv_deqs162b8l, uint8_t, false, false)
PA_SIM_REQUANTISE(vconv_vdeqs162b8h, int8_t, true, true)
PA_SIM_REQUANTISE(vconv_vdeqs162b8h, uint8_t, true, true)
PA_SIM_REQUANTISE(vconv_vdeqs162b8l, int8_t, false, true)
PA_SIM_REQUANTISE(vconv_vdeqs162b8l, uint8_t, false, true)
#undef PA_SIM_REQUANTISE

// ---- Reductions
// ---------------------------------------------------------------------------------------

#define PA_SIM_REDUCE(T)                                                                         \
  inline void vcmax(__ubuf__ T* dst, __ubuf__ T* src, sim::F8 repeat, sim::F16 dst_repeat,       \
                    sim::F16 src_block, sim::F16 src_repeat, Order_t order, PA_SITE) {           \
    sim::vector_reduce("vcmax", sim::Vector::kReduceMax, sim::TypeOf<T>::value, order,           \
                       sim::at(dst), sim::at(src), repeat, dst_repeat, src_block, src_repeat,    \
                       site);                                                                    \
  }                                                                                              \
  inline void vcmin(__ubuf__ T* dst, __ubuf__ T* src, sim::F8 repeat, sim::F16 dst_repeat,       \
                    sim::F16 src_block, sim::F16 src_repeat, Order_t order, PA_SITE) {           \
    sim::vector_reduce("vcmin", sim::Vector::kReduceMin, sim::TypeOf<T>::value, order,           \
                       sim::at(dst), sim::at(src), repeat, dst_repeat, src_block, src_repeat,    \
                       site);                                                                    \
  }                                                                                              \
  inline void vcadd(__ubuf__ T* dst, __ubuf__ T* src, sim::F8 repeat, sim::F16 dst_repeat,       \
                    sim::F16 src_block, sim::F16 src_repeat, bool mode, PA_SITE) {               \
    if (mode) {                                                                                  \
      sim::vector_accumulate("vcadd", sim::TypeOf<T>::value, sim::at(dst), sim::at(src), repeat, \
                             src_block, src_repeat, site);                                       \
    } else {                                                                                     \
      sim::vector_reduce("vcadd", sim::Vector::kReduceAdd, sim::TypeOf<T>::value, ONLY_VALUE,    \
                         sim::at(dst), sim::at(src), repeat, dst_repeat, src_block, src_repeat,  \
                         site);                                                                  \
    }                                                                                            \
  }                                                                                              \
  inline void vcadd(__ubuf__ T* dst, __ubuf__ T* src, sim::F8 repeat, sim::F16 dst_repeat,       \
                    sim::F16 src_block, sim::F16 src_repeat, PA_SITE) {                          \
    vcadd(dst, src, repeat, dst_repeat, src_block, src_repeat, false, site);                     \
  }
PA_SIM_REDUCE(float)
PA_SIM_REDUCE(half)
#undef PA_SIM_REDUCE

#define PA_SIM_REDUCE_PART(NAME, WHAT, T)                                                   \
  inline void NAME(__ubuf__ T* dst, __ubuf__ T* src, sim::F8 repeat, sim::F16 dst_repeat,   \
                   sim::F16 src_block, sim::F16 src_repeat, PA_SITE) {                      \
    sim::vector_reduce_part(#NAME, sim::Vector::WHAT, sim::TypeOf<T>::value, sim::at(dst),  \
                            sim::at(src), repeat, dst_repeat, src_block, src_repeat, site); \
  }
PA_SIM_REDUCE_PART(vcgadd, kBlockAdd, float)
PA_SIM_REDUCE_PART(vcgadd, kBlockAdd, half)
PA_SIM_REDUCE_PART(vcgmax, kBlockMax, float)
PA_SIM_REDUCE_PART(vcgmax, kBlockMax, half)
PA_SIM_REDUCE_PART(vcgmin, kBlockMin, float)
PA_SIM_REDUCE_PART(vcgmin, kBlockMin, half)
PA_SIM_REDUCE_PART(vcpadd, kPairAdd, float)
PA_SIM_REDUCE_PART(vcpadd, kPairAdd, half)
#undef PA_SIM_REDUCE_PART

inline int64_t get_acc_val() { return sim::accumulated_value(); }
inline int64_t get_max_min_cnt() { return sim::extreme_and_index(); }
inline int64_t get_rsvd_cnt() { return sim::squeezed_count(); }

// ---- Comparison and selection
// -------------------------------------------------------------------------

// vcmp writes the compare mask register, vcmpv and vcmpvs a bit a lane to UB.
#define PA_SIM_COMPARE(SUFFIX, WHAT, T)                                                            \
  inline void vcmp_##SUFFIX(__ubuf__ T* src0, __ubuf__ T* src1, sim::F8 repeat, sim::F8 dst_block, \
                            sim::F8 src0_block, sim::F8 src1_block, sim::F8 dst_repeat,            \
                            sim::F8 src0_repeat, sim::F8 src1_repeat, PA_SITE) {                   \
    sim::vector_compare("vcmp_" #SUFFIX, sim::Compare::WHAT, sim::TypeOf<T>::value, sim::at(src0), \
                        sim::at(src1), repeat, dst_block, src0_block, src1_block, dst_repeat,      \
                        src0_repeat, src1_repeat, site);                                           \
  }
#define PA_SIM_COMPARE_TO(SUFFIX, WHAT, T)                                                      \
  inline void vcmpv_##SUFFIX(__ubuf__ uint8_t* dst, __ubuf__ T* src0, __ubuf__ T* src1,         \
                             sim::F8 repeat, sim::F8 dst_block, sim::F8 src0_block,             \
                             sim::F8 src1_block, sim::F8 dst_repeat, sim::F8 src0_repeat,       \
                             sim::F8 src1_repeat, PA_SITE) {                                    \
    sim::vector_compare_to("vcmpv_" #SUFFIX, sim::Compare::WHAT, sim::TypeOf<T>::value,         \
                           sim::at(dst), sim::at(src0), sim::at(src1), repeat, dst_block,       \
                           src0_block, src1_block, dst_repeat, src0_repeat, src1_repeat, site); \
  }                                                                                             \
  inline void vcmpvs_##SUFFIX(__ubuf__ uint8_t* dst, __ubuf__ T* src, T scalar, sim::F8 repeat, \
                              sim::F16 dst_block, sim::F16 src_block, sim::F16 dst_repeat,      \
                              sim::F16 src_repeat, PA_SITE) {                                   \
    sim::vector_compare_scalar("vcmpvs_" #SUFFIX, sim::Compare::WHAT, sim::TypeOf<T>::value,    \
                               sim::at(dst), sim::at(src), sim::scalar_bits(scalar), repeat,    \
                               dst_block, src_block, dst_repeat, src_repeat, site);             \
  }
#define PA_SIM_COMPARE_ALL(SUFFIX, WHAT) \
  PA_SIM_COMPARE(SUFFIX, WHAT, float)    \
  PA_SIM_COMPARE(SUFFIX, WHAT, half)     \
  PA_SIM_COMPARE_TO(SUFFIX, WHAT, float) \
  PA_SIM_COMPARE_TO(SUFFIX, WHAT, half)
PA_SIM_COMPARE_ALL(eq, kEq)
PA_SIM_COMPARE_ALL(ne, kNe)
PA_SIM_COMPARE_ALL(lt, kLt)
PA_SIM_COMPARE_ALL(gt, kGt)
PA_SIM_COMPARE_ALL(le, kLe)
PA_SIM_COMPARE_ALL(ge, kGe)
PA_SIM_COMPARE_TO(eq, kEq, int32_t)
#undef PA_SIM_COMPARE_ALL
#undef PA_SIM_COMPARE_TO
#undef PA_SIM_COMPARE

inline void set_cmpmask(__ubuf__ void* src, PA_SITE) { sim::set_compare_mask(sim::at(src), site); }
inline void get_cmpmask(__ubuf__ void* dst, PA_SITE) { sim::get_compare_mask(sim::at(dst), site); }

#define PA_SIM_SELECT(T, U)                                                                       \
  inline void vsel(__ubuf__ T* dst, __ubuf__ T* src0, __ubuf__ U* src1, sim::F8 repeat,           \
                   sim::F8 dst_block, sim::F8 src0_block, sim::F8 src1_block, sim::F8 dst_repeat, \
                   sim::F8 src0_repeat, sim::F8 src1_repeat, uint8_t mode, PA_SITE) {             \
    /* Lanes or bits as second source decide which modes make sense. */                           \
    if (mode > 2 || std::is_same_v<T, U> == (mode == 1))                                          \
      sim::not_modelled("vsel in this mode", site);                                               \
    sim::vector_select("vsel", mode, sim::TypeOf<T>::value, sim::at(dst), sim::at(src0),          \
                       sim::at(src1), repeat, dst_block, src0_block, src1_block, dst_repeat,      \
                       src0_repeat, src1_repeat, site);                                           \
  }                                                                                               \
  inline void vsel(__ubuf__ T* dst, __ubuf__ T* src0, __ubuf__ U* src1, sim::F8 repeat,           \
                   sim::F8 dst_block, sim::F8 src0_block, sim::F8 src1_block, sim::F8 dst_repeat, \
                   sim::F8 src0_repeat, sim::F8 src1_repeat, PA_SITE) {                           \
    vsel(dst, src0, src1, repeat, dst_block, src0_block, src1_block, dst_repeat, src0_repeat,     \
         src1_repeat, uint8_t{0}, site);                                                          \
  }
PA_SIM_SELECT(float, float)
PA_SIM_SELECT(float, void)
PA_SIM_SELECT(half, half)
PA_SIM_SELECT(half, void)
#undef PA_SIM_SELECT

// ---- Spreading and collecting
// -------------------------------------------------------------------------

#define PA_SIM_MOVE(T)                                                                           \
  inline void vbrcb(__ubuf__ T* dst, __ubuf__ T* src, sim::F16 dst_block, sim::F16 dst_repeat,   \
                    sim::F8 repeat, PA_SITE) {                                                   \
    sim::vector_broadcast("vbrcb", sim::TypeOf<T>::value, sim::at(dst), sim::at(src), dst_block, \
                          dst_repeat, repeat, site);                                             \
  }                                                                                              \
  inline void vgather(__ubuf__ T* dst, __ubuf__ uint32_t* offsets, sim::F32 base,                \
                      sim::F16 dst_repeat, sim::F8 repeat, PA_SITE) {                            \
    sim::vector_gather("vgather", sim::TypeOf<T>::value, sim::at(dst), sim::at(offsets), base,   \
                       dst_repeat, repeat, site);                                                \
  }                                                                                              \
  inline void vgatherb(__ubuf__ T* dst, __ubuf__ uint32_t* offsets, sim::F32 base,               \
                       sim::F16 dst_repeat, sim::F8 dst_block, sim::F8 repeat, PA_SITE) {        \
    sim::vector_gather_blocks("vgatherb", sim::at(dst), sim::at(offsets), base, dst_repeat,      \
                              dst_block, repeat, site);                                          \
  }                                                                                              \
  inline void vreducev2(__ubuf__ T* dst, __ubuf__ T* src0, __ubuf__ T* src1, sim::F16 repeat,    \
                        sim::F8 src0_block, sim::F8 pattern, sim::F16 src0_repeat,               \
                        sim::F8 src1_repeat, PA_SITE) {                                          \
    sim::vector_squeeze("vreducev2", sim::TypeOf<T>::value, sim::at(dst), sim::at(src0),         \
                        sim::at(src1), repeat, src0_block, pattern, src0_repeat, src1_repeat,    \
                        site);                                                                   \
  }
PA_SIM_MOVE(uint16_t)
PA_SIM_MOVE(uint32_t)
#undef PA_SIM_MOVE

inline void vtranspose(__ubuf__ int16_t* dst, __ubuf__ int16_t* src, PA_SITE) {
  sim::vector_transpose("vtranspose", sim::at(dst), sim::at(src), site);
}
inline void vtranspose(__ubuf__ uint16_t* dst, __ubuf__ uint16_t* src, PA_SITE) {
  sim::vector_transpose("vtranspose", sim::at(dst), sim::at(src), site);
}

// ---- Not modelled
// -------------------------------------------------------------------------------------

#define PA_SIM_NOT_MODELLED_CONVERT(NAME, TO, FROM)                                               \
  inline void NAME(__ubuf__ TO*, __ubuf__ FROM*, sim::F8, sim::F16, sim::F16, sim::F16, sim::F16, \
                   PA_SITE) {                                                                     \
    sim::not_modelled(#NAME, site);                                                               \
  }
PA_SIM_NOT_MODELLED_CONVERT(vconv_s322s64, int64_t, int32_t)
PA_SIM_NOT_MODELLED_CONVERT(vconv_s642s32, int32_t, int64_t)
PA_SIM_NOT_MODELLED_CONVERT(vconv_f322s64r, int64_t, float)
PA_SIM_NOT_MODELLED_CONVERT(vconv_f322s64a, int64_t, float)
PA_SIM_NOT_MODELLED_CONVERT(vconv_f322s64f, int64_t, float)
PA_SIM_NOT_MODELLED_CONVERT(vconv_f322s64c, int64_t, float)
PA_SIM_NOT_MODELLED_CONVERT(vconv_f322s64z, int64_t, float)
PA_SIM_NOT_MODELLED_CONVERT(vconv_s642f32r, float, int64_t)
PA_SIM_NOT_MODELLED_CONVERT(vconv_s642f32a, float, int64_t)
PA_SIM_NOT_MODELLED_CONVERT(vconv_s642f32f, float, int64_t)
PA_SIM_NOT_MODELLED_CONVERT(vconv_s642f32c, float, int64_t)
PA_SIM_NOT_MODELLED_CONVERT(vconv_s642f32z, float, int64_t)
#undef PA_SIM_NOT_MODELLED_CONVERT

#define PA_SIM_NOT_MODELLED_BINARY(NAME, D, T, ...)                                           \
  inline void NAME(__ubuf__ D*, __ubuf__ T*, __ubuf__ T*, sim::F8, sim::F8, sim::F8, sim::F8, \
                   sim::F8, sim::F8, sim::F8, ##__VA_ARGS__, PA_SITE) {                       \
    sim::not_modelled(#NAME, site);                                                           \
  }
PA_SIM_NOT_MODELLED_BINARY(vmulconv_f162s8, int8_t, half)
PA_SIM_NOT_MODELLED_BINARY(vmulconv_f162u8, uint8_t, half)
PA_SIM_NOT_MODELLED_BINARY(vaddreluconv_f162s8, int8_t, half, bool)
PA_SIM_NOT_MODELLED_BINARY(vaddreluconv_f322f16, half, float, bool)
PA_SIM_NOT_MODELLED_BINARY(vaddreluconv_s162s8, int8_t, int16_t, bool)
PA_SIM_NOT_MODELLED_BINARY(vsubreluconv_f162s8, int8_t, half, bool)
PA_SIM_NOT_MODELLED_BINARY(vsubreluconv_f322f16, half, float, bool)
PA_SIM_NOT_MODELLED_BINARY(vsubreluconv_s162s8, int8_t, int16_t, bool)
#undef PA_SIM_NOT_MODELLED_BINARY

enum ub_addr8_t { VA0 = 0, VA1, VA2, VA3, VA4, VA5, VA6, VA7 };
inline void set_va_reg_sb(ub_addr8_t, uint64_t*, PA_SITE) {
  sim::not_modelled("set_va_reg_sb", site);
}
inline void scatter_vnchwconv_b8(ub_addr8_t, ub_addr8_t, sim::F8, sim::F16, sim::F16, bool, bool,
                                 PA_SITE) {
  sim::not_modelled("scatter_vnchwconv_b8", site);
}
inline void scatter_vnchwconv_b16(ub_addr8_t, ub_addr8_t, sim::F8, sim::F16, sim::F16, PA_SITE) {
  sim::not_modelled("scatter_vnchwconv_b16", site);
}
inline void scatter_vnchwconv_b32(ub_addr8_t, ub_addr8_t, sim::F8, sim::F16, sim::F16, PA_SITE) {
  sim::not_modelled("scatter_vnchwconv_b32", site);
}
#define PA_SIM_NOT_MODELLED_SORT(T)                                                      \
  inline void vbitsort(__ubuf__ T*, __ubuf__ T*, __ubuf__ uint32_t*, sim::F8, PA_SITE) { \
    sim::not_modelled("vbitsort", site);                                                 \
  }                                                                                      \
  inline void vmrgsort4(__ubuf__ T*, __ubuf__ T**, uint64_t, uint64_t, PA_SITE) {        \
    sim::not_modelled("vmrgsort4", site);                                                \
  }
PA_SIM_NOT_MODELLED_SORT(float)
PA_SIM_NOT_MODELLED_SORT(half)
#undef PA_SIM_NOT_MODELLED_SORT
