// What a kernel's translation units and the runtime share: call sites, numeric types, and the plain
// functions behind the builtins of cce.h. Addresses are integers: an offset in a local memory, a
// host address in GM.
#pragma once

#include <cstdint>
#include <type_traits>

namespace sim {

// Where a builtin is called. For scalar accesses `file` is null and `pc` is the instruction.
struct Site {
  const char* file = nullptr;
  int line = 0;
  const void* pc = nullptr;
  // As a default argument: the place where the function with that argument is called.
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line, nullptr};
  }
};

// A numeric argument as the kernel wrote it, so that the runtime can tell a value that the
// hardware's field would cut off. `Bits` is the field's width.
template <int Bits>
struct Field {
  int64_t value;
  template <class T, class = std::enable_if_t<std::is_integral_v<T> || std::is_enum_v<T>>>
  constexpr Field(T v) : value(static_cast<int64_t>(v)) {}
};
using F1 = Field<1>;
using F8 = Field<8>;
using F16 = Field<16>;
using F32 = Field<32>;
using F64 = Field<64>;

enum class Type : uint8_t { kNone, kF32, kF16, kBf16, kI32, kU32, kI16, kU16, kI8, kU8, kI64 };
constexpr int size_of(Type type) {
  switch (type) {
    case Type::kF32:
    case Type::kI32:
    case Type::kU32:
      return 4;
    case Type::kF16:
    case Type::kBf16:
    case Type::kI16:
    case Type::kU16:
      return 2;
    case Type::kI64:
      return 8;
    default:
      return 1;
  }
}

// ---- Scalar state (sync.cpp)
// --------------------------------------------------------------------------

int64_t block_index();
int64_t num_blocks();
int64_t subblock_index();
uint64_t& tiling_key();
void set_vector_mask(uint64_t high, uint64_t low);
void set_counted(bool counted);
enum Register { kNdPara, kPadValue, kAtomic, kDeqScale, kFixPipePara, kRegisters };
void set_register(Register which, uint64_t value);
[[noreturn]] void not_modelled(const char* builtin, Site site);

// ---- Synchronisation (sync.cpp); pipes and events are the kernel's numbers
// -----------------------------

void set_flag(int from, int to, int64_t id, Site site);
void wait_flag(int from, int to, int64_t id, Site site);
void pipe_barrier(int pipe, Site site);
void cross_core_sync(int pipe, uint64_t config, Site site);
void wait_flag_dev(int64_t id, Site site);
void data_sync_barrier(int kind, Site site);

}  // namespace sim

#include "abi_cube.h"
#include "abi_move.h"
#include "abi_vector.h"
