// The raw-CCE language on the host: address spaces, types, enumerations and builtins, as bisheng
// has them for dav-c220. Every builtin takes exactly the hardware's typed arguments and hands them
// to the runtime with the place of the call. Signatures and units: docs/simulator.md names the
// sources.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>

#include "../abi.h"

// ---- Address spaces
// -----------------------------------------------------------------------------------

// With PA_SIM_STRICT (clang, x86-64) every memory is an address space of its own: pointers do not
// mix, and a dereference of UB goes through the GS segment to the running core's buffer. Else
// pointers are plain.
#if defined(PA_SIM_STRICT)
#define __ubuf__ __attribute__((address_space(256)))
#define __cbuf__ __attribute__((address_space(1001)))
#define __ca__ __attribute__((address_space(1002)))
#define __cb__ __attribute__((address_space(1003)))
#define __cc__ __attribute__((address_space(1004)))
#define __fbuf__ __attribute__((address_space(1005)))
#else
#define __ubuf__
#define __cbuf__
#define __ca__
#define __cb__
#define __cc__
#define __fbuf__
#endif
#define __gm__
#define __global__
#define __aicore__
#define __CCE_KT_TEST__ 1  // sources use it to leave out the [aicore] attribute
#define __CCE_AICORE__ 220
#define GM_ADDR __gm__ uint8_t*

// ---- Types
// --------------------------------------------------------------------------------------------

namespace sim {

constexpr uint32_t float_to_bits(float x) { return __builtin_bit_cast(uint32_t, x); }
constexpr float bits_to_float(uint32_t x) { return __builtin_bit_cast(float, x); }

constexpr uint16_t to_bf16(float x) {  // round to nearest even
  const uint32_t bits = float_to_bits(x);
  return x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
constexpr float from_bf16(uint16_t x) { return bits_to_float(static_cast<uint32_t>(x) << 16); }

constexpr uint16_t to_half(float x) {  // round to nearest even
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half = 0;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // 65520, half-way to 2^16
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // below 2^-14: subnormal
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) & 0x7fff;
  } else {
    half = ((magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13) - (112 << 10);
  }
  return static_cast<uint16_t>(sign | half);
}
constexpr float from_half(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x & 0x7fff) << 13;
  if ((x & 0x7c00) == 0x7c00) return bits_to_float(sign | magnitude | 0x7f800000);
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude) * 0x1p112f));
}

}  // namespace sim

struct half {
  uint16_t bits;
  half() = default;
  constexpr half(float x) : bits(sim::to_half(x)) {}
  constexpr operator float() const { return sim::from_half(bits); }
};
struct bfloat16_t {
  uint16_t bits;
  bfloat16_t() = default;
  constexpr bfloat16_t(float x) : bits(sim::to_bf16(x)) {}
  constexpr operator float() const { return sim::from_bf16(bits); }
};
#define __bf16 bfloat16_t

namespace sim {
template <class T>
struct TypeOf;
#define PA_SIM_TYPE(T, NAME)                  \
  template <>                                 \
  struct TypeOf<T> {                          \
    static constexpr Type value = Type::NAME; \
  };
PA_SIM_TYPE(float, kF32)
PA_SIM_TYPE(half, kF16)
PA_SIM_TYPE(bfloat16_t, kBf16)
PA_SIM_TYPE(int32_t, kI32)
PA_SIM_TYPE(uint32_t, kU32)
PA_SIM_TYPE(int16_t, kI16)
PA_SIM_TYPE(uint16_t, kU16)
PA_SIM_TYPE(int8_t, kI8)
PA_SIM_TYPE(uint8_t, kU8)
PA_SIM_TYPE(int64_t, kI64)
#undef PA_SIM_TYPE

// A pointer as the runtime takes it. The template keeps the address space.
template <class Pointer>
inline uint64_t at(Pointer p) {
  return (uint64_t)p;
}
}  // namespace sim

// ---- Enumerations (CANN 8.1 stub_fun.h)
// ----------------------------------------------------------------

enum pipe_t {
  PIPE_S = 0,
  PIPE_V,
  PIPE_M,
  PIPE_MTE1,
  PIPE_MTE2,
  PIPE_MTE3,
  PIPE_ALL,
  PIPE_MTE4,
  PIPE_MTE5,
  PIPE_V2,
  PIPE_FIX = 10
};
enum event_t {
  EVENT_ID0 = 0,
  EVENT_ID1,
  EVENT_ID2,
  EVENT_ID3,
  EVENT_ID4,
  EVENT_ID5,
  EVENT_ID6,
  EVENT_ID7
};
enum Order_t { VALUE_INDEX = 0, INDEX_VALUE, ONLY_VALUE, ONLY_INDEX };
enum QuantMode_t {
  NoQuant = 0,
  F322F16 = 1,
  VREQ8 = 8,
  REQ8 = 9,
  VDEQF16 = 10,
  DEQF16 = 11,
  F322BF16 = 16,
  VQF322B8_PRE = 23,
  QF322B8_PRE = 24
};
enum addr_cal_mode_t { inc = 0, dec = 1 };
enum pad_t {
  PAD_NONE = 0,
  PAD_MODE1,
  PAD_MODE2,
  PAD_MODE3,
  PAD_MODE4,
  PAD_MODE5,
  PAD_MODE6,
  PAD_MODE7,
  PAD_MODE8
};
enum mem_dsb_t { DSB_ALL = 0, DSB_DDR, DSB_UB, DSB_SEQ };
enum cache_line_t { SINGLE_CACHE_LINE = 0, ENTIRE_DATA_CACHE };
enum dcci_dst_t { CACHELINE_ALL = 0, CACHELINE_UB, CACHELINE_OUT, CACHELINE_ATOMIC };

