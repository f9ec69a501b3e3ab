// The host's one way to the kernel. bisheng compiles this file with decode.cce; a toolchain without
// its launch syntax defines PA_HP_LAUNCH instead.
#include <cstdint>

#include "plan.h"

#ifndef PA_HP_LAUNCH
#define PA_HP_LAUNCH(kernel, clusters, stream, ...) \
  kernel<<<clusters, nullptr, stream>>>(__VA_ARGS__)
#endif

// CANN runtime: where cross-core flags live. 0 is success.
extern "C" int rtGetC2cCtrlAddr(uint64_t* address, uint32_t* length);

// Enqueues one decode; nothing waits. `params`: the tensors, on the device, as the plan describes
// them (its sizes and strides are the plan's). `workspace`: clusters * ws_bytes of device memory,
// whatever it holds. Returns 0, or the runtime's error.
extern "C" int pa_hp_npu_launch(const pa_hp::DecodeParams* params,
                                const pa_hp::npu::DecodePlan* plan, void* workspace,
                                uint32_t clusters, void* stream) {
  uint64_t ffts = 0;
  uint32_t length = 0;
  if (const int error = rtGetC2cCtrlAddr(&ffts, &length); error != 0) return error;
  const auto bytes = [](const void* tensor) {
    return static_cast<uint8_t*>(const_cast<void*>(tensor));
  };
  PA_HP_LAUNCH(pa_hp_decode, clusters, stream, ffts, bytes(params->query), bytes(params->key_cache),
               bytes(params->value_cache), const_cast<int32_t*>(params->block_table),
               const_cast<int32_t*>(params->seq_lens), bytes(params->out), params->lse,
               static_cast<uint8_t*>(workspace), *plan);
  return 0;
}
