// Vector builtins: the runtime's side (vector.cpp, convert.cpp, reduce.cpp). Included by abi.h.
#pragma once

namespace sim {

// What a vector builtin does to its lanes; also the index of its cost (vector.cpp).
enum class Vector : uint8_t {
  // Two sources
  kAdd,
  kSub,
  kMul,
  kDiv,
  kMax,
  kMin,
  kAnd,
  kOr,
  kAddRelu,
  kSubRelu,
  kMla,
  kMadd,
  kMaddRelu,
  // One source
  kAbs,
  kExp,
  kLn,
  kRec,
  kSqrt,
  kRsqrt,
  kRelu,
  kNot,
  kCopy,
  // One source and a scalar
  kAdds,
  kMuls,
  kMaxs,
  kMins,
  kLeakyRelu,
  kAxpy,
  kShl,
  kShr,
  kShrRound,
  kDup,
  // Reductions
  kReduceAdd,
  kReduceMax,
  kReduceMin,
  kBlockAdd,
  kBlockMax,
  kBlockMin,
  kPairAdd,
  // Others
  kConvert,
  kCompare,
  kSelect,
  kSetMask,
  kGetMask,
  kBroadcast,
  kGather,
  kGatherBlocks,
  kSqueeze,
  kTranspose,
  kCount
};
enum class Compare : uint8_t { kEq, kNe, kLt, kGt, kLe, kGe };
enum class Round : uint8_t { kRint, kAway, kFloor, kCeil, kTrunc, kOdd };

// Strides are in blocks of 32 bytes unless their function says otherwise.
void vector_binary(const char* name, Vector what, Type to, Type from, uint64_t dst, uint64_t src0,
                   uint64_t src1, F8 repeat, F8 dst_block, F8 src0_block, F8 src1_block,
                   F8 dst_repeat, F8 src0_repeat, F8 src1_repeat, Site site);
void vector_unary(const char* name, Vector what, Type type, uint64_t dst, uint64_t src, F8 repeat,
                  F16 dst_block, F16 src_block, F16 dst_repeat, F16 src_repeat, Site site);
// `scalar`: the bits of a value of type `from`; for shifts the distance. vector_dup has no source.
void vector_scalar(const char* name, Vector what, Type to, Type from, uint64_t dst, uint64_t src,
                   uint32_t scalar, F8 repeat, F16 dst_block, F16 src_block, F16 dst_repeat,
                   F16 src_repeat, Site site);

void vector_convert(const char* name, Type to, Type from, Round round, uint64_t dst, uint64_t src,
                    F8 repeat, F16 dst_block, F16 src_block, F16 dst_repeat, F16 src_repeat,
                    Site site);
// int32 -> half by the scale in the deqscale register.
void vector_dequantise(const char* name, uint64_t dst, uint64_t src, F8 repeat, F16 dst_block,
                       F16 src_block, F8 dst_repeat, F8 src_repeat, Site site);
// int16 -> (u)int8 into the lower or upper half of each block; `table`: a parameter set for each of
// the sixteen places of a block, in UB where the register points.
void vector_requantise(const char* name, Type to, bool upper, bool table, uint64_t dst,
                       uint64_t src, F8 repeat, F16 dst_block, F16 src_block, F8 dst_repeat,
                       F8 src_repeat, Site site);

// One result a repeat. `order` is Order_t's number; dst_repeat counts results.
void vector_reduce(const char* name, Vector what, Type type, int order, uint64_t dst, uint64_t src,
                   F8 repeat, F16 dst_repeat, F16 src_block, F16 src_repeat, Site site);
// vcadd's mode 1: one sum over all repeats, for get_acc_val.
void vector_accumulate(const char* name, Type type, uint64_t dst, uint64_t src, F8 repeat,
                       F16 src_block, F16 src_repeat, Site site);
// One result a block, or a pair of lanes; dst_repeat counts the results of a repeat.
void vector_reduce_part(const char* name, Vector what, Type type, uint64_t dst, uint64_t src,
                        F8 repeat, F16 dst_repeat, F16 src_block, F16 src_repeat, Site site);

void vector_compare(const char* name, Compare what, Type type, uint64_t src0, uint64_t src1,
                    F8 repeat, F8 dst_block, F8 src0_block, F8 src1_block, F8 dst_repeat,
                    F8 src0_repeat, F8 src1_repeat, Site site);
void vector_compare_to(const char* name, Compare what, Type type, uint64_t dst, uint64_t src0,
                       uint64_t src1, F8 repeat, F8 dst_block, F8 src0_block, F8 src1_block,
                       F8 dst_repeat, F8 src0_repeat, F8 src1_repeat, Site site);
void vector_compare_scalar(const char* name, Compare what, Type type, uint64_t dst, uint64_t src,
                           uint32_t scalar, F8 repeat, F16 dst_block, F16 src_block, F16 dst_repeat,
                           F16 src_repeat, Site site);
void set_compare_mask(uint64_t src, Site site);
void get_compare_mask(uint64_t dst, Site site);
void vector_select(const char* name, int mode, Type type, uint64_t dst, uint64_t src0,
                   uint64_t src1, F8 repeat, F8 dst_block, F8 src0_block, F8 src1_block,
                   F8 dst_repeat, F8 src0_repeat, F8 src1_repeat, Site site);

void vector_broadcast(const char* name, Type type, uint64_t dst, uint64_t src, F16 dst_block,
                      F16 dst_repeat, F8 repeat, Site site);
void vector_gather(const char* name, Type type, uint64_t dst, uint64_t offsets, F32 base,
                   F16 dst_repeat, F8 repeat, Site site);
void vector_gather_blocks(const char* name, uint64_t dst, uint64_t offsets, F32 base,
                          F16 dst_repeat, F8 dst_block, F8 repeat, Site site);
void vector_squeeze(const char* name, Type type, uint64_t dst, uint64_t src0, uint64_t src1,
                    F16 repeat, F8 src0_block, F8 pattern, F16 src0_repeat, F8 src1_repeat,
                    Site site);
void vector_transpose(const char* name, uint64_t dst, uint64_t src, Site site);

// What the last reduction or squeeze has left in registers.
int64_t accumulated_value();
int64_t extreme_and_index();
int64_t squeezed_count();

}  // namespace sim
