// Vector builtins that do not work lane by lane: reductions, comparison and selection by bits,
// spreading and collecting. Sources: Ascend C's C API and basic API documents for architecture
// 2201.
//
// Chosen where they say nothing: a NaN is the maximum and the minimum of what it is in; half sums
// are rounded at each level of the tree; results of blocks or pairs without a lane that is on are
// not written.
#include <cmath>

#include "lanes.h"
#include "shadow.h"

namespace sim {
namespace {

// Registers of the vector unit that instructions set and read in the pipe.
struct VectorState {
  std::weak_ptr<Shadow> owner;  // of the core it belongs to: cores of an earlier launch are gone
  uint64_t compare[2] = {};
  int64_t accumulated = 0;
  int64_t extreme = 0;
  int64_t squeezed = 0;
};

VectorState& state_of(const Core& core) {
  static std::vector<VectorState> states;
  if (states.size() <= static_cast<size_t>(core.index)) states.resize(core.index + 1);
  VectorState& state = states[core.index];
  if (state.owner.lock() != core.shadow) {
    state = {};
    state.owner = core.shadow;
    std::memset(state.compare, g_launch->options().poison, sizeof state.compare);
  }
  return state;
}

// Operands of a reduction in Op::arg, after the lanes.
enum ReduceArg {
  kArgDst = kArgOperands,  // address
  kArgSrc,                 // put_operand
  kArgStride,              // bytes from one repeat's results to the next
  kArgOrder                // Order_t
};
enum Order { kValueIndex, kIndexValue, kOnlyValue, kOnlyIndex };

template <class T>
float narrowed(float x) {
  if constexpr (std::is_same_v<T, half>) {
#if defined(__F16C__)
    return _cvtsh_ss(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
    return from_half(to_half(x));
#endif
  } else {
    return x;
  }
}

// The sum of neighbours, of neighbouring sums, and so on. Off lanes are -0, which adds nothing.
template <class T>
float tree_sum(float* row, int lanes) {
  while (lanes > 1) {
    lanes /= 2;
    for (int i = 0; i < lanes; ++i) row[i] = narrowed<T>(row[2 * i] + row[2 * i + 1]);
  }
  return row[0];
}

bool beats(bool maximum, float challenger, float best) {
  if (best != best) return false;
  return challenger != challenger || (maximum ? challenger > best : challenger < best);
}

// First lane that none beats; -1 if all are off.
int extreme_lane(bool maximum, const float* row, const Lanes& lanes, int in_repeat, int from,
                 int end) {
  int best = -1;
  for (int lane = from; lane < end; ++lane) {
    if (!lanes.chunk(in_repeat, lane, 1)) continue;
    if (best < 0 || beats(maximum, row[lane], row[best])) best = lane;
  }
  return best;
}

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;

template <class T>
BitsOf<T> bits_of(float x) {
  if constexpr (sizeof(T) == 4) {
    return float_to_bits(x);
  } else {
    return to_half(x);
  }
}

template <class T>
void put(uint8_t* to, int index, float x) {
  const BitsOf<T> bits = bits_of<T>(x);
  std::memcpy(to + index * sizeof bits, &bits, sizeof bits);
}

template <class T>
void run_sum(Core& core, const Op& op) {
  constexpr int kPer = kRepeatBytes / sizeof(T);
  const Lanes lanes = get_lanes(op, kPer);
  const Operand src = get_operand(op, kArgSrc - kArgOperands, sizeof(T));
  uint8_t* const dst = core.mem[kUb] + op.arg[kArgDst];
  for (int64_t r = 0; r < lanes.repeats; ++r) {
    alignas(32) float row[kPer];
    load_repeat<T>(core.mem[kUb], src, lanes, r, -0.f, row);
    put<T>(dst + r * op.arg[kArgStride], 0, tree_sum<T>(row, kPer));
  }
}

// The same of a whole repeat, whose lanes that are off hold what never wins.
template <bool kMaximum, int kPer>
int extreme_of_repeat(const float* row, const Lanes& lanes, int in_repeat) {
  float best[8];  // of every eighth lane, so that the loop vectorises
  std::memcpy(best, row, sizeof best);
  for (int lane = 8; lane < kPer; lane += 8) {
    for (int i = 0; i < 8; ++i) {
      const float x = row[lane + i];
      const bool wins = kMaximum ? x > best[i] : x < best[i];
      best[i] = ((wins | (x != x)) & (best[i] == best[i])) ? x : best[i];
    }
  }
  float value = best[0];
  for (const float x : best) value = beats(kMaximum, x, value) ? x : value;
  for (int lane = 0; lane < kPer; ++lane) {
    const bool found = value != value ? row[lane] != row[lane] : row[lane] == value;
    if (found && lanes.chunk(in_repeat, lane, 1)) return lane;
  }
  return 0;
}

template <class T, bool kMaximum>
void run_extreme(Core& core, const Op& op) {
  constexpr int kPer = kRepeatBytes / sizeof(T);
  const Lanes lanes = get_lanes(op, kPer);
  const Operand src = get_operand(op, kArgSrc - kArgOperands, sizeof(T));
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const int64_t first = op.arg[kArgFirst];
  VectorState& state = state_of(core);
  for (int64_t r = 0; r < lanes.repeats; ++r) {
    alignas(32) float row[kPer];
    load_repeat<T>(core.mem[kUb], src, lanes, r, kMaximum ? -kInfinity : kInfinity, row);
    const auto index =
        static_cast<uint32_t>(extreme_of_repeat<kMaximum, kPer>(row, lanes, lanes.in(r)));
    const BitsOf<T> value = bits_of<T>(row[index]);
    uint8_t* const dst = core.mem[kUb] + op.arg[kArgDst] + r * op.arg[kArgStride];
    const auto narrow = static_cast<BitsOf<T>>(index);
    switch (op.arg[kArgOrder]) {
      case kValueIndex:
        std::memcpy(dst, &value, sizeof value);
        std::memcpy(dst + sizeof value, &narrow, sizeof narrow);
        break;
      case kIndexValue:
        std::memcpy(dst, &narrow, sizeof narrow);
        std::memcpy(dst + sizeof narrow, &value, sizeof value);
        break;
      case kOnlyValue:
        std::memcpy(dst, &value, sizeof value);
        break;
      default:
        std::memcpy(dst, &index, sizeof index);
    }
    // For get_max_min_cnt: value in the lower half, its index over all repeats in the upper one.
    T before;
    std::memcpy(&before, &state.extreme, sizeof before);
    if (first + r == 0 || beats(kMaximum, row[index], before)) {
      state.extreme = static_cast<int64_t>((first + r) * kPer + index) << 32 | value;
    }
  }
}

template <class T>
void run_accumulate(Core& core, const Op& op) {
  constexpr int kPer = kRepeatBytes / sizeof(T);
  const Lanes lanes = get_lanes(op, kPer);
  const Operand src = get_operand(op, kArgSrc - kArgOperands, sizeof(T));
  VectorState& state = state_of(core);
  float sum = 0;
  if (op.arg[kArgFirst] > 0) {
    T before;
    std::memcpy(&before, &state.accumulated, sizeof before);
    sum = before;
  }
  for (int64_t r = 0; r < lanes.repeats; ++r) {
    alignas(32) float row[kPer];
    load_repeat<T>(core.mem[kUb], src, lanes, r, -0.f, row);
    const float part = tree_sum<T>(row, kPer);
    sum = op.arg[kArgFirst] + r == 0 ? part : narrowed<T>(sum + part);
  }
  state.accumulated = bits_of<T>(sum);
  // Nobody says what is in dst after it: Ascend C stores get_acc_val there.
  std::memset(core.mem[kUb] + op.arg[kArgDst], g_launch->options().poison, sizeof(T));
}

// kGroup lanes make one result.
template <class T, Vector kWhat, int kGroup>
void run_part(Core& core, const Op& op) {
  constexpr int kPer = kRepeatBytes / sizeof(T);
  const Lanes lanes = get_lanes(op, kPer);
  const Operand src = get_operand(op, kArgSrc - kArgOperands, sizeof(T));
  for (int64_t r = 0; r < lanes.repeats; ++r) {
    alignas(32) float row[kPer];
    load_repeat<T>(core.mem[kUb], src, lanes, r, -0.f, row);
    uint8_t* const dst = core.mem[kUb] + op.arg[kArgDst] + r * op.arg[kArgStride];
    const int count = lanes.in(r);
    for (int group = 0; group < kPer / kGroup; ++group) {
      const int from = group * kGroup;
      if (!lanes.chunk(count, from, kGroup)) continue;
      if constexpr (kWhat == Vector::kBlockMax || kWhat == Vector::kBlockMin) {
        const int best =
            extreme_lane(kWhat == Vector::kBlockMax, row, lanes, count, from, from + kGroup);
        put<T>(dst, group, row[best]);
      } else {
        put<T>(dst, group, tree_sum<T>(row + from, kGroup));
      }
    }
  }
}

template <class T>
Execute part_of(Vector what) {
  constexpr int kPerBlock = kBlock / sizeof(T);
  switch (what) {
    case Vector::kBlockAdd:
      return run_part<T, Vector::kBlockAdd, kPerBlock>;
    case Vector::kBlockMax:
      return run_part<T, Vector::kBlockMax, kPerBlock>;
    case Vector::kBlockMin:
      return run_part<T, Vector::kBlockMin, kPerBlock>;
    default:
      return run_part<T, Vector::kPairAdd, 2>;
  }
}

// Issues a reduction of `src`. A repeat with n lanes writes result(n) bytes from `dst` on, the next
// one `stride` bytes further; n is -1 for a mask that is not the lowest lanes.
template <class ResultBytes>
void issue_reduction(Op& op, Vector what, const Operand& src, uint64_t dst, int64_t stride,
                     const Lanes& lanes, ResultBytes result) {
  aligned(op, kUb, src.base, kBlock);
  op.cycles = vector_cycles(what, lanes.repeats, g_launch->current().counted);
  const int64_t whole = result(lanes.count);
  const int64_t last = result(lanes.last);
  const int64_t rest = lanes.repeats - 1;
  in_parts(lanes, [&](const Lanes& part, int64_t first) {
    Operand source = src;
    source.base += first * src.repeat;
    op.num_accesses = 0;
    if (stride > whole) {
      const int64_t bytes = part.count == lanes.count ? whole : last;
      Access& access = op.add(kUb, true, dst + first * stride, static_cast<uint32_t>(bytes));
      access.outer = static_cast<uint32_t>(part.repeats);
      access.outer_stride = stride;
    } else if (first == 0) {  // one stretch: all of it, or the parts might seem to overlap
      const int64_t bytes = rest == 0 ? last : (rest - 1) * stride + std::max(whole, stride + last);
      op.add(kUb, true, dst, static_cast<uint32_t>(bytes));
    }
    add_lanes(op, false, source, part, true);
    put_lanes(op, part, first);
    put_operand(op, kArgSrc - kArgOperands, source);
    op.arg[kArgDst] = static_cast<int64_t>(dst + first * stride);
    op.arg[kArgStride] = stride;
    if (first > 0) op.cycles = 0;  // counted with the first part
    g_launch->issue(op);
  });
}

// ---- Comparison and selection
// -------------------------------------------------------------------------

template <class T>
bool holds(Compare what, T a, T b) {
  switch (what) {
    case Compare::kEq:
      return a == b;
    case Compare::kNe:
      return a != b;
    case Compare::kLt:
      return a < b;
    case Compare::kGt:
      return a > b;
    case Compare::kLe:
      return a <= b;
    case Compare::kGe:
      return a >= b;
  }
  return false;
}

constexpr int kArgWhat = kArgOperands + 4;

// The bits of one repeat; the second operand is a source or Op::arg[kArgScalar].
template <class T>
void compared(const Core& core, const Op& op, const Lanes& lanes, int64_t r, int first_source,
              bool scalar, uint64_t* bits) {
  constexpr int kPer = kRepeatBytes / sizeof(T);
  WorkOf<T> a[kPer];
  WorkOf<T> b[kPer];
  load_repeat<T>(core.mem[kUb], get_operand(op, first_source, sizeof(T)), lanes, r, 0, a);
  if (scalar) {
    std::fill(b, b + kPer, scalar_of<T>(op));
  } else {
    load_repeat<T>(core.mem[kUb], get_operand(op, first_source + 1, sizeof(T)), lanes, r, 0, b);
  }
  const auto what = static_cast<Compare>(op.arg[kArgWhat]);
  bits[0] = bits[1] = 0;
  for (int i = 0; i < kPer; ++i) bits[i >> 6] |= uint64_t{holds(what, a[i], b[i])} << (i & 63);
}

template <class T>
void run_compare(Core& core, const Op& op) {
  const Lanes lanes = get_lanes(op, kRepeatBytes / sizeof(T));
  uint64_t bits[2];
  compared<T>(core, op, lanes, 0, 0, false, bits);
  VectorState& state = state_of(core);
  for (int lane = 0; lane < lanes.per; ++lane) {
    if (!lanes.chunk(lanes.in(0), lane, 1)) continue;
    uint64_t& word = state.compare[lane >> 6];
    const uint64_t bit = 1ull << (lane & 63);
    word = (word & ~bit) | (bits[lane >> 6] & bit);
  }
}

template <class T, bool kScalar>
void run_compare_to(Core& core, const Op& op) {
  constexpr int kPer = kRepeatBytes / sizeof(T);
  const Lanes lanes = get_lanes(op, kPer);
  uint8_t* const dst = core.mem[kUb] + get_operand(op, 0, 1).base;
  for (int64_t r = 0; r < lanes.repeats; ++r) {
    uint64_t bits[2];
    compared<T>(core, op, lanes, r, 1, kScalar, bits);
    std::memcpy(dst + r * (kPer / 8), bits, kPer / 8);
  }
}

Execute comparer(Type type, bool scalar) {
  switch (type) {
    case Type::kF32:
      return scalar ? run_compare_to<float, true> : run_compare_to<float, false>;
    case Type::kF16:
      return scalar ? run_compare_to<half, true> : run_compare_to<half, false>;
    default:
      return scalar ? run_compare_to<int32_t, true> : run_compare_to<int32_t, false>;
  }
}

// Issues a comparison into UB of operands[1] with operands[2] or a scalar. The mask has no effect
// on it, and neither have dst's strides: the bits of the repeats follow each other (Ascend C,
// asc_eq_scalar).
void issue_compare_to(Op& op, Type type, int64_t repeats, const Operand* operands, int count) {
  const Core& core = g_launch->current();
  if (core.counted) not_modelled("comparison into UB in counter mode", op.site);
  const int per = kRepeatBytes / size_of(type);
  const Lanes lanes = all_lanes(repeats, per);
  if (repeats == 0) return;
  for (int i = 0; i < count; ++i) {
    aligned(op, kUb, operands[i].base, kBlock);
    put_operand(op, i, operands[i]);
    if (i > 0) add_lanes(op, false, operands[i], lanes, true);
  }
  op.add(kUb, true, operands[0].base, static_cast<uint32_t>(repeats * per / 8));
  put_lanes(op, lanes);
  op.cycles = vector_cycles(Vector::kCompare, repeats, false);
  op.execute = comparer(type, count == 2);
  g_launch->issue(op);
}

// Operands: dst, src0, src1. Where the bit of a lane is set, src0; else src1 or in mode 1 the
// scalar. Bits of mode 0 are the register's, in every repeat; of the others in UB, on and on
// through the repeats: mode 1 has them at src1 and a scalar in the register, mode 2 their address
// in the register.
constexpr int kArgMode = kArgOperands + 4;
constexpr int kArgBits = kArgOperands + 5;

template <class T>
void run_select(Core& core, const Op& op) {
  using Bits = BitsOf<T>;
  constexpr int kPer = kRepeatBytes / sizeof(T);
  const Lanes lanes = get_lanes(op, kPer);
  uint8_t* const ub = core.mem[kUb];
  const Operand dst = get_operand(op, 0, sizeof(T));
  const Operand src0 = get_operand(op, 1, sizeof(T));
  const Operand src1 = get_operand(op, 2, sizeof(T));
  const VectorState& state = state_of(core);
  const int64_t mode = op.arg[kArgMode];
  const auto* const held = reinterpret_cast<const uint8_t*>(state.compare);
  const uint8_t* bits = held;
  if (mode != 0) {
    const uint64_t place = (mode == 1 ? static_cast<uint64_t>(op.arg[kArgBits])
                                      : static_cast<uint32_t>(state.compare[0])) +
                           op.arg[kArgFirst] * kPer / 8;
    const int64_t count = (lanes.repeats - 1) * kPer + (lanes.last < 0 ? kPer : lanes.last);
    if (!touch(core, op, false, place, static_cast<uint32_t>((count + 7) / 8))) return;
    bits = ub + place;
  }
  for (int64_t r = 0; r < lanes.repeats; ++r) {
    const int count = lanes.in(r);
    for (int lane = 0; lane < kPer; ++lane) {
      if (!lanes.chunk(count, lane, 1)) continue;
      const int64_t bit = mode == 0 ? lane : r * kPer + lane;
      Bits value;
      if (bits[bit / 8] >> (bit % 8) & 1) {
        std::memcpy(&value, ub + src0.at(r, lane), sizeof value);
      } else {
        std::memcpy(&value, mode == 1 ? held : ub + src1.at(r, lane), sizeof value);
      }
      std::memcpy(ub + dst.at(r, lane), &value, sizeof value);
    }
  }
}

// ---- Spreading and collecting
// -------------------------------------------------------------------------

template <class T>
void run_broadcast(Core& core, const Op& op) {
  uint8_t* const ub = core.mem[kUb];
  const Operand dst = get_operand(op, 0, sizeof(T));
  const Operand src = get_operand(op, 1, sizeof(T));
  for (int64_t i = 0; i < op.arg[kArgRepeats] * 8; ++i) {
    T value;
    std::memcpy(&value, ub + src.base + i * sizeof(T), sizeof value);
    T block[kBlock / sizeof(T)];
    std::fill(std::begin(block), std::end(block), value);
    std::memcpy(ub + dst.base + i / 8 * dst.repeat + i % 8 * dst.block, block, sizeof block);
  }
}

template <class T>
void run_gather(Core& core, const Op& op) {
  constexpr int kPer = kRepeatBytes / sizeof(T);
  const Lanes lanes = get_lanes(op, kPer);
  uint8_t* const ub = core.mem[kUb];
  const Operand dst = get_operand(op, 0, sizeof(T));
  const Operand offsets = get_operand(op, 1, sizeof(uint32_t));
  for (int64_t r = 0; r < lanes.repeats; ++r) {
    for (int lane = 0; lane < kPer; ++lane) {
      if (!lanes.chunk(lanes.in(r), lane, 1)) continue;
      uint32_t offset;
      std::memcpy(&offset, ub + offsets.at(r, lane), sizeof offset);
      const uint64_t from = static_cast<uint64_t>(op.arg[kArgScalar]) + offset;
      aligned(op, kUb, from, sizeof(T));
      if (!touch(core, op, false, from, sizeof(T))) continue;
      std::memcpy(ub + dst.at(r, lane), ub + from, sizeof(T));
    }
  }
}

void run_gather_blocks(Core& core, const Op& op) {
  uint8_t* const ub = core.mem[kUb];
  const Operand dst = get_operand(op, 0, 1);
  const Operand offsets = get_operand(op, 1, 4);
  for (int64_t i = 0; i < op.arg[kArgRepeats] * 8; ++i) {
    uint32_t offset;
    std::memcpy(&offset, ub + offsets.base + i * sizeof offset, sizeof offset);
    const uint64_t from = static_cast<uint64_t>(op.arg[kArgScalar]) + offset;
    aligned(op, kUb, from, kBlock);
    if (!touch(core, op, false, from, kBlock)) continue;
    std::memmove(ub + dst.base + i / 8 * dst.repeat + i % 8 * dst.block, ub + from, kBlock);
  }
}

constexpr int kArgPattern = kArgOperands + 4;

bool in_pattern(int pattern, int lane) {
  switch (pattern) {  // Ascend C, GatherMask
    case 1:
      return lane % 2 == 0;
    case 2:
      return lane % 2 == 1;
    case 7:
      return true;
    default:
      return lane % 4 == pattern - 3;
  }
}

template <class T>
void run_squeeze(Core& core, const Op& op) {
  uint8_t* const ub = core.mem[kUb];
  const uint64_t dst = get_operand(op, 0, sizeof(T)).base;
  const Operand src = get_operand(op, 1, sizeof(T));
  const Operand chosen = get_operand(op, 2, 1);
  const auto pattern = static_cast<int>(op.arg[kArgPattern]);
  std::vector<T> kept;
  for (int64_t r = 0; r < op.arg[kArgRepeats]; ++r) {
    const uint8_t* bits = ub + chosen.base + r * chosen.repeat;
    for (int lane = 0; lane < op.arg[kArgCount]; ++lane) {
      if (!(pattern == 0 ? bits[lane / 8] >> (lane % 8) & 1 : in_pattern(pattern, lane))) continue;
      T value;
      std::memcpy(&value, ub + src.at(r, lane), sizeof value);
      kept.push_back(value);
    }
  }
  state_of(core).squeezed = static_cast<int64_t>(kept.size());
  const auto bytes = static_cast<uint32_t>(kept.size() * sizeof(T));
  if (bytes > 0 && touch(core, op, true, dst, bytes)) std::memcpy(ub + dst, kept.data(), bytes);
}

void run_transpose(Core& core, const Op& op) {
  uint16_t from[16][16];
  uint16_t to[16][16];
  std::memcpy(from, core.mem[kUb] + op.access[0].base, sizeof from);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) to[j][i] = from[i][j];
  }
  std::memcpy(core.mem[kUb] + op.access[1].base, to, sizeof to);
}

void run_set_mask(Core& core, const Op& op) {
  std::memcpy(state_of(core).compare, core.mem[kUb] + op.access[0].base, 16);
}

void run_get_mask(Core& core, const Op& op) {
  std::memcpy(core.mem[kUb] + op.access[0].base, state_of(core).compare, 16);
}

}  // namespace

