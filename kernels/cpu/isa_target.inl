// kernel.inl for an instruction set beyond the compiler's default: the includer defines
// PA_HP_TARGET, the extensions' names, besides what kernel.inl wants. The target is set here and
// not by a compiler flag, so that one library runs on every machine; headers come first, they keep
// the default.
#if defined(__x86_64__)
#include <immintrin.h>
#define PA_HP_F16C 1
#else
#include <arm_neon.h>
#define PA_HP_BFDOT 1
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "isa.h"

#define PA_HP_PRAGMA_TEXT(...) _Pragma(#__VA_ARGS__)
#define PA_HP_PRAGMA(...) PA_HP_PRAGMA_TEXT(__VA_ARGS__)

#if defined(__clang__)
PA_HP_PRAGMA(clang attribute push(__attribute__((target(PA_HP_TARGET))), apply_to = function))
#else
#pragma GCC push_options
PA_HP_PRAGMA(GCC target(PA_HP_TARGET))
#endif

#include "kernel.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
