// Vector builtins: the runtime's side (vector.cpp). Included by abi.h.
#pragma once

namespace sim {

enum class Binary { kAdd, kSub, kMul, kDiv, kMax, kMin };
void vector_binary(const char* name, Binary what, Type type, uint64_t dst, uint64_t src0, uint64_t src1,
                   F8 repeat, F8 dst_block, F8 src0_block, F8 src1_block, F8 dst_repeat, F8 src0_repeat,
                   F8 src1_repeat, Site site);

}  // namespace sim
