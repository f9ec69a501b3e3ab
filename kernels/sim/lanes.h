// How vector builtins walk over their operands: repeats, blocks, masks, and the accesses they make.
#pragma once

// These two keep GCC from vectorising the loops over lanes, and change no value.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-trapping-math", "no-math-errno")
#endif

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>
#include <utility>

#include "build_op.h"
#include "include/cce.h"

namespace sim {

// A repeat is eight blocks of 32 bytes of the widest operand; a narrower one has fewer of them.
constexpr int kRepeatBytes = 8 * kBlock;

// Element e of repeat r lies at base + r * repeat + e * size / 32 * block + e * size % 32. All in
// bytes.
struct Operand {
  uint64_t base = 0;
  int size = 0;
  int64_t block = 0;
  int64_t repeat = 0;

  uint64_t at(int64_t r, int lane) const {
    const unsigned offset = static_cast<unsigned>(lane * size);
    return base + r * repeat + offset / kBlock * block + offset % kBlock;
  }
};

// The lanes that mask, mode and repeat count leave to do: in each repeat those of `bits`, of which
// the last repeat does only the first `last`.
struct Lanes {
  int64_t repeats = 0;
  int per = 0;    // lanes of a repeat
  int count = 0;  // if the mask is the lowest n lanes: n; else -1
  int last = 0;   // lanes of the last repeat: `count`, or in counter mode what is left
  uint64_t bits[2] = {};

  int in(int64_t r) const { return r + 1 == repeats ? last : count; }
  // Which of the lanes [lane, lane + size) are on in a repeat with `in_repeat` lanes; size is at
  // most 32.
  uint32_t chunk(int in_repeat, int lane, int size) const {
    const uint64_t all = (1ull << size) - 1;
    if (in_repeat < 0) return static_cast<uint32_t>(bits[lane >> 6] >> (lane & 63) & all);
    if (lane + size <= in_repeat) return static_cast<uint32_t>(all);
    return lane < in_repeat ? (1u << (in_repeat - lane)) - 1 : 0;
  }
};

// Lanes of an operation with `per` lanes a repeat. `repeat` does not count in counter mode (Ascend
// C, SetMaskCount).
Lanes lanes_of(const Core& core, int64_t repeat, int per);
// All lanes of every repeat, for operations that take no mask.
Lanes all_lanes(int64_t repeat, int per);

// Calls f(part, first repeat of it) for stretches of repeats with the same lanes: one, or in
// counter mode all but the last repeat and then that.
template <class F>
void in_parts(const Lanes& lanes, F f) {
  Lanes part = lanes;
  if (lanes.last != lanes.count) {
    part.last = part.count;
    if (--part.repeats > 0) f(part, int64_t{0});
    const int64_t first = part.repeats;
    part.repeats = 1;
    part.count = part.last = lanes.last;
    return f(part, first);
  }
  if (lanes.repeats > 0) f(part, int64_t{0});
}

// Cost from one table in vector.cpp; `counted`: counter mode.
float vector_cycles(Vector what, int64_t repeats, bool counted);

// Fills in accesses, lanes and cycles, and issues the operation: operand 0 is the destination, the
// others are sources. Nothing happens if there is no lane to do. Every base must be aligned to a
// block.
void issue_lanes(Op& op, Vector what, const Lanes& lanes, const Operand* operands, int count);
// The bytes from `base` on that `lanes` make of an operand whose repeats meet or overlap; else 0.
int64_t one_stretch(const Operand& operand, const Lanes& lanes);
// Adds what `lanes`, with equal repeats, make of one operand.
void add_lanes(Op& op, bool write, const Operand& operand, const Lanes& lanes, bool exact);

// The same at execution, for operations whose addresses are data: in bounds, checked and recorded.
bool touch(Core& core, const Op& op, bool write, uint64_t base, uint32_t bytes);

// ---- Lanes and operands in Op::arg
// --------------------------------------------------------------------

enum LaneArg { kArgRepeats, kArgCount, kArgLast, kArgFirst, kArgScalar, kArgOperands };

inline void put_operand(Op& op, int index, const Operand& operand) {
  // 20 bits of address, and strides of at most 2^16 blocks.
  op.arg[kArgOperands + index] = static_cast<int64_t>(operand.base & 0xfffff) |
                                 operand.block / kBlock << 20 | operand.repeat << 36;
}
inline Operand get_operand(const Op& op, int index, int size) {
  const int64_t word = op.arg[kArgOperands + index];
  return {static_cast<uint64_t>(word & 0xfffff), size, (word >> 20 & 0xffff) * kBlock, word >> 36};
}
// `first`: repeats of the builtin before this operation.
inline void put_lanes(Op& op, const Lanes& lanes, int64_t first = 0) {
  op.arg[kArgFirst] = first;
  op.arg[kArgRepeats] = lanes.repeats;
  op.arg[kArgCount] = lanes.count;
  op.arg[kArgLast] = lanes.last;
}
inline Lanes get_lanes(const Op& op, int per) {
  Lanes lanes;
  lanes.repeats = op.arg[kArgRepeats];
  lanes.per = per;
  lanes.count = static_cast<int>(op.arg[kArgCount]);
  lanes.last = static_cast<int>(op.arg[kArgLast]);
  lanes.bits[0] = op.mask[0];
  lanes.bits[1] = op.mask[1];
  return lanes;
}

// ---- Elements
// -----------------------------------------------------------------------------------------

// What arithmetic is done in: float for the narrow floating types, rounded once on the way out.
template <class T>
struct Work {
  using type = T;
};
template <>
struct Work<half> {
  using type = float;
};
template <>
struct Work<bfloat16_t> {
  using type = float;
};
template <class T>
using WorkOf = typename Work<T>::type;

template <class T, int kCount>
inline void load(const uint8_t* from, WorkOf<T>* to) {
  if constexpr (std::is_same_v<T, half>) {
#if defined(__F16C__)
    if constexpr (kCount % 8 == 0) {
      for (int i = 0; i < kCount; i += 8) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i));
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(bits));
      }
      return;
    }
