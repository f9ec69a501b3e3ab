// Vector builtins that work lane by lane, and what all vector builtins share. Units and widths of
// the arguments: cce_vector.h.
//
// Chosen where the documents say nothing: arithmetic on half is done in float and rounded once;
// maximum, minimum and relu hand a NaN on; integers wrap; multiply-add rounds once; vexp, vln, vrec
// and vrsqrt are as precise as the host (the chip's own error is not modelled). Values beyond
// half's range become infinite, as with CTRL[48] = 1 (Ascend C, SetCtrlSpr: the mode that keeps INF
// and NAN).
#include <cmath>

#include "lanes.h"
#include "shadow.h"

namespace sim {
namespace {

// Cycles of an isolated operation: slope * repeat + fixed. PTO (hw-native-sys/pto-isa, cost model
// a2a3, cce_costmodel_vector_*.hpp); `fixed` is its head and tail together. Those marked 910B3 are
// measured.
struct Cost {
  float slope;
  float fixed;
};
constexpr Cost kPlaceholder{2, 6};  // PTO's own for what it has not calibrated
constexpr Cost kCosts[] = {
    {2, 24},       // kAdd, 910B3
    {2, 24},       // kSub, 910B3
    {2, 25},       // kMul, 910B3
    {4, 30},       // kDiv, 910B3
    {2, 24},       // kMax, 910B3
    {2, 24},       // kMin
    {2, 20},       // kAnd, 910B3
    {2, 20},       // kOr, 910B3
    kPlaceholder,  // kAddRelu
    kPlaceholder,  // kSubRelu
    kPlaceholder,  // kMla
    kPlaceholder,  // kMadd
    kPlaceholder,  // kMaddRelu
    {1, 29},       // kAbs
    {2, 31},       // kExp, 910B3
    {2, 33},       // kLn, 910B3
    kPlaceholder,  // kRec
    {2, 39},       // kSqrt
    {1, 24},       // kRsqrt
    {1, 23},       // kRelu, 910B3
    {2, 20},       // kNot
    {1, 24},       // kCopy
    {1, 31},       // kAdds
    {1, 26},       // kMuls, 910B3
    {1, 23},       // kMaxs, 910B3
    {1, 30},       // kMins
    {1, 26},       // kLeakyRelu, 910B3
    kPlaceholder,  // kAxpy
    kPlaceholder,  // kShl
    kPlaceholder,  // kShr
    kPlaceholder,  // kShrRound
    {1, 24},       // kDup
    {7, 46},       // kReduceAdd
    kPlaceholder,  // kReduceMax
    kPlaceholder,  // kReduceMin
    {1, 38},       // kBlockAdd
    {1, 31},       // kBlockMax
    {1, 31},       // kBlockMin
    kPlaceholder,  // kPairAdd
    {2, 32},       // kConvert
    {2, 36},       // kCompare: what PTO has for the calibrated two of them
    {2, 27},       // kSelect
    kPlaceholder,  // kSetMask: assumed
    kPlaceholder,  // kGetMask: assumed
    {0, 18},       // kBroadcast
    {2, 24},       // kGather, 910B3
    kPlaceholder,  // kGatherBlocks
    {14, 34},      // kSqueeze
    kPlaceholder,  // kTranspose: assumed
};
static_assert(std::size(kCosts) == static_cast<size_t>(Vector::kCount));

// What counter mode adds to the two-source arithmetic (PTO, kCountModeFloorCycles).
constexpr float kCountedFloor = 16;

// ---- Functions of a lane
// ------------------------------------------------------------------------------

// Integer arithmetic that wraps.
template <class T>
using Unsigned = std::conditional_t<std::is_integral_v<T>, uint32_t, T>;

template <class T>
T larger(T a, T b) {
  return ((a > b) | (a != a)) ? a : b;  // NaN in either: NaN
}
template <class T>
T smaller(T a, T b) {
  return ((a < b) | (a != a)) ? a : b;
}
template <class T>
T relu(T x) {
  return x <= 0 ? T(0) : x;
}

// 2^k p(r) with x = k ln 2 + r, |r| <= ln 2 / 2; p is Taylor's to the seventh power, whose
// remainder is below 2^-27. No branch and no call, so that it vectorises.
inline float exponential(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0x1.62e4p-1f;  // 15 bits: its product with k is exact
  constexpr float kLn2Low = 1.42860677e-6f;
  constexpr float kRounder = 0x1.8p23f;  // a float this large has no fraction
  float clamped = x < -110.f ? -110.f : x;
  clamped = clamped > 90.f ? 90.f : clamped;
  const float shifted = clamped * kLog2E + kRounder;
  const float k = shifted - kRounder;
  const float r = (clamped - k * kLn2High) - k * kLn2Low;
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  // In two factors: 2^k itself need not be a float.
  const int32_t exponent = static_cast<int32_t>(float_to_bits(shifted) - float_to_bits(kRounder));
  const int32_t first = exponent >> 1;
  const float factor0 = bits_to_float(static_cast<uint32_t>(first + 127) << 23);
  const float factor1 = bits_to_float(static_cast<uint32_t>(exponent - first + 127) << 23);
  return p * factor0 * factor1;
}

template <Vector kWhat, class T>
struct Lane {
  T scalar{};
  uint32_t distance = 0;

