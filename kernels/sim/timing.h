// The timing pass: replays what a launch recorded against one chip's parameters.
#pragma once

#include <string>

#include "core.h"

namespace sim {

// `parameters` in the order of `kParameters`; JSON with the modelled time, busy shares, bytes, stalls.
std::string time_launch(const Launch& launch, const double* parameters, bool with_events);

}  // namespace sim
