// The timing pass: replays what a launch recorded against one chip's parameters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core.h"

namespace sim {

// The entries of chips.json that the pass needs, in the order in which it takes their values.
extern const std::vector<const char*> kParameters;

struct Timing {
  std::string json;  // modelled time, busy shares, stalls, bytes, critical path
  // Of every record, core after core in issue order: when its pipe (or the scalar unit) was busy
  // with it, in us, and which builtin at which site it is (an index into the JSON's "labels").
  std::vector<double> start;
  std::vector<double> end;
  std::vector<int32_t> label;
};

// `warm`: the kernel has run once before on the same tensors, so the L2 holds what it left there.
Timing time_launch(Launch& launch, const double* parameters, bool warm);

}  // namespace sim