  explicit Lane(const Op& op) {
    distance = static_cast<uint32_t>(op.arg[kArgScalar]);
    std::memcpy(&scalar, &op.arg[kArgScalar], sizeof scalar);  // widened() has made it one of T
  }

  T operator()() const { return scalar; }

  T operator()(T a) const {
    using U = Unsigned<T>;
    if constexpr (kWhat == Vector::kAbs) return std::abs(a);
    if constexpr (kWhat == Vector::kRelu) return relu(a);
    if constexpr (kWhat == Vector::kCopy) return a;
    if constexpr (kWhat == Vector::kAdds) return static_cast<T>(U(a) + U(scalar));
    if constexpr (kWhat == Vector::kMuls) return static_cast<T>(U(a) * U(scalar));
    if constexpr (kWhat == Vector::kMaxs) return larger(a, scalar);
    if constexpr (kWhat == Vector::kMins) return smaller(a, scalar);
    if constexpr (std::is_floating_point_v<T>) {
      if constexpr (kWhat == Vector::kExp) return exponential(a);
      if constexpr (kWhat == Vector::kLn) return std::log(a);
      if constexpr (kWhat == Vector::kRec) return 1 / a;
      if constexpr (kWhat == Vector::kSqrt) return std::sqrt(a);
      if constexpr (kWhat == Vector::kRsqrt) return 1 / std::sqrt(a);
      if constexpr (kWhat == Vector::kLeakyRelu) return a >= 0 ? a : a * scalar;
    } else {
      constexpr uint32_t kBits = 8 * sizeof(T);
      if constexpr (kWhat == Vector::kNot) return static_cast<T>(~a);
      if constexpr (kWhat == Vector::kShl)
        return distance < kBits ? static_cast<T>(U(a) << distance) : T(0);
      if constexpr (kWhat == Vector::kShr) {
        if (distance < kBits) return static_cast<T>(a >> distance);
        return a < 0 ? T(-1) : T(0);
      }
      if constexpr (kWhat == Vector::kShrRound) {
        if (distance == 0 || distance > kBits) return distance == 0 ? a : T(0);
        return static_cast<T>((int64_t{a} + (int64_t{1} << (distance - 1))) >> distance);
      }
    }
  }

  T operator()(T a, T b) const {
    using U = Unsigned<T>;
    if constexpr (kWhat == Vector::kAdd) return static_cast<T>(U(a) + U(b));
    if constexpr (kWhat == Vector::kSub) return static_cast<T>(U(a) - U(b));
    if constexpr (kWhat == Vector::kMul) return static_cast<T>(U(a) * U(b));
    if constexpr (kWhat == Vector::kMax) return larger(a, b);
    if constexpr (kWhat == Vector::kMin) return smaller(a, b);
    if constexpr (kWhat == Vector::kAddRelu) return relu(static_cast<T>(U(a) + U(b)));
    if constexpr (kWhat == Vector::kSubRelu) return relu(static_cast<T>(U(a) - U(b)));
    if constexpr (std::is_floating_point_v<T>) {
      if constexpr (kWhat == Vector::kDiv) return a / b;
      if constexpr (kWhat == Vector::kAxpy) return std::fma(a, scalar, b);
    } else {
      if constexpr (kWhat == Vector::kAnd) return static_cast<T>(a & b);
      if constexpr (kWhat == Vector::kOr) return static_cast<T>(a | b);
    }
  }

