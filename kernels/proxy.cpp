// The op family for PrivateUse1, without a header of torch_npu.
#include "proxy.h"

#include <torch/library.h>

#include <atomic>

#include "ops.h"

// Loads the NPU's library, which must end in pa_hp_npu_provide; else false, and why in `message`.
extern "C" using Loader = bool (*)(char* message, int64_t message_bytes);

namespace pa_hp::npu {
namespace {

std::atomic<Loader> loader{nullptr};
std::atomic<const Backend*> backend{nullptr};

const Backend& loaded() {
  const Backend* found = backend.load(std::memory_order_acquire);
  if (found == nullptr) {
    char message[8192] = "pa_hp: expected the package to be imported; import pa_hp";
    const Loader load = loader;
    TORCH_CHECK(load != nullptr && load(message, sizeof(message)), message);
    found = backend;
  }
  return *found;
}

struct Proxy {
  static constexpr check::Limits limits = check::kNpuLimits;
  static constexpr auto key = c10::DispatchKey::PrivateUse1;
  static void accept(const check::Checker& check, const char* name, const at::Tensor& tensor) {
    loaded().accept(check, name, tensor);
  }
  static void run(const check::Checker&, const DecodeParams& params, const at::Tensor& query) {
    if (params.batch > 0) loaded().run(params, query);
  }
};

TORCH_LIBRARY_IMPL(pa_hp, PrivateUse1, m) { Ops<Proxy>::define(m); }

}  // namespace
}  // namespace pa_hp::npu

extern "C" __attribute__((visibility("default"))) void pa_hp_npu_set_loader(Loader loader) {
  pa_hp::npu::loader = loader;
}

extern "C" __attribute__((visibility("default"))) void pa_hp_npu_provide(
    const pa_hp::npu::Backend* backend) {
  pa_hp::npu::backend.store(backend, std::memory_order_release);
}