#endif
    uint16_t bits[kCount];
    std::memcpy(bits, from, sizeof bits);
    for (int i = 0; i < kCount; ++i) to[i] = from_half(bits[i]);
  } else if constexpr (std::is_same_v<T, bfloat16_t>) {
    uint16_t bits[kCount];
    std::memcpy(bits, from, sizeof bits);
    for (int i = 0; i < kCount; ++i) to[i] = from_bf16(bits[i]);
  } else {
    std::memcpy(to, from, kCount * sizeof(T));
  }
}

// NaN becomes the type's quiet NaN; too large a value infinity, as with the chip's INF/NAN mode on.
template <class T, int kCount>
inline void store(const WorkOf<T>* from, uint8_t* to) {
  if constexpr (std::is_same_v<T, half>) {
#if defined(__F16C__)
    if constexpr (kCount % 8 == 0) {
      for (int i = 0; i < kCount; i += 8) {
        const __m128i bits = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * i), bits);
      }
      return;
    }
#endif
    uint16_t bits[kCount];
    for (int i = 0; i < kCount; ++i) bits[i] = to_half(from[i]);
    std::memcpy(to, bits, sizeof bits);
  } else if constexpr (std::is_same_v<T, bfloat16_t>) {
    uint16_t bits[kCount];
    for (int i = 0; i < kCount; ++i) bits[i] = to_bf16(from[i]);
    std::memcpy(to, bits, sizeof bits);
  } else {
    std::memcpy(to, from, kCount * sizeof(T));
  }
}

