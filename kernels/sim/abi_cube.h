// Cube builtins: the runtime's side (cube.cpp). Included by abi.h.
#pragma once

namespace sim {}  // namespace sim
