// What the NPU's library gives to the one that every machine has: it is built for torch_npu and
// CANN, and loaded when the first tensor of the device "npu" arrives.
#pragma once

#include <ATen/core/Tensor.h>

#include "check.h"
#include "params.h"

namespace pa_hp::npu {

struct Backend {
  // Refuses tensors that are not laid out as their strides say.
  void (*accept)(const check::Checker& check, const char* name, const at::Tensor& tensor);
  // Enqueues a decode on the current stream of query's device, which is the current device.
  void (*run)(const DecodeParams& params, const at::Tensor& query);
};

}  // namespace pa_hp::npu