template <class T>
inline WorkOf<T> scalar_of(const Op& op) {
  T value;
  const auto bits = static_cast<uint32_t>(op.arg[kArgScalar]);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// One repeat of a source; lanes that are off read as `absent`.
template <class T>
inline void load_repeat(const uint8_t* ub, const Operand& operand, const Lanes& lanes, int64_t r,
                        WorkOf<T> absent, WorkOf<T>* to) {
  constexpr int kPerBlock = kBlock / sizeof(T);
  constexpr uint64_t kAll = (1ull << kPerBlock) - 1;
  const int count = lanes.in(r);
  for (int lane = 0; lane < 8 * kPerBlock; lane += kPerBlock, to += kPerBlock) {
    const uint64_t mask = lanes.chunk(count, lane, kPerBlock);
    if (mask == 0) {
      for (int i = 0; i < kPerBlock; ++i) to[i] = absent;
      continue;
    }
    load<T, kPerBlock>(ub + operand.at(r, lane), to);
    if (mask == kAll) continue;
    for (int i = 0; i < kPerBlock; ++i) to[i] = mask >> i & 1 ? to[i] : absent;
  }
}

// ---- Lane by lane
// -------------------------------------------------------------------------------------

// dst = f(sources...) in every lane that is on; an Op::execute. F is made from the Op. A repeat is
// read as a whole, computed in every lane, and written where the mask says: the loop over its lanes
// has a fixed length, and vectorises whatever strides and mask.
template <class F, class D, class... S>
struct RunLanes {
  static constexpr int kSize = std::max({sizeof(D), sizeof(S)...});
  static constexpr int kPer = kRepeatBytes / kSize;
  static constexpr int kChunk = kBlock / kSize;  // no operand's block ends within so many lanes
  static constexpr int kSources = sizeof...(S);

  template <size_t... I>
  static void run(Core& core, const Op& op, std::index_sequence<I...>) {
    const F f(op);
    const Lanes lanes = get_lanes(op, kPer);
    uint8_t* const ub = core.mem[kUb];
    const Operand dst = get_operand(op, 0, sizeof(D));
    const Operand src[kSources + 1] = {get_operand(op, 1 + I, sizeof(S))..., {}};
    const bool linear = ((dst.block == kBlock) & ... & (src[I].block == kBlock));
    alignas(32) WorkOf<D> result[kPer];
    alignas(32) std::tuple<std::array<WorkOf<S>, kPer>...> source{};
    for (int64_t r = 0; r < lanes.repeats; ++r) {
      const int count = lanes.in(r);
      const bool plain = linear && count == kPer;
      if (plain) {
        (load<S, kPer>(ub + src[I].at(r, 0), std::get<I>(source).data()), ...);
      } else {
        for (int lane = 0; lane < kPer; lane += kChunk) {
          if (!lanes.chunk(count, lane, kChunk)) continue;
          (load<S, kChunk>(ub + src[I].at(r, lane), std::get<I>(source).data() + lane), ...);
        }
      }
      lane_loop(f, result, std::get<I>(source).data()...);
      if (plain) {
        store<D, kPer>(result, ub + dst.at(r, 0));
      } else {
        for (int lane = 0; lane < kPer; lane += kChunk) {
          put(lanes.chunk(count, lane, kChunk), result + lane, ub + dst.at(r, lane));
        }
      }
    }
  }

  template <class... P>
  static void lane_loop(const F& f, WorkOf<D>* result, const P*... source) {
    for (int i = 0; i < kPer; ++i) result[i] = f(source[i]...);
  }

  static void put(uint32_t mask, const WorkOf<D>* result, uint8_t* to) {
    if (mask == (1ull << kChunk) - 1) return store<D, kChunk>(result, to);
    if (mask == 0) return;
    uint8_t bytes[kChunk * sizeof(D)];
    store<D, kChunk>(result, bytes);
    for (int i = 0; i < kChunk; ++i) {
      if (mask >> i & 1) std::memcpy(to + i * sizeof(D), bytes + i * sizeof(D), sizeof(D));
    }
  }
};

template <class F, class D, class... S>
void run_lanes(Core& core, const Op& op) {
  RunLanes<F, D, S...>::run(core, op, std::index_sequence_for<S...>{});
}

}  // namespace sim
