// AVX-512: 64-byte vectors.
#if defined(__x86_64__)
#define PA_HP_ISA avx512
#define PA_HP_VECTOR_BYTES 64
#define PA_HP_TARGET "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c"
#include "isa_target.inl"
#endif
