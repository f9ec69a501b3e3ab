// Data movement: the runtime's side (move.cpp). Included by abi.h.
#pragma once

namespace sim {

// Bursts of 32-byte blocks between two places, with gaps in blocks from end to start.
enum class Path { kGmToUb, kUbToGm, kUbToUb, kGmToL1, kL1ToGm };
void copy_blocks(const char* name, Path path, uint64_t dst, uint64_t src, F16 bursts, F16 length,
                 F16 src_gap, F16 dst_gap, Site site);

}  // namespace sim