  T operator()(T a, T b, T dst) const {
    if constexpr (kWhat == Vector::kMla) return std::fma(a, b, dst);
    if constexpr (kWhat == Vector::kMadd) return std::fma(a, dst, b);
    if constexpr (kWhat == Vector::kMaddRelu) return relu(std::fma(a, dst, b));
  }
};

// The Op::execute of a builtin for its types; null where the chip has none.
template <Vector kWhat, class D, class... S>
constexpr Execute kRun = run_lanes<Lane<kWhat, WorkOf<D>>, D, S...>;

template <Vector kWhat>
Execute arithmetic(Type type) {
  switch (type) {
    case Type::kF32:
      return kRun<kWhat, float, float, float>;
    case Type::kF16:
      return kRun<kWhat, half, half, half>;
    case Type::kI32:
      return kRun<kWhat, int32_t, int32_t, int32_t>;
    case Type::kI16:
      return kRun<kWhat, int16_t, int16_t, int16_t>;
    default:
      return nullptr;
  }
}

template <Vector kWhat>
Execute multiply_add(Type to, Type from) {
  if (to == Type::kF16) return kRun<kWhat, half, half, half, half>;
  if (from == Type::kF32) return kRun<kWhat, float, float, float, float>;
  return kRun<kWhat, float, half, half, float>;
}

Execute two_sources(Vector what, Type to, Type from) {
  switch (what) {
    case Vector::kAdd:
      return arithmetic<Vector::kAdd>(to);
    case Vector::kSub:
      return arithmetic<Vector::kSub>(to);
    case Vector::kMul:
      return arithmetic<Vector::kMul>(to);
    case Vector::kMax:
      return arithmetic<Vector::kMax>(to);
    case Vector::kMin:
      return arithmetic<Vector::kMin>(to);
    case Vector::kAddRelu:
      return arithmetic<Vector::kAddRelu>(to);
    case Vector::kSubRelu:
      return arithmetic<Vector::kSubRelu>(to);
    case Vector::kDiv:
      return to == Type::kF32 ? kRun<Vector::kDiv, float, float, float>
                              : kRun<Vector::kDiv, half, half, half>;
    case Vector::kAnd:
      return kRun<Vector::kAnd, uint16_t, uint16_t, uint16_t>;
    case Vector::kOr:
      return kRun<Vector::kOr, uint16_t, uint16_t, uint16_t>;
    case Vector::kMla:
      return multiply_add<Vector::kMla>(to, from);
    case Vector::kMadd:
      return multiply_add<Vector::kMadd>(to, from);
    case Vector::kMaddRelu:
      return multiply_add<Vector::kMaddRelu>(to, from);
    default:
      return nullptr;
  }
}

template <Vector kWhat>
Execute floating(Type type) {
  return type == Type::kF32 ? kRun<kWhat, float, float> : kRun<kWhat, half, half>;
}

Execute one_source(Vector what, Type type) {
  switch (what) {
    case Vector::kAbs:
      return floating<Vector::kAbs>(type);
    case Vector::kExp:
      return floating<Vector::kExp>(type);
    case Vector::kLn:
      return floating<Vector::kLn>(type);
    case Vector::kRec:
      return floating<Vector::kRec>(type);
    case Vector::kSqrt:
      return floating<Vector::kSqrt>(type);
    case Vector::kRsqrt:
      return floating<Vector::kRsqrt>(type);
    case Vector::kRelu:
      return type == Type::kI32 ? kRun<Vector::kRelu, int32_t, int32_t>
                                : floating<Vector::kRelu>(type);
    case Vector::kNot:
      return kRun<Vector::kNot, uint16_t, uint16_t>;
    case Vector::kCopy:
      return size_of(type) == 4 ? kRun<Vector::kCopy, uint32_t, uint32_t>
                                : kRun<Vector::kCopy, uint16_t, uint16_t>;
    default:
      return nullptr;
  }
}

template <Vector kWhat>
Execute with_scalar(Type type) {
  switch (type) {
    case Type::kF32:
      return kRun<kWhat, float, float>;
    case Type::kF16:
      return kRun<kWhat, half, half>;
    case Type::kI32:
      return kRun<kWhat, int32_t, int32_t>;
    case Type::kI16:
      return kRun<kWhat, int16_t, int16_t>;
    default:
      return nullptr;
  }
}

template <Vector kWhat>
Execute shift(Type type) {
  switch (type) {
    case Type::kI32:
      return kRun<kWhat, int32_t, int32_t>;
    case Type::kI16:
      return kRun<kWhat, int16_t, int16_t>;
    case Type::kU32:
      return kRun<kWhat, uint32_t, uint32_t>;
    case Type::kU16:
      return kRun<kWhat, uint16_t, uint16_t>;
    default:
      return nullptr;
  }
}

Execute scalar_form(Vector what, Type to, Type from) {
  switch (what) {
    case Vector::kAdds:
      return with_scalar<Vector::kAdds>(to);
    case Vector::kMuls:
      return with_scalar<Vector::kMuls>(to);
    case Vector::kMaxs:
      return with_scalar<Vector::kMaxs>(to);
    case Vector::kMins:
      return with_scalar<Vector::kMins>(to);
    case Vector::kLeakyRelu:
      return floating<Vector::kLeakyRelu>(to);
    case Vector::kAxpy:
      if (to == Type::kF16) return kRun<Vector::kAxpy, half, half, half>;
      if (from == Type::kF32) return kRun<Vector::kAxpy, float, float, float>;
      return kRun<Vector::kAxpy, float, half, float>;
    case Vector::kShl:
      return shift<Vector::kShl>(to);
    case Vector::kShr:
      return shift<Vector::kShr>(to);
    case Vector::kShrRound:
      return shift<Vector::kShrRound>(to);
    case Vector::kDup:
      return size_of(to) == 4 ? kRun<Vector::kDup, uint32_t> : kRun<Vector::kDup, uint16_t>;
    default:
      return nullptr;
  }
}

// The bits as the lane function's Lane::scalar holds them: half as float.
int64_t widened(Type type, bool raw, uint32_t bits) {
  return type == Type::kF16 && !raw ? float_to_bits(from_half(static_cast<uint16_t>(bits))) : bits;
}

bool reads_destination(Vector what) {
  return what == Vector::kMla || what == Vector::kMadd || what == Vector::kMaddRelu ||
         what == Vector::kAxpy;
}

}  // namespace

// ---- Shared by all vector builtins (lanes.h)
// ----------------------------------------------------------

float vector_cycles(Vector what, int64_t repeats, bool counted) {
  const Cost& cost = kCosts[static_cast<size_t>(what)];
  return cost.slope * repeats + cost.fixed + (counted && what <= Vector::kOr ? kCountedFloor : 0);
}

Lanes all_lanes(int64_t repeat, int per) {
  Lanes lanes;
  lanes.repeats = repeat;
  lanes.per = lanes.count = lanes.last = per;
  return lanes;
}

Lanes lanes_of(const Core& core, int64_t repeat, int per) {
  if (core.counted) {
    const auto total = static_cast<int64_t>(core.mask[0] & 0xffffffff);
    Lanes lanes = all_lanes((total + per - 1) / per, per);
    lanes.last = static_cast<int>(total - (lanes.repeats - 1) * per);
    return lanes;
  }
  Lanes lanes = all_lanes(repeat, per);
  lanes.bits[0] = per < 64 ? core.mask[0] & ((1ull << per) - 1) : core.mask[0];
  lanes.bits[1] = per > 64 ? core.mask[1] : 0;
  const int low = ~lanes.bits[0] == 0 ? 64 : __builtin_ctzll(~lanes.bits[0]);
  const int high = ~lanes.bits[1] == 0 ? 64 : __builtin_ctzll(~lanes.bits[1]);
  const int count = low == 64 ? 64 + high : low;
  const int on = __builtin_popcountll(lanes.bits[0]) + __builtin_popcountll(lanes.bits[1]);
  lanes.count = lanes.last = count == on ? count : -1;
  if (on == 0) lanes.repeats = 0;
  return lanes;
}

int64_t one_stretch(const Operand& operand, const Lanes& lanes) {
  const int64_t whole = int64_t{lanes.count} * operand.size;
  const int64_t last = int64_t{lanes.last} * operand.size;
  if (lanes.count < 0 || (operand.block != kBlock && whole > kBlock)) return 0;
  if (lanes.repeats == 1) return last;
  if (operand.repeat > whole) return 0;
  return (lanes.repeats - 2) * operand.repeat + std::max(whole, operand.repeat + last);
}

void add_lanes(Op& op, bool write, const Operand& operand, const Lanes& lanes, bool exact) {
  const int size = operand.size;
  if (const int64_t bytes = one_stretch(operand, lanes); bytes > 0) {
    op.add(kUb, write, operand.base, static_cast<uint32_t>(bytes));
    return;
  }
  const auto add = [&](int64_t offset, int64_t bytes, int64_t inner) {
    Access& access = op.add(kUb, write, operand.base + offset, static_cast<uint32_t>(bytes));
    access.inner = static_cast<uint32_t>(inner);
    access.inner_stride = operand.block;
    if (inner == 1 && operand.repeat <= bytes) {  // repeats that meet or overlap
      access.bytes += static_cast<uint32_t>(operand.repeat * (lanes.repeats - 1));
    } else if (operand.repeat != 0) {
      access.outer = static_cast<uint32_t>(lanes.repeats);
      access.outer_stride = operand.repeat;
    }
  };
  int first = 0;
  int end = lanes.count;
  if (lanes.count < 0) {  // from the first block with a lane that is on to the last one
    const int per_block = kBlock / size;
    while (lanes.chunk(-1, first, per_block) == 0) first += per_block;
    end = lanes.per;
    while (lanes.chunk(-1, end - per_block, per_block) == 0) end -= per_block;
  }
  const int64_t bytes = int64_t{end - first} * size;
  const int64_t start = int64_t{first} * size / kBlock * operand.block;
  if (operand.block == kBlock || bytes <= kBlock) return add(start, bytes, 1);
  if (operand.block == 0) return add(0, kBlock, 1);
  const int64_t whole = bytes / kBlock;
  const int64_t rest = bytes % kBlock;
  if (rest == 0 || !exact) return add(start, kBlock, whole + (rest != 0));
  add(start, kBlock, whole);
  add(start + whole * operand.block, rest, 1);
}

void issue_lanes(Op& op, Vector what, const Lanes& lanes, const Operand* operands, int count) {
  if (lanes.repeats == 0) return;
  op.cycles = vector_cycles(what, lanes.repeats, g_launch->current().counted);
  Operand placed[kMaxArgs];
  int64_t stretch[kMaxArgs];
  bool all_stretches = true;
  for (int i = 0; i < count; ++i) {
    placed[i] = operands[i];
    aligned(op, kUb, placed[i].base, kBlock);
    placed[i].base -= placed[i].base % kBlock;
    stretch[i] = one_stretch(placed[i], lanes);
    all_stretches = all_stretches && stretch[i] > 0;
  }
  const auto issue = [&](const Lanes& part, int64_t first) {
    op.num_accesses = 0;
    int spare = kMaxAccesses - count;
    for (int i = 0; i < count; ++i) {
      Operand operand = placed[i];
      operand.base += first * operand.repeat;
      const int before = op.num_accesses;
      if (stretch[i] == 0) {
        add_lanes(op, i == 0, operand, part, spare > 0);
        spare -= op.num_accesses - before - 1;
      } else if (first == 0) {  // the whole of it, or the parts might seem to overlap
        op.add(kUb, i == 0, operand.base, static_cast<uint32_t>(stretch[i]));
      }
      put_operand(op, i, operand);
    }
    put_lanes(op, part, first);
    if (first > 0) op.cycles = 0;  // counted with the first part
    g_launch->issue(op);
  };
  // A last repeat that is shorter fits in the same accesses only if they are stretches.
  if (all_stretches) {
    issue(lanes, 0);
  } else {
    in_parts(lanes, issue);
  }
}

bool touch(Core& core, const Op& op, bool write, uint64_t base, uint32_t bytes) {
  Launch& launch = *g_launch;
  if (base + bytes > kMemBytes[kUb] || base + bytes < base) {
    std::ostringstream text;
    text << core_text(core) << " V " << (write ? "writes" : "reads") << " at " << site_text(op.site)
         << " (" << op.name << ") UB[" << base << ", " << base + bytes << "), which has "
         << kMemBytes[kUb] << " bytes";
    launch.find_at("out of bounds " + site_text(op.site) + op.name,
                   {"out of bounds", "", 0, 0, text.str()});
    return false;
  }
  if (!launch.options().check) return true;
  Op part = make_op(op.name, kV, op.site);
  part.add(kUb, write, base, bytes);
  check_accesses(launch, core, part, core.clock[kV], core.known, core.executed[kV]);
  return true;
}

// ---- Builtins
// -----------------------------------------------------------------------------------------

void vector_binary(const char* name, Vector what, Type to, Type from, uint64_t dst, uint64_t src0,
                   uint64_t src1, F8 repeat, F8 dst_block, F8 src0_block, F8 src1_block,
                   F8 dst_repeat, F8 src0_repeat, F8 src1_repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand target{dst, size_of(to), take(op, "dstBlockStride", dst_block) * kBlock,
                       take(op, "dstRepeatStride", dst_repeat) * kBlock};
  const Operand operands[] = {
      target,
      {src0, size_of(from), take(op, "src0BlockStride", src0_block) * kBlock,
       take(op, "src0RepeatStride", src0_repeat) * kBlock},
      {src1, size_of(from), take(op, "src1BlockStride", src1_block) * kBlock,
       take(op, "src1RepeatStride", src1_repeat) * kBlock},
      target};
  op.execute = two_sources(what, to, from);
  issue_lanes(op, what, lanes_of(g_launch->current(), repeats, kRepeatBytes / size_of(to)),
              operands, reads_destination(what) ? 4 : 3);
}

void vector_unary(const char* name, Vector what, Type type, uint64_t dst, uint64_t src, F8 repeat,
                  F16 dst_block, F16 src_block, F16 dst_repeat, F16 src_repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand operands[] = {{dst, size_of(type), take(op, "dstBlockStride", dst_block) * kBlock,
                               take(op, "dstRepeatStride", dst_repeat) * kBlock},
                              {src, size_of(type), take(op, "srcBlockStride", src_block) * kBlock,
                               take(op, "srcRepeatStride", src_repeat) * kBlock}};
  op.execute = one_source(what, type);
  issue_lanes(op, what, lanes_of(g_launch->current(), repeats, kRepeatBytes / size_of(type)),
              operands, 2);
}

void vector_scalar(const char* name, Vector what, Type to, Type from, uint64_t dst, uint64_t src,
                   uint32_t scalar, F8 repeat, F16 dst_block, F16 src_block, F16 dst_repeat,
                   F16 src_repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand target{dst, size_of(to), take(op, "dstBlockStride", dst_block) * kBlock,
                       take(op, "dstRepeatStride", dst_repeat) * kBlock};
  const Operand operands[] = {target,
                              {src, size_of(from), take(op, "srcBlockStride", src_block) * kBlock,
                               take(op, "srcRepeatStride", src_repeat) * kBlock},
                              target};
  if (what == Vector::kShl || what == Vector::kShr || what == Vector::kShrRound) {
    at_most(op, "the distance", scalar, 8 * size_of(to));  // Ascend C, asc_shiftright
  }
  op.arg[kArgScalar] = widened(from, what == Vector::kDup, scalar);
  op.execute = scalar_form(what, to, from);
  const int count = what == Vector::kDup ? 1 : reads_destination(what) ? 3 : 2;
  issue_lanes(op, what, lanes_of(g_launch->current(), repeats, kRepeatBytes / size_of(to)),
              operands, count);
}

}  // namespace sim
