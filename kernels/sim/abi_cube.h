// Cube builtins: the runtime's side (cube.cpp). Included by abi.h.
#pragma once

namespace sim {

// 512-byte fractals to L0A or L0B, or from GM to L1. `size` is the element's.
enum class Load { kL1ToL0a, kL1ToL0b, kGmToL0a, kGmToL0b, kGmToL1 };
void load_fractals(const char* name, Load way, int size, uint64_t dst, uint64_t src, F16 base,
                   F8 repeat, F16 src_stride, F16 dst_gap, bool transpose, int decrement,
                   Site site);

// Square tiles, transposed: 16x16 of two or four bytes, 32x32 of one.
void load_transposed(const char* name, Load way, int size, uint64_t dst, uint64_t src, F16 base,
                     F8 repeat, F16 src_stride, F16 dst_gap, bool decrement, F16 dst_fractal_gap,
                     Site site);

// C (+)= A B. `input` is the type of A and B; C is int32_t for kI8 and float else.
void mad(Type input, uint64_t c, uint64_t a, uint64_t b, F16 m, F16 k, F16 n, F8 unit_flag,
         bool k_direction_align, bool from_bias, bool from_zero, Site site);

// L0C to GM or L1. `from` is the type in L0C.
struct Fixpipe {
  const char* name;
  bool to_gm;
  Type to;
  Type from;
  Site site;
};
void fixpipe(const Fixpipe& what, uint64_t dst, uint64_t src, F16 columns, F16 rows, F32 dst_stride,
             F16 src_stride, F8 unit_flag, int quant, F8 relu, bool channel_split, bool nz_to_nd);
void fixpipe_packed(const Fixpipe& what, uint64_t dst, uint64_t src, uint64_t xm, uint64_t xt);

}  // namespace sim
