// Data movement.
#include <cstring>

#include "build_op.h"
#include "include/cce.h"

namespace sim {
namespace {

// Cycles of a transfer apart from its GM traffic. GM fixed parts and UB to UB: estimates that fit
// the published times of a paged-attention kernel (docs/simulator.md); fill: assumed, as UB to UB.
constexpr float kGmToL1Fixed = 50;
constexpr float kGmToUbFixed = 30;
constexpr float kStoreFixed = 30;
constexpr float kLocalFixed = 18;
constexpr float kLocalBytes = 256;  // a cycle

struct Route {
  Pipe pipe;
  Mem from;
  Mem to;
  float fixed;
};

Route route(Path path) {
  switch (path) {
    case Path::kGmToUb:
      return {kMte2, kGm, kUb, kGmToUbFixed};
    case Path::kUbToGm:
      return {kMte3, kUb, kGm, kStoreFixed};
    case Path::kUbToUb:
      return {kV, kUb, kUb, kLocalFixed};
    case Path::kGmToL1:
      return {kMte2, kGm, kL1, kGmToL1Fixed};
    case Path::kL1ToGm:
      return {kMte3, kL1, kGm, kStoreFixed};
  }
  return {};
}

// One stretch where a row of them leaves no gaps: fewer to check.
void close_gaps(Access& access) {
  const uint64_t whole = uint64_t{access.bytes} * access.inner;
  if (access.inner_stride != access.bytes || whole > UINT32_MAX) return;
  access.bytes = static_cast<uint32_t>(whole);
  access.inner = 1;
}

void mark_atomic(Op& op, Access& to) {
  op.arg[0] = g_launch->current().registers[kAtomic];
  to.atomic = atomic_type(op.arg[0]) != Type::kNone;
}

// Access 0 is the source, access 1 the destination. Arguments: atomic state, then stretches, their
// length and the strides of both sides, which the accesses may have lost by merging.
void copy_stretches(Core& core, const Op& op) {
  const uint8_t* source = place<uint8_t>(core, op.access[0]);
  uint8_t* target = place<uint8_t>(core, op.access[1]);
  const int64_t count = op.arg[1], bytes = op.arg[2];
  const bool atomic = op.access[1].atomic;
  for (int64_t i = 0; i < count; ++i) {
    if (atomic) {
      atomic_store(op.arg[0], target, source, bytes);
    } else {
      std::memmove(target, source, bytes);
    }
    source += op.arg[3];
    target += op.arg[4];
  }
}

void issue_copy(Op& op, Mem from_mem, Mem to_mem, uint64_t src, uint64_t dst, int64_t count,
                int64_t bytes, int64_t src_stride, int64_t dst_stride) {
  Access& from = op.add(from_mem, false, src, static_cast<uint32_t>(bytes));
  Access& to = op.add(to_mem, true, dst, static_cast<uint32_t>(bytes));
  from.inner = to.inner = static_cast<uint32_t>(count);
  from.inner_stride = src_stride;
  to.inner_stride = dst_stride;
  op.arg[1] = count;
  op.arg[2] = bytes;
  op.arg[3] = src_stride;
  op.arg[4] = dst_stride;
  close_gaps(from);
  close_gaps(to);
  if (to_mem == kGm) mark_atomic(op, to);
  op.execute = copy_stretches;
  g_launch->issue(op);
}

// Arguments: bursts, bytes, bytes of left and right padding, the slot of a burst in UB, source and
// destination strides, pad value, element size.
void copy_padded(Core& core, const Op& op) {
  const uint8_t* source = place<uint8_t>(core, op.access[0]);
  uint8_t* target = place<uint8_t>(core, op.access[1]);
  const int64_t bytes = op.arg[1], left = op.arg[2], right = op.arg[3], slot = op.arg[4];
  const int64_t size = op.arg[8];
  uint8_t pad[8];
  std::memcpy(pad, &op.arg[7], sizeof(pad));
  for (int64_t i = 0; i < op.arg[0]; ++i) {
    for (int64_t at = 0; at < left; at += size) std::memcpy(target + at, pad, size);
    std::memcpy(target + left, source, bytes);
    uint8_t* tail = target + left + bytes;
    for (int64_t at = 0; at < right; at += size) std::memcpy(tail + at, pad, size);
    // What fills the slot up to its end is unspecified.
    std::memset(tail + right, g_launch->options().poison, slot - left - bytes - right);
    source += op.arg[5];
    target += op.arg[6];
  }
}

// Arguments: rows, bytes of a row, source row stride, destination column and row strides, in bytes.
void copy_to_nz(Core& core, const Op& op) {
  const uint8_t* source = place<uint8_t>(core, op.access[0]);
  uint8_t* target = place<uint8_t>(core, op.access[1]);
  const int64_t bytes = op.arg[1];
  const int64_t whole = bytes / kBlock, rest = bytes % kBlock;
  for (int64_t row = 0; row < op.arg[0]; ++row) {
    uint8_t* to = target + row * op.arg[4];
    const uint8_t* from = source + row * op.arg[2];
    for (int64_t column = 0; column < whole; ++column) {
      std::memcpy(to, from, kBlock);
      to += op.arg[3];
      from += kBlock;
    }
    if (rest != 0) {  // filled up with zeros (Ascend C, DataCopy GM to L1 with ND2NZ)
      std::memset(to, 0, kBlock);
      std::memcpy(to, from, rest);
    }
  }
}

// Arguments: stretches, bytes of each, stride, value, bytes of the value.
void fill_stretches(Core& core, const Op& op) {
  uint8_t* target = place<uint8_t>(core, op.access[0]);
  const auto value = static_cast<uint32_t>(op.arg[3]);
  for (int64_t i = 0; i < op.arg[0]; ++i) {
    for (int64_t at = 0; at < op.arg[1]; at += op.arg[4]) {
      std::memcpy(target + i * op.arg[2] + at, &value, op.arg[4]);
    }
  }
}

template <class T, class F>
void combine(uint8_t* to, const uint8_t* from, uint64_t count, F f) {
  for (uint64_t i = 0; i < count; ++i) {
    T old, fresh;
    std::memcpy(&old, to + i * sizeof(T), sizeof(T));
    std::memcpy(&fresh, from + i * sizeof(T), sizeof(T));
    const T sum = f(old, fresh);
    std::memcpy(to + i * sizeof(T), &sum, sizeof(T));
  }
}

template <class T>
void combine(Atomic what, uint8_t* to, const uint8_t* from, uint64_t bytes) {
  using Wide = std::conditional_t<std::is_integral_v<T>, int64_t, float>;
  const auto apply = [&](auto f) {
    combine<T>(to, from, bytes / sizeof(T), [&](T a, T b) {
      return static_cast<T>(f(static_cast<Wide>(a), static_cast<Wide>(b)));
    });
  };
  switch (what) {
    case Atomic::kAdd:
      return apply([](Wide a, Wide b) { return a + b; });
    case Atomic::kMax:
      return apply([](Wide a, Wide b) { return a < b ? b : a; });
    case Atomic::kMin:
      return apply([](Wide a, Wide b) { return b < a ? b : a; });
  }
}

}  // namespace

void copy_blocks(const char* name, Path path, uint64_t dst, uint64_t src, F16 bursts, F16 length,
                 F16 src_gap, F16 dst_gap, Site site) {
  const Route way = route(path);
  Op op = make_op(name, way.pipe, site);
  const int64_t count = take(op, "nBurst", bursts);
  at_most(op, "nBurst", count, 4095);
  const int64_t bytes = take(op, "lenBurst", length) * kBlock;
  const int64_t src_stride = bytes + take(op, "srcGap", src_gap) * kBlock;
  const int64_t dst_stride = bytes + take(op, "dstGap", dst_gap) * kBlock;
  if (count == 0 || bytes == 0) return;
  if (way.from != kGm) aligned(op, way.from, src, kBlock);
  if (way.to != kGm) aligned(op, way.to, dst, kBlock);
  op.cycles = way.fixed + (way.from == way.to ? count * bytes / kLocalBytes : 0);
  issue_copy(op, way.from, way.to, src, dst, count, bytes, src_stride, dst_stride);
}

void copy_gm_to_ubuf_align(const char* name, int size, uint64_t dst, uint64_t src, F16 bursts,
                           F32 length, F8 left, F8 right, F32 src_gap, F32 dst_gap, Site site) {
  // Units: Ascend C, DataCopyPad GM to UB; lengths and the GM gap in bytes, the UB gap in blocks.
  Op op = make_op(name, kMte2, site);
  const int64_t count = take(op, "nBurst", bursts);
  at_most(op, "nBurst", count, 4095);
  const int64_t bytes = take(op, "lenBurst", length);
  at_most(op, "lenBurst", bytes, 2097151);
  const int64_t before = take(op, "leftPaddingNum", left) * size;
  const int64_t after = take(op, "rightPaddingNum", right) * size;
  at_most(op, "bytes of left padding", before, kBlock);
  at_most(op, "bytes of right padding", after, kBlock);
  const int64_t slot = (before + bytes + after + kBlock - 1) / kBlock * kBlock;
  const int64_t src_stride = bytes + take(op, "srcGap", src_gap);
  const int64_t dst_stride = slot + take(op, "dstGap", dst_gap) * kBlock;
  if (count == 0 || bytes == 0) return;
  aligned(op, kUb, dst, kBlock);
  Access& from = op.add(kGm, false, src, static_cast<uint32_t>(bytes));
  Access& to = op.add(kUb, true, dst, static_cast<uint32_t>(slot));
  from.inner = to.inner = static_cast<uint32_t>(count);
  from.inner_stride = src_stride;
  to.inner_stride = dst_stride;
  close_gaps(from);
  close_gaps(to);
  op.arg[0] = count;
  op.arg[1] = bytes;
  op.arg[2] = before;
  op.arg[3] = after;
  op.arg[4] = slot;
  op.arg[5] = src_stride;
  op.arg[6] = dst_stride;
  op.arg[7] = static_cast<int64_t>(g_launch->current().registers[kPadValue]);
  op.arg[8] = size;
  op.cycles = kGmToUbFixed;
  op.execute = copy_padded;
  g_launch->issue(op);
}

void copy_ubuf_to_gm_align(const char* name, uint64_t dst, uint64_t src, F16 bursts, F32 length,
                           F8 left, F8 right, F32 src_gap, F32 dst_gap, Site site) {
  // Units: Ascend C, DataCopyPad UB to GM; lengths and the GM gap in bytes, the UB gap in blocks.
  Op op = make_op(name, kMte3, site);
  const int64_t count = take(op, "nBurst", bursts);
  at_most(op, "nBurst", count, 4095);
  const int64_t bytes = take(op, "lenBurst", length);
  at_most(op, "lenBurst", bytes, 2097151);
  if (take(op, "leftPaddingNum", left) != 0 || take(op, "rightPaddingNum", right) != 0) {
    not_modelled("padding of a store to GM", site);
  }
  const int64_t slot = (bytes + kBlock - 1) / kBlock * kBlock;
  const int64_t src_stride = slot + take(op, "srcGap", src_gap) * kBlock;
  const int64_t dst_stride = bytes + take(op, "dstGap", dst_gap);
  if (count == 0 || bytes == 0) return;
  aligned(op, kUb, src, kBlock);
  op.cycles = kStoreFixed;
  issue_copy(op, kUb, kGm, src, dst, count, bytes, src_stride, dst_stride);
}

void copy_nd2nz(const char* name, int size, uint64_t dst, uint64_t src, F16 matrices, F16 rows,
                F16 columns, F16 src_matrix_stride, F16 src_row_stride, F16 dst_column_stride,
                F16 dst_row_stride, F16 dst_matrix_stride, Site site) {
  // Units and limits: Ascend C, asc_copy_gm2l1_nd2nz of architecture 2201.
  Op op = make_op(name, kMte2, site);
  const int64_t count = take(op, "ndNum", matrices);
  at_most(op, "ndNum", count, 4095);
  const int64_t num_rows = take(op, "nValue", rows);
  at_most(op, "nValue", num_rows, 16384);
  const int64_t row_bytes = take(op, "dValue", columns) * size;
  const int64_t src_matrix = take(op, "srcNdMatrixStride", src_matrix_stride) * size;
  const int64_t src_row = take(op, "srcDValue", src_row_stride) * size;
  const int64_t dst_column = take(op, "dstNzC0Stride", dst_column_stride) * kBlock;
  const int64_t dst_row = take(op, "dstNzNStride", dst_row_stride) * kBlock;
  const int64_t dst_matrix = take(op, "dstNzMatrixStride", dst_matrix_stride) * size;
  at_most(op, "dstNzC0Stride", dst_column / kBlock, 16384);
  at_most(op, "dstNzNStride", dst_row / kBlock, 16384);
  if (count == 0 || num_rows == 0 || row_bytes == 0) return;
  aligned(op, kL1, dst, kBlock);
  if (count > 1) aligned(op, kL1, dst + dst_matrix, kBlock);
  const int64_t num_columns = (row_bytes + kBlock - 1) / kBlock;
  op.cycles = kGmToL1Fixed;
  op.arg[0] = num_rows;
  op.arg[1] = row_bytes;
  op.arg[2] = src_row;
  op.arg[3] = dst_column;
  op.arg[4] = dst_row;
  op.execute = copy_to_nz;
  // An operation a matrix: an access has two strides, several matrices need three.
  for (int64_t matrix = 0; matrix < count; ++matrix) {
    op.num_accesses = 0;
    Access& from = op.add(kGm, false, src + matrix * src_matrix, static_cast<uint32_t>(row_bytes));
    from.inner = static_cast<uint32_t>(num_rows);
    from.inner_stride = src_row;
    close_gaps(from);
    Access& to = op.add(kL1, true, dst + matrix * dst_matrix, kBlock);
    to.inner = static_cast<uint32_t>(num_rows);
    to.inner_stride = dst_row;
    to.outer = static_cast<uint32_t>(num_columns);
    to.outer_stride = dst_column;
    close_gaps(to);
    g_launch->issue(op);
    op.cycles = 0;
  }
}

void fill(const char* name, FillTo to, uint64_t dst, int64_t repeat, uint32_t value, int size,
          Site site) {
  // Repeats in bits 14:0, blocks in 30:16, gap in 46:32 (Ascend C, InitConstValue); a block is 32
  // bytes in L1 and 512 in L0.
  const Mem mem = to == FillTo::kL1 ? kL1 : to == FillTo::kL0a ? kL0a : kL0b;
  Op op = make_op(name, to == FillTo::kL1 ? kMte2 : kMte1, site);
  const int64_t unit = to == FillTo::kL1 ? kBlock : 512;
  const auto field = [&](int shift) { return repeat >> shift & 0xffff; };
  const int64_t count = field(0), bytes = field(16) * unit, stride = bytes + field(32) * unit;
  at_most(op, "repeatTimes", count, 32767);
  at_most(op, "blockNum", field(16), 32767);
  at_most(op, "dstGap", field(32), 32767);
  if (repeat >> 48 != 0) at_most(op, "repeat word's upper bits", repeat >> 48 & 0xffff, 0);
  if (count == 0 || bytes == 0) return;
  aligned(op, mem, dst, unit);
  Access& target = op.add(mem, true, dst, static_cast<uint32_t>(bytes));
  target.inner = static_cast<uint32_t>(count);
  target.inner_stride = stride;
  close_gaps(target);
  op.arg[0] = count;
  op.arg[1] = bytes;
  op.arg[2] = stride;
  op.arg[3] = value;
  op.arg[4] = size;
  op.cycles = kLocalFixed + count * bytes / kLocalBytes;
  op.execute = fill_stretches;
  g_launch->issue(op);
}

void set_atomic_none() { g_launch->current().registers[kAtomic] = 0; }

void set_atomic_type(Type type) {
  uint64_t& state = g_launch->current().registers[kAtomic];
  state = (state & ~0xffull) | static_cast<uint64_t>(type);
}

void set_atomic(Atomic what) {
  uint64_t& state = g_launch->current().registers[kAtomic];
  state = (state & 0xff) | static_cast<uint64_t>(what) << 8;
}

void atomic_store(uint64_t state, uint8_t* to, const uint8_t* from, uint64_t bytes) {
  const Atomic what = atomic_operation(state);
  switch (atomic_type(state)) {
    case Type::kF32:
      return combine<float>(what, to, from, bytes);
    case Type::kF16:
      return combine<half>(what, to, from, bytes);
    case Type::kBf16:
      return combine<bfloat16_t>(what, to, from, bytes);
    case Type::kI32:
      return combine<int32_t>(what, to, from, bytes);
    case Type::kI16:
      return combine<int16_t>(what, to, from, bytes);
    case Type::kI8:
      return combine<int8_t>(what, to, from, bytes);
    default:
      std::memmove(to, from, bytes);
  }
}

}  // namespace sim
