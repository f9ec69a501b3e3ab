// The simulator's C interface (api.cpp), for ctypes and for the virtual NPU.
#pragma once
#include <cstdint>

extern "C" {

using SimEntry = void (*)(const uint64_t*);

struct SimOptions {
  int32_t block_dim;
  int32_t cores_kind;  // 0 mixed, 1 cube, 2 vector
  int32_t check;
  int32_t strict_visibility;
  int32_t latest;
  int32_t record;
  int32_t poison;
  int32_t blind;
  uint64_t seed;
  const char* drop;
};

// Runs a kernel whole. `regions` are the tensors it may touch: begin, end and name of each.
void* pa_sim_launch(const SimOptions* options, SimEntry cube, SimEntry vector, const uint64_t* args,
                    int32_t num_args, int32_t num_regions, const uint64_t* begins,
                    const uint64_t* ends, const char* const* names);
// JSON: failure, findings.
const char* pa_sim_report(void* handle);
// Replays what the launch recorded against a chip; JSON, see Timing.
const char* pa_sim_time(void* handle, const double* parameters, int32_t warm);
void pa_sim_free(void* handle);
}
