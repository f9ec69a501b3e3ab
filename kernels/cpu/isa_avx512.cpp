// Kernels for AVX-512: 64-byte vectors. The target is set here and not by a compiler
// flag, so that one library runs on every x86-64 machine; headers come first, they keep the default
// target.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "isa.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")
#endif

#define PA_HP_ISA avx512
#define PA_HP_VECTOR_BYTES 64
#define PA_HP_F16C 1
#include "kernel.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
