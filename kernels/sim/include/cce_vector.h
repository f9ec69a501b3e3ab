// Vector builtins (PIPE_V). Strides and repeats: intrinsics table in docs/simulator.md.
#pragma once

#define PA_SIM_BINARY(NAME, WHAT, T)                                                                  \
  inline void NAME(__ubuf__ T* dst, __ubuf__ T* src0, __ubuf__ T* src1, sim::F8 repeat,                \
                   sim::F8 dst_block, sim::F8 src0_block, sim::F8 src1_block, sim::F8 dst_repeat,      \
                   sim::F8 src0_repeat, sim::F8 src1_repeat, PA_SITE) {                                \
    sim::vector_binary(#NAME, sim::Binary::WHAT, sim::TypeOf<T>::value, sim::at(dst), sim::at(src0),   \
                       sim::at(src1), repeat, dst_block, src0_block, src1_block, dst_repeat,           \
                       src0_repeat, src1_repeat, site);                                                \
  }
#define PA_SIM_BINARY_ARITHMETIC(NAME, WHAT) \
  PA_SIM_BINARY(NAME, WHAT, float)           \
  PA_SIM_BINARY(NAME, WHAT, half)            \
  PA_SIM_BINARY(NAME, WHAT, int32_t)         \
  PA_SIM_BINARY(NAME, WHAT, int16_t)
PA_SIM_BINARY_ARITHMETIC(vadd, kAdd)
PA_SIM_BINARY_ARITHMETIC(vsub, kSub)
PA_SIM_BINARY_ARITHMETIC(vmul, kMul)
PA_SIM_BINARY_ARITHMETIC(vmax, kMax)
PA_SIM_BINARY_ARITHMETIC(vmin, kMin)
PA_SIM_BINARY(vdiv, kDiv, float)
PA_SIM_BINARY(vdiv, kDiv, half)
#undef PA_SIM_BINARY_ARITHMETIC
#undef PA_SIM_BINARY