// ---- The call site, as the last and defaulted argument of every builtin
// ---------------------------------

#define PA_SITE ::sim::Site site = ::sim::Site::here()

// ---- Scalar state
// -------------------------------------------------------------------------------------

#define block_idx (::sim::block_index())
#define block_num (::sim::num_blocks())
#define g_tilingKey (::sim::tiling_key())
inline int64_t get_block_idx() { return sim::block_index(); }
inline int64_t get_block_num() { return sim::num_blocks(); }
inline int64_t get_subblockid() { return sim::subblock_index(); }
inline int64_t get_subblockdim() { return 2; }
inline void set_ffts_base_addr(uint64_t) {}
inline void set_vector_mask(uint64_t high, uint64_t low) { sim::set_vector_mask(high, low); }
inline void set_mask_norm() { sim::set_counted(false); }
inline void set_mask_count() { sim::set_counted(true); }
inline void set_padding(uint64_t) {}
inline void set_nd_para(uint64_t value) { sim::set_register(sim::kNdPara, value); }
inline void set_mov_pad_val(uint64_t value) { sim::set_register(sim::kPadValue, value); }

// ---- Synchronisation
// ----------------------------------------------------------------------------------

inline void set_flag(pipe_t from, pipe_t to, event_t id, PA_SITE) {
  sim::set_flag(from, to, id, site);
}
inline void wait_flag(pipe_t from, pipe_t to, event_t id, PA_SITE) {
  sim::wait_flag(from, to, id, site);
}
// Sources that compile with bisheng pass computed event ids as integers.
inline void set_flag(pipe_t from, pipe_t to, uint64_t id, PA_SITE) {
  sim::set_flag(from, to, static_cast<int64_t>(id), site);
}
inline void wait_flag(pipe_t from, pipe_t to, uint64_t id, PA_SITE) {
  sim::wait_flag(from, to, static_cast<int64_t>(id), site);
}
inline void pipe_barrier(pipe_t pipe, PA_SITE) { sim::pipe_barrier(pipe, site); }
inline void ffts_cross_core_sync(pipe_t pipe, uint64_t config, PA_SITE) {
  sim::cross_core_sync(pipe, config, site);
}
inline void wait_flag_dev(int64_t id, PA_SITE) { sim::wait_flag_dev(id, site); }
inline void dsb(mem_dsb_t kind, PA_SITE) { sim::data_sync_barrier(kind, site); }

#include "cce_cube.h"
#include "cce_move.h"
#include "cce_vector.h"

// ---- The entry
// ----------------------------------------------------------------------------------------

namespace sim {

template <class T>
constexpr size_t words_of() {
  return (sizeof(T) + sizeof(uint64_t) - 1) / sizeof(uint64_t);
}
template <class T>
constexpr char letter() {
  if constexpr (std::is_pointer_v<T>) return 'p';
  if constexpr (std::is_floating_point_v<T>) return sizeof(T) == 4 ? 'f' : 'd';
  if constexpr (std::is_class_v<T>) {
    return 's';
  } else {
    constexpr int log = sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3;
    return std::is_signed_v<T> ? "bhiq"[log] : "BHIQ"[log];
  }
}
// Reads one argument and moves on to the next; an argument begins with a word of its own.
template <class T>
T argument(const uint64_t*& words) {
  T value;
  std::memcpy(static_cast<void*>(&value), words, sizeof(T));
  words += words_of<T>();
  return value;
}
template <class... A>
void call(void (*entry)(A...), const uint64_t* words) {
  const std::tuple<A...> arguments{argument<A>(words)...};  // braces: in this order
  std::apply(entry, arguments);
}
template <class... A>
constexpr auto letters() {
  std::array<char, (words_of<A>() + ... + 1)> text{};
  size_t at = 0;
  const auto add = [&](char first, size_t words) {
    for (size_t i = 0; i < words; ++i) text[at++] = i == 0 ? first : '+';
  };
  (add(letter<A>(), words_of<A>()), ...);
  return text;
}
template <class... A>
const char* signature(void (*)(A...)) {
  static constexpr auto text = letters<A...>();
  return text.data();
}

}  // namespace sim

// The simulator's toolchain appends this to a source: what the launcher calls, and a letter an
// argument (p pointer, f float, d double, s struct with a + for each further word, integers as
// numpy has them) so that it can tell a wrong call.
#define PA_SIM_ENTRY(NAME)                                                                     \
  extern "C" __attribute__((visibility("default"))) void pa_sim_entry(const uint64_t* words) { \
    sim::call(&NAME, words);                                                                   \
  }                                                                                            \
  extern "C" __attribute__((visibility("default"))) const char* pa_sim_signature() {           \
    return sim::signature(&NAME);                                                              \
  }