// ---- Builtins
// -----------------------------------------------------------------------------------------

void vector_reduce(const char* name, Vector what, Type type, int order, uint64_t dst, uint64_t src,
                   F8 repeat, F16 dst_repeat, F16 src_block, F16 src_repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int size = size_of(type);
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand source{src, size, take(op, "srcBlockStride", src_block) * kBlock,
                       take(op, "srcRepeatStride", src_repeat) * kBlock};
  const int unit = order == kOnlyValue ? size : order == kOnlyIndex ? 4 : 2 * size;
  aligned(op, kUb, dst, unit);
  op.arg[kArgOrder] = order;
  const bool maximum = what == Vector::kReduceMax;
  if (type == Type::kF32) {
    op.execute = what == Vector::kReduceAdd ? run_sum<float>
                 : maximum                  ? run_extreme<float, true>
                                            : run_extreme<float, false>;
  } else {
    op.execute = what == Vector::kReduceAdd ? run_sum<half>
                 : maximum                  ? run_extreme<half, true>
                                            : run_extreme<half, false>;
  }
  issue_reduction(op, what, source, dst, take(op, "dstRepeatStride", dst_repeat) * unit,
                  lanes_of(g_launch->current(), repeats, kRepeatBytes / size),
                  [unit](int) { return unit; });
}

