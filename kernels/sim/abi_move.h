// Data movement: the runtime's side (move.cpp). Included by abi.h.
#pragma once

namespace sim {

// Bursts of 32-byte blocks between two places, with gaps in blocks from end to start.
enum class Path { kGmToUb, kUbToGm, kUbToUb, kGmToL1, kL1ToGm };
void copy_blocks(const char* name, Path path, uint64_t dst, uint64_t src, F16 bursts, F16 length,
                 F16 src_gap, F16 dst_gap, Site site);

// Bursts of bytes: GM at any address, UB from 32-byte boundaries. `size` is the element's.
void copy_gm_to_ubuf_align(const char* name, int size, uint64_t dst, uint64_t src, F16 bursts,
                           F32 length, F8 left, F8 right, F32 src_gap, F32 dst_gap, Site site);
void copy_ubuf_to_gm_align(const char* name, uint64_t dst, uint64_t src, F16 bursts, F32 length,
                           F8 left, F8 right, F32 src_gap, F32 dst_gap, Site site);

// Row-major matrices in GM to the NZ layout in L1. `size` is the element's.
void copy_nd2nz(const char* name, int size, uint64_t dst, uint64_t src, F16 matrices, F16 rows,
                F16 columns, F16 src_matrix_stride, F16 src_row_stride, F16 dst_column_stride,
                F16 dst_row_stride, F16 dst_matrix_stride, Site site);

// Fills blocks with a value of two or four bytes.
enum class FillTo { kL1, kL0a, kL0b };
void fill(const char* name, FillTo to, uint64_t dst, int64_t repeat, uint32_t value, int size,
          Site site);

// What stores to GM do: the type comes from one builtin, the operation from another.
enum class Atomic { kAdd, kMax, kMin };
void set_atomic_none();
void set_atomic_type(Type type);
void set_atomic(Atomic what);

// The register as the two builtins above leave it: 0, or a type with an operation.
constexpr Type atomic_type(uint64_t state) { return static_cast<Type>(state & 0xff); }
constexpr Atomic atomic_operation(uint64_t state) { return static_cast<Atomic>(state >> 8); }
// Combines `bytes` of new values with what is at `to`.
void atomic_store(uint64_t state, uint8_t* to, const uint8_t* from, uint64_t bytes);

}  // namespace sim
