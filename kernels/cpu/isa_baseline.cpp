// Kernels for the compiler's default target (SSE2 on x86-64, NEON on aarch64): 16-byte vectors.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "isa.h"

#define PA_HP_ISA baseline
#define PA_HP_VECTOR_BYTES 16
#include "kernel.inl"