void vector_accumulate(const char* name, Type type, uint64_t dst, uint64_t src, F8 repeat,
                       F16 src_block, F16 src_repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int size = size_of(type);
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand source{src, size, take(op, "srcBlockStride", src_block) * kBlock,
                       take(op, "srcRepeatStride", src_repeat) * kBlock};
  aligned(op, kUb, dst, size);
  op.execute = type == Type::kF32 ? run_accumulate<float> : run_accumulate<half>;
  issue_reduction(op, Vector::kReduceAdd, source, dst, 0,
                  lanes_of(g_launch->current(), repeats, kRepeatBytes / size),
                  [size](int) { return size; });
}

void vector_reduce_part(const char* name, Vector what, Type type, uint64_t dst, uint64_t src,
                        F8 repeat, F16 dst_repeat, F16 src_block, F16 src_repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int size = size_of(type);
  const int per = kRepeatBytes / size;
  const int group = what == Vector::kPairAdd ? 2 : kBlock / size;
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand source{src, size, take(op, "srcBlockStride", src_block) * kBlock,
                       take(op, "srcRepeatStride", src_repeat) * kBlock};
  // Eight results are one unit in half too: 16 bytes (Ascend C, asc_datablock_reduce_max).
  aligned(op, kUb, dst, std::min(kBlock, per / group * size));
  op.execute = type == Type::kF32 ? part_of<float>(what) : part_of<half>(what);
  issue_reduction(
      op, what, source, dst, take(op, "dstRepeatStride", dst_repeat) * (per / group * size),
      lanes_of(g_launch->current(), repeats, per),
      [=](int count) { return ((count < 0 ? per : count) + group - 1) / group * size; });
}

