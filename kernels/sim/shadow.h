// Who touched which bytes last: the memory of the happens-before check.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core.h"

namespace sim {

// The last accesses of one 32-byte block of a local memory. `mask` has a bit per byte.
struct Touch {
  uint32_t epoch;
  uint32_t mask;  // 0: none
  uint32_t site;
  uint8_t pipe;
};

struct Block {
  Touch writers[2];  // [0] the newest; [1] what it left of the one before
  Touch readers[3];  // one a pipe; no memory has more than three pipes that read it
  uint32_t written;  // bytes that something has ever written
};

struct Shadow {
  // Zeroed pages come on first touch, so an unused memory costs nothing.
  std::unique_ptr<Block[], decltype(&std::free)> blocks[kLocalMems];
  explicit Shadow(const std::array<uint8_t*, kLocalMems>& mem);
};

}  // namespace sim
