// Vector builtins.
#include <cmath>
#include <cstring>

#include "build_op.h"
#include "include/cce.h"

namespace sim {
namespace {

// One repeat is eight 32-byte blocks. An operand's element e of repeat r lies at
// base + (r * repeat_stride + e / per_block * block_stride) * 32 + e % per_block * size.
struct Lanes {
  int repeats;
  int per_repeat;  // elements of the widest type
};

// Repeats, and in the last one the elements, that the mask leaves; see Op::mask and Op::counted.
bool lane_on(const Op& op, int repeat, int element, int per_repeat) {
  if (op.counted) return static_cast<uint64_t>(repeat) * per_repeat + element < op.mask[0];
  return op.mask[element >> 6] >> (element & 63) & 1;
}

template <class T, class F>
void each_binary(Core& core, const Op& op, F f) {
  constexpr int kPerBlock = kBlock / sizeof(T);
  constexpr int kPerRepeat = 8 * kPerBlock;
  const auto at = [&](int i, int64_t r, int e) {
    const Access& a = op.access[i];
    return place<T>(core, a) + (r * a.outer_stride + e / kPerBlock * a.inner_stride) / int64_t{sizeof(T)} +
           e % kPerBlock;
  };
  const int64_t repeats = op.arg[0];
  for (int64_t r = 0; r < repeats; ++r) {
    for (int e = 0; e < kPerRepeat; ++e) {
      if (lane_on(op, r, e, kPerRepeat)) *at(2, r, e) = f(*at(0, r, e), *at(1, r, e));
    }
  }
}

}  // namespace

void vector_binary(const char* name, Binary what, Type type, uint64_t dst, uint64_t src0, uint64_t src1,
                   F8 repeat, F8 dst_block, F8 src0_block, F8 src1_block, F8 dst_repeat, F8 src0_repeat,
                   F8 src1_repeat, Site site) {
  (void)what, (void)type, (void)dst, (void)src0, (void)src1, (void)repeat, (void)dst_block;
  (void)src0_block, (void)src1_block, (void)dst_repeat, (void)src0_repeat, (void)src1_repeat;
  not_modelled(name, site);
}

}  // namespace sim