void vector_compare(const char* name, Compare what, Type type, uint64_t src0, uint64_t src1,
                    F8 repeat, F8 dst_block, F8 src0_block, F8 src1_block, F8 dst_repeat,
                    F8 src0_repeat, F8 src1_repeat, Site site) {
  Op op = make_op(name, kV, site);
  // One repeat, whatever the argument; lanes that are off keep their bits (Ascend C, asc_eq).
  take(op, "repeat", repeat);
  take(op, "dstBlockStride", dst_block);
  take(op, "dstRepeatStride", dst_repeat);
  take(op, "src0RepeatStride", src0_repeat);
  take(op, "src1RepeatStride", src1_repeat);
  const int size = size_of(type);
  const Operand operands[] = {{src0, size, take(op, "src0BlockStride", src0_block) * kBlock, 0},
                              {src1, size, take(op, "src1BlockStride", src1_block) * kBlock, 0}};
  Lanes lanes = lanes_of(g_launch->current(), 1, kRepeatBytes / size);
  if (lanes.repeats == 0) return;
  if (lanes.repeats > 1) lanes.last = lanes.count;
  lanes.repeats = 1;
  lanes.count = lanes.last;
  for (int i = 0; i < 2; ++i) {
    aligned(op, kUb, operands[i].base, kBlock);
    put_operand(op, i, operands[i]);
    add_lanes(op, false, operands[i], lanes, true);
  }
  put_lanes(op, lanes);
  op.arg[kArgWhat] = static_cast<int64_t>(what);
  op.cycles = vector_cycles(Vector::kCompare, 1, false);
  op.execute = type == Type::kF32 ? run_compare<float> : run_compare<half>;
  g_launch->issue(op);
}

