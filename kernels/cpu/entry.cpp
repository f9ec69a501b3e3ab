// The op family on the CPU: values of lengths and ids, torch's threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <pthread.h>

#include <atomic>
#include <stdexcept>

#include "../ops.h"
#include "decode.h"

namespace pa_hp::cpu {
namespace {

using at::Tensor;

// OpenMP's pool does not survive a fork: a parallel region in the child would wait for threads that
// are gone. There the op runs on the calling thread alone.
std::atomic<bool> forked{false};
const int atfork_registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

void run_on_torch_threads(void (*body)(void*, int64_t), void* data, int64_t n) {
  at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(data, i);
  });
}

struct Backend {
  static constexpr check::Limits limits = check::kCpuLimits;
  static constexpr auto key = c10::DispatchKey::CPU;
  static void accept(const check::Checker&, const char*, const Tensor&) {}
  static void run(const check::Checker& check, const DecodeParams& params, const Tensor&) {
    check.values(params);
    const bool alone = forked || at::in_parallel_region();
    run_decode(params, {alone ? 1 : at::get_num_threads(), run_on_torch_threads});
  }
};

TORCH_LIBRARY_IMPL(pa_hp, CPU, m) { Ops<Backend>::define(m); }

}  // namespace
}  // namespace pa_hp::cpu

extern "C" __attribute__((visibility("default"))) void pa_hp_cpu_run_alone() {
  pa_hp::cpu::forked = true;
}

// For `python -m pa_hp info`: plain C, read through ctypes. Null if PA_HP_CPU_ISA names none of
// this machine's, which an op says in full.
extern "C" __attribute__((visibility("default"))) const char* pa_hp_cpu_isa() {
  try {
    return pa_hp::cpu::isa_name();
  } catch (const std::runtime_error&) {
    return nullptr;
  }
}
