// Tables for instruction sets that a test does without: PA_HP_CPU_ISA=baseline leaves them alone.
#pragma once

#include "../../kernels/cpu/isa.h"

#if defined(__x86_64__)
namespace pa_hp::cpu {
namespace avx2 {
const Kernels kernels{};
}
namespace avx512 {
const Kernels kernels{};
}
namespace avx512_bf16 {
const Kernels kernels{};
}
namespace amx_bf16 {
const Kernels kernels{};
}
}  // namespace pa_hp::cpu
#endif