void vector_compare_to(const char* name, Compare what, Type type, uint64_t dst, uint64_t src0,
                       uint64_t src1, F8 repeat, F8 dst_block, F8 src0_block, F8 src1_block,
                       F8 dst_repeat, F8 src0_repeat, F8 src1_repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int size = size_of(type);
  take(op, "dstBlockStride", dst_block);
  take(op, "dstRepeatStride", dst_repeat);
  const Operand operands[] = {{dst, 1, 0, 0},
                              {src0, size, take(op, "src0BlockStride", src0_block) * kBlock,
                               take(op, "src0RepeatStride", src0_repeat) * kBlock},
                              {src1, size, take(op, "src1BlockStride", src1_block) * kBlock,
                               take(op, "src1RepeatStride", src1_repeat) * kBlock}};
  op.arg[kArgWhat] = static_cast<int64_t>(what);
  issue_compare_to(op, type, take(op, "repeat", repeat), operands, 3);
}

void vector_compare_scalar(const char* name, Compare what, Type type, uint64_t dst, uint64_t src,
                           uint32_t scalar, F8 repeat, F16 dst_block, F16 src_block, F16 dst_repeat,
                           F16 src_repeat, Site site) {
  Op op = make_op(name, kV, site);
  take(op, "dstBlockStride", dst_block);
  take(op, "dstRepeatStride", dst_repeat);
  const Operand operands[] = {{dst, 1, 0, 0},
                              {src, size_of(type), take(op, "srcBlockStride", src_block) * kBlock,
                               take(op, "srcRepeatStride", src_repeat) * kBlock}};
  op.arg[kArgWhat] = static_cast<int64_t>(what);
  op.arg[kArgScalar] = scalar;
  issue_compare_to(op, type, take(op, "repeat", repeat), operands, 2);
}

