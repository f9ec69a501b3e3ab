// AVX-512 with dot products of bfloat16 pairs, and AMX's of whole tiles.
#if defined(__x86_64__)
#define PA_HP_ISA amx_bf16
#define PA_HP_VECTOR_BYTES 64
#define PA_HP_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c"
#define PA_HP_BF16_DOT 1
#define PA_HP_AMX 1
#include "isa_target.inl"
#endif
