// AVX2 + FMA + F16C: 32-byte vectors.
#if defined(__x86_64__)
#define PA_HP_ISA avx2
#define PA_HP_VECTOR_BYTES 32
#define PA_HP_TARGET "avx2,fma,f16c"
#include "isa_target.inl"
#endif
