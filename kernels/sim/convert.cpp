// vconv: conversions between types, with the chip's rounding modes. Ascend C, Cast and "precision
// conversion": integers saturate. Chosen where it says nothing: NaN becomes 0 in an integer, and a
// floating value out of range what IEEE 754 gives in that rounding mode (CTRL[48] = 1 keeps
// infinities).
#include <cmath>

#include "lanes.h"

namespace sim {
namespace {

// `magnitude` without its lowest `drop` bits, rounded.
template <Round kRound>
uint32_t drop_bits(uint32_t magnitude, int drop, bool negative) {
  const uint64_t wide = magnitude;
  drop = std::min(drop, 40);  // nothing is left from there on
  const uint64_t rest = wide & ((1ull << drop) - 1);
  const uint64_t middle = drop > 0 ? 1ull << (drop - 1) : 1;
  const auto kept = static_cast<uint32_t>(wide >> drop);
  if constexpr (kRound == Round::kRint)
    return kept + (rest > middle || (rest == middle && (kept & 1)));
  if constexpr (kRound == Round::kAway) return kept + (rest >= middle);
  if constexpr (kRound == Round::kFloor) return kept + (negative && rest != 0);
  if constexpr (kRound == Round::kCeil) return kept + (!negative && rest != 0);
  if constexpr (kRound == Round::kTrunc) return kept;
  return kept | (rest != 0);
}

template <Round kRound>
float to_whole(float x) {
  if constexpr (kRound == Round::kRint) return std::nearbyint(x);
  if constexpr (kRound == Round::kAway) return std::round(x);
  if constexpr (kRound == Round::kFloor) return std::floor(x);
  if constexpr (kRound == Round::kCeil) return std::ceil(x);
  return std::trunc(x);
}

// The nearest half or bfloat16 in the rounding mode, as a float.
template <Round kRound>
float to_half_value(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t magnitude = bits & 0x7fffffff;
  const bool negative = bits >> 31;
  if (magnitude >= 0x7f800000) return x;
  uint32_t half_bits;
  if (magnitude >= 0x47800000) {  // 2^16
    const bool up = kRound == Round::kRint || kRound == Round::kAway ||
                    (kRound == Round::kFloor && negative) || (kRound == Round::kCeil && !negative);
    half_bits = up ? 0x7c00 : 0x7bff;
  } else if (magnitude >= 0x38800000) {  // 2^-14
    half_bits = drop_bits<kRound>(magnitude - (112u << 23), 13, negative);
  } else {
    const int exponent = std::max<int>(magnitude >> 23, 1);
    const uint32_t mantissa = (magnitude & 0x7fffff) | (magnitude >> 23 ? 0x800000 : 0);
    half_bits = drop_bits<kRound>(mantissa, 126 - exponent, negative);
  }
  return from_half(static_cast<uint16_t>(half_bits | (negative ? 0x8000 : 0)));
}

template <Round kRound>
float to_bf16_value(float x) {
  const uint32_t bits = float_to_bits(x);
  if (x != x) return x;
  const uint32_t kept = drop_bits<kRound>(bits & 0x7fffffff, 16, bits >> 31);
  return bits_to_float(kept << 16 | (bits & 0x80000000));
}

template <Round kRound>
float to_float_value(int32_t x) {
  const bool negative = x < 0;
  const uint32_t magnitude = negative ? 0u - static_cast<uint32_t>(x) : static_cast<uint32_t>(x);
  const int drop = std::max(0, 8 - (magnitude ? __builtin_clz(magnitude) : 32));
  const float value =
      std::ldexp(static_cast<float>(drop_bits<kRound>(magnitude, drop, negative)), drop);
  return negative ? -value : value;
}

template <class T>
T saturated(float x) {
  constexpr double kLow = std::numeric_limits<T>::min();
  constexpr double kHigh = std::numeric_limits<T>::max();
  if (x != x) return 0;
  return static_cast<T>(std::min(std::max<double>(x, kLow), kHigh));
}

template <class D, class S, Round kRound>
struct Converter {
  explicit Converter(const Op&) {}
  WorkOf<D> operator()(WorkOf<S> x) const {
    if constexpr (std::is_same_v<S, int32_t> && std::is_same_v<D, int16_t>) {
      return static_cast<int16_t>(std::min(std::max(x, -32768), 32767));
    } else if constexpr (std::is_same_v<S, int32_t>) {
      return to_float_value<kRound>(x);
    } else if constexpr (std::is_same_v<D, half> && kRound != Round::kRint) {
      return to_half_value<kRound>(x);
    } else if constexpr (std::is_same_v<D, bfloat16_t> && kRound != Round::kRint) {
      return to_bf16_value<kRound>(x);
    } else if constexpr (std::is_integral_v<D>) {
      return saturated<D>(to_whole<kRound>(x));
    } else if constexpr (std::is_same_v<D, float> && std::is_same_v<S, float>) {
      return to_whole<kRound>(x);
    } else {
      return x;  // exact, or rounded to nearest even when it is stored
    }
  }
};

template <class D, class S>
Execute rounded(Round round) {
  switch (round) {
    case Round::kRint:
      return run_lanes<Converter<D, S, Round::kRint>, D, S>;
    case Round::kAway:
      return run_lanes<Converter<D, S, Round::kAway>, D, S>;
    case Round::kFloor:
      return run_lanes<Converter<D, S, Round::kFloor>, D, S>;
    case Round::kCeil:
      return run_lanes<Converter<D, S, Round::kCeil>, D, S>;
    case Round::kTrunc:
      return run_lanes<Converter<D, S, Round::kTrunc>, D, S>;
    default:
      return nullptr;
  }
}
template <class D, class S>
constexpr Execute kPlain = run_lanes<Converter<D, S, Round::kRint>, D, S>;

Execute converter(Type to, Type from, Round round) {
  const auto pair = [](Type d, Type s) { return static_cast<int>(d) * 16 + static_cast<int>(s); };
  switch (pair(to, from)) {
    case pair(Type::kF32, Type::kF16):
      return kPlain<float, half>;
    case pair(Type::kF32, Type::kBf16):
      return kPlain<float, bfloat16_t>;
    case pair(Type::kF16, Type::kF32):
      if (round == Round::kOdd) return run_lanes<Converter<half, float, Round::kOdd>, half, float>;
      return rounded<half, float>(round);
    case pair(Type::kBf16, Type::kF32):
      return rounded<bfloat16_t, float>(round);
    case pair(Type::kF32, Type::kF32):
      return rounded<float, float>(round);
    case pair(Type::kI32, Type::kF32):
      return rounded<int32_t, float>(round);
    case pair(Type::kI16, Type::kF32):
      return rounded<int16_t, float>(round);
    case pair(Type::kI32, Type::kF16):
      return rounded<int32_t, half>(round);
    case pair(Type::kI16, Type::kF16):
      return rounded<int16_t, half>(round);
    case pair(Type::kI8, Type::kF16):
      return rounded<int8_t, half>(round);
    case pair(Type::kU8, Type::kF16):
      return rounded<uint8_t, half>(round);
    case pair(Type::kI32, Type::kBf16):
      return rounded<int32_t, bfloat16_t>(round);
    case pair(Type::kF32, Type::kI32):
      return rounded<float, int32_t>(round);
    case pair(Type::kI16, Type::kI32):
      return kPlain<int16_t, int32_t>;
    case pair(Type::kF32, Type::kI16):
      return kPlain<float, int16_t>;
    case pair(Type::kF16, Type::kI16):
      return rounded<half, int16_t>(round);
    case pair(Type::kF16, Type::kI8):
      return kPlain<half, int8_t>;
    case pair(Type::kF16, Type::kU8):
      return kPlain<half, uint8_t>;
    default:
      return nullptr;
  }
}

// Ascend C, Cast: half(src / 2^17 * scale * 2^17), which in float is the plain product.
struct Dequantise {
  float scale;
  explicit Dequantise(const Op& op) : scale(from_half(static_cast<uint16_t>(op.arg[kArgScalar]))) {}
  float operator()(int32_t x) const { return static_cast<float>(x) * scale; }
};

// A parameter set: bits 0..31 scale as float, 37..45 offset, 46 signed result (Ascend C,
// MakeDeqScaleConfig). dst = saturate(rint(src * scale + offset)).
uint8_t requantised(int16_t x, uint64_t set) {
  const float scale = bits_to_float(static_cast<uint32_t>(set));
  const int offset = static_cast<int>(static_cast<int64_t>(set << 18) >> 55);
  const float value = std::nearbyint(static_cast<float>(x) * scale + static_cast<float>(offset));
  return set >> 46 & 1 ? static_cast<uint8_t>(saturated<int8_t>(value)) : saturated<uint8_t>(value);
}

// Lanes are int16; the result of lane e goes to the given half of block e / 16.
void run_requantise(Core& core, const Op& op) {
  constexpr int kPerBlock = kBlock / 2;
  const Lanes lanes = get_lanes(op, kRepeatBytes / 2);
  const Operand dst = get_operand(op, 0, 2);
  const Operand src = get_operand(op, 1, 2);
  const bool upper = op.arg[kArgOperands + 3];
  const bool table = op.arg[kArgOperands + 4];
  uint64_t sets[kPerBlock];
  if (table) {
    std::memcpy(sets, core.mem[kUb] + get_operand(op, 2, 8).base, sizeof sets);
  } else {
    std::fill(sets, sets + kPerBlock, static_cast<uint64_t>(op.arg[kArgScalar]));
  }
  for (int64_t r = 0; r < lanes.repeats; ++r) {
    for (int lane = 0; lane < lanes.per; ++lane) {
      if (!lanes.chunk(lanes.in(r), lane, 1)) continue;
      int16_t x;
      std::memcpy(&x, core.mem[kUb] + src.at(r, lane), sizeof x);
      const int place = lane % kPerBlock;
      core.mem[kUb][dst.at(r, lane - place) + upper * kPerBlock + place] =
          requantised(x, sets[place]);
    }
  }
}

}  // namespace

void vector_convert(const char* name, Type to, Type from, Round round, uint64_t dst, uint64_t src,
                    F8 repeat, F16 dst_block, F16 src_block, F16 dst_repeat, F16 src_repeat,
                    Site site) {
  Op op = make_op(name, kV, site);
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand operands[] = {{dst, size_of(to), take(op, "dstBlockStride", dst_block) * kBlock,
                               take(op, "dstRepeatStride", dst_repeat) * kBlock},
                              {src, size_of(from), take(op, "srcBlockStride", src_block) * kBlock,
                               take(op, "srcRepeatStride", src_repeat) * kBlock}};
  op.execute = converter(to, from, round);
  // The mask counts elements of the wider type (Ascend C, Cast).
  const int per = kRepeatBytes / std::max(size_of(to), size_of(from));
  issue_lanes(op, Vector::kConvert, lanes_of(g_launch->current(), repeats, per), operands, 2);
}

void vector_dequantise(const char* name, uint64_t dst, uint64_t src, F8 repeat, F16 dst_block,
                       F16 src_block, F8 dst_repeat, F8 src_repeat, Site site) {
  Op op = make_op(name, kV, site);
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand operands[] = {{dst, 2, take(op, "dstBlockStride", dst_block) * kBlock,
                               take(op, "dstRepeatStride", dst_repeat) * kBlock},
                              {src, 4, take(op, "srcBlockStride", src_block) * kBlock,
                               take(op, "srcRepeatStride", src_repeat) * kBlock}};
  const Core& core = g_launch->current();
  op.arg[kArgScalar] = static_cast<int64_t>(core.registers[kDeqScale]);
  op.execute = run_lanes<Dequantise, half, int32_t>;
  issue_lanes(op, Vector::kConvert, lanes_of(core, repeats, kRepeatBytes / 4), operands, 2);
}

void vector_requantise(const char* name, Type to, bool upper, bool table, uint64_t dst,
                       uint64_t src, F8 repeat, F16 dst_block, F16 src_block, F8 dst_repeat,
                       F8 src_repeat, Site site) {
  Op op = make_op(name, kV, site);
  const Core& core = g_launch->current();
  const uint64_t set = core.registers[kDeqScale];
  if (!table && (set >> 46 & 1) != (to == Type::kI8)) {
    g_launch->find("argument out of range", std::string(name) + " at " + site_text(site) +
                                                ": the sign bit of set_deqscale does not fit dst");
  }
  const int64_t repeats = take(op, "repeat", repeat);
  const Operand target{dst, 2, take(op, "dstBlockStride", dst_block) * kBlock,
                       take(op, "dstRepeatStride", dst_repeat) * kBlock};
  const Operand source{src, 2, take(op, "srcBlockStride", src_block) * kBlock,
                       take(op, "srcRepeatStride", src_repeat) * kBlock};
  const Lanes lanes = lanes_of(core, repeats, kRepeatBytes / 2);
  if (lanes.repeats == 0) return;
  aligned(op, kUb, dst, kBlock);
  aligned(op, kUb, src, kBlock);
  op.arg[kArgScalar] = static_cast<int64_t>(set);
  op.arg[kArgOperands + 3] = upper;
  op.arg[kArgOperands + 4] = table;
  op.execute = run_requantise;
  op.cycles = vector_cycles(Vector::kConvert, lanes.repeats, core.counted);
  in_parts(lanes, [&](const Lanes& part, int64_t first) {
    put_lanes(op, part);
    op.num_accesses = 0;
    // Masks count as whole blocks.
    const int whole = part.count < 0 ? part.per : (part.count + 15) / 16 * 16;
    const auto add = [&](bool write, Operand operand, uint64_t offset, uint32_t bytes) {
      operand.base += first * operand.repeat;
      put_operand(op, write ? 0 : 1, operand);
      Access& access = op.add(kUb, write, operand.base + offset, bytes);
      access.inner = whole / 16;
      access.inner_stride = operand.block;
      access.outer = static_cast<uint32_t>(part.repeats);
      access.outer_stride = operand.repeat;
    };
    add(true, target, upper ? kBlock / 2 : 0, kBlock / 2);
    add(false, source, 0, kBlock);
    if (table) {
      // The register holds the place of the sets in UB, in blocks (Ascend C, SetDeqScale).
      constexpr uint32_t kTableBytes = 16 * 8;
      put_operand(op, 2, {set * kBlock, 8, 0, 0});
      op.add(kUb, false, set * kBlock, kTableBytes);
    }
    if (first > 0) op.cycles = 0;
    g_launch->issue(op);
  });
}

}  // namespace sim