void set_compare_mask(uint64_t src, Site site) {
  Op op = make_op("set_cmpmask", kV, site);
  aligned(op, kUb, src, kBlock);
  op.add(kUb, false, src, 16);
  op.cycles = vector_cycles(Vector::kSetMask, 1, false);
  op.execute = run_set_mask;
  g_launch->issue(op);
}

void get_compare_mask(uint64_t dst, Site site) {
  Op op = make_op("get_cmpmask", kV, site);
  aligned(op, kUb, dst, kBlock);
  op.add(kUb, true, dst, 16);
  op.cycles = vector_cycles(Vector::kGetMask, 1, false);
  op.execute = run_get_mask;
  g_launch->issue(op);
}

void vector_select(const char* name, int mode, Type type, uint64_t dst, uint64_t src0,
                   uint64_t src1, F8 repeat, F8 dst_block, F8 src0_block, F8 src1_block,
                   F8 dst_repeat, F8 src0_repeat, F8 src1_repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int size = size_of(type);
  const int per = kRepeatBytes / size;
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand operands[] = {{dst, size, take(op, "dstBlockStride", dst_block) * kBlock,
                               take(op, "dstRepeatStride", dst_repeat) * kBlock},
                              {src0, size, take(op, "src0BlockStride", src0_block) * kBlock,
                               take(op, "src0RepeatStride", src0_repeat) * kBlock},
                              {src1, size, take(op, "src1BlockStride", src1_block) * kBlock,
                               take(op, "src1RepeatStride", src1_repeat) * kBlock}};
  op.arg[kArgMode] = mode;
  op.arg[kArgBits] = static_cast<int64_t>(src1);
  if (mode == 1) aligned(op, kUb, src1, kBlock);
  op.execute = type == Type::kF32 ? run_select<float> : run_select<half>;
  issue_lanes(op, Vector::kSelect, lanes_of(g_launch->current(), repeats, per), operands,
              mode == 1 ? 2 : 3);
}

void vector_broadcast(const char* name, Type type, uint64_t dst, uint64_t src, F16 dst_block,
                      F16 dst_repeat, F8 repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int size = size_of(type);
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand target{dst, size, take(op, "dstBlockStride", dst_block) * kBlock,
                       take(op, "dstRepeatStride", dst_repeat) * kBlock};
  if (repeats == 0) return;
  if (target.block == 0) not_modelled("vbrcb with dstBlockStride 0", site);
  aligned(op, kUb, dst, kBlock);
  aligned(op, kUb, src, kBlock);
  op.add(kUb, false, src, static_cast<uint32_t>(repeats * 8 * size));
  Access& access = op.add(kUb, true, dst, kBlock);
  access.inner = 8;
  access.inner_stride = target.block;
  access.outer = static_cast<uint32_t>(repeats);
  access.outer_stride = target.repeat;
  op.arg[kArgRepeats] = repeats;
  put_operand(op, 0, target);
  put_operand(op, 1, {src, size, 0, 0});
  op.cycles = vector_cycles(Vector::kBroadcast, repeats, false);
  op.execute = size == 4 ? run_broadcast<uint32_t> : run_broadcast<uint16_t>;
  g_launch->issue(op);
}

void vector_gather(const char* name, Type type, uint64_t dst, uint64_t offsets, F32 base,
                   F16 dst_repeat, F8 repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int size = size_of(type);
  const int per = kRepeatBytes / size;
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand operands[] = {{dst, size, kBlock, take(op, "dstRepeatStride", dst_repeat) * kBlock},
                              {offsets, 4, kBlock, per * 4}};
  op.arg[kArgScalar] = take(op, "offsetAddr", base);
  op.execute = size == 4 ? run_gather<uint32_t> : run_gather<uint16_t>;
  issue_lanes(op, Vector::kGather, lanes_of(g_launch->current(), repeats, per), operands, 2);
}

// Takes no mask: Ascend C resets it first, and offsets are of blocks.
void vector_gather_blocks(const char* name, uint64_t dst, uint64_t offsets, F32 base,
                          F16 dst_repeat, F8 dst_block, F8 repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand target{dst, 1, take(op, "dstBlockStride", dst_block) * kBlock,
                       take(op, "dstRepeatStride", dst_repeat) * kBlock};
  if (repeats == 0) return;
  aligned(op, kUb, dst, kBlock);
  aligned(op, kUb, offsets, kBlock);
  op.add(kUb, false, offsets, static_cast<uint32_t>(repeats * 8 * 4));
  Access& access = op.add(kUb, true, dst, kBlock);
  access.inner = 8;
  access.inner_stride = target.block;
  access.outer = static_cast<uint32_t>(repeats);
  access.outer_stride = target.repeat;
  op.arg[kArgRepeats] = repeats;
  op.arg[kArgScalar] = take(op, "offsetAddr", base);
  put_operand(op, 0, target);
  put_operand(op, 1, {offsets, 4, 0, 0});
  op.cycles = vector_cycles(Vector::kGatherBlocks, repeats, false);
  op.execute = run_gather_blocks;
  g_launch->issue(op);
}

void vector_squeeze(const char* name, Type type, uint64_t dst, uint64_t src0, uint64_t src1,
                    F16 repeat, F8 src0_block, F8 pattern, F16 src0_repeat, F8 src1_repeat,
                    Site site) {
  Op op = make_op(name, kV, site);
  const Core& core = g_launch->current();
  const int size = size_of(type);
  const int64_t repeats = take(op, "repeat", repeat);
  const int64_t mode = take(op, "patternMode", pattern);
  at_most(op, "patternMode", mode, 7);
  // In counter mode each repeat does as many lanes as the mask says; else 256 bytes (Ascend C,
  // GatherMask).
  const auto per = core.counted ? static_cast<int>(std::min<uint64_t>(core.mask[0], kMemBytes[kUb]))
                                : kRepeatBytes / size;
  const Lanes lanes = all_lanes(repeats, per);
  if (repeats == 0 || per == 0) return;
  const Operand source{src0, size, take(op, "src0BlockStride", src0_block) * kBlock,
                       take(op, "src0RepeatStride", src0_repeat) * kBlock};
  const Operand chosen{src1, 1, kBlock, take(op, "src1RepeatStride", src1_repeat) * kBlock};
  aligned(op, kUb, dst, kBlock);
  aligned(op, kUb, src0, kBlock);
  add_lanes(op, false, source, lanes, true);
  if (mode == 0) {
    aligned(op, kUb, src1, kBlock);
    Access& access = op.add(kUb, false, src1, static_cast<uint32_t>((per + 7) / 8));
    access.outer = static_cast<uint32_t>(repeats);
    access.outer_stride = chosen.repeat;
  }
  put_lanes(op, lanes);
  put_operand(op, 0, {dst, size, 0, 0});
  put_operand(op, 1, source);
  put_operand(op, 2, chosen);
  op.arg[kArgPattern] = mode & 7;
  op.cycles = vector_cycles(Vector::kSqueeze, repeats * ((per * size + 255) / 256), false);
  op.execute = size == 4 ? run_squeeze<uint32_t> : run_squeeze<uint16_t>;
  g_launch->issue(op);
}

void vector_transpose(const char* name, uint64_t dst, uint64_t src, Site site) {
  Op op = make_op(name, kV, site);
  constexpr uint32_t kBytes = 16 * 16 * 2;
  aligned(op, kUb, dst, kBlock);
  aligned(op, kUb, src, kBlock);
  op.add(kUb, false, src, kBytes);
  op.add(kUb, true, dst, kBytes);
  op.cycles = vector_cycles(Vector::kTranspose, 1, false);
  op.execute = run_transpose;
  g_launch->issue(op);
}

int64_t accumulated_value() { return state_of(g_launch->current()).accumulated; }
int64_t extreme_and_index() { return state_of(g_launch->current()).extreme; }
int64_t squeezed_count() { return state_of(g_launch->current()).squeezed; }

}  // namespace sim
