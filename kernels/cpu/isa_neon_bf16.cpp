// NEON with dot products of bfloat16 pairs.
#if defined(__aarch64__) && defined(__linux__)
#define PA_HP_ISA neon_bf16
#define PA_HP_VECTOR_BYTES 16
#define PA_HP_TARGET "arch=armv8.2-a+bf16"
#define PA_HP_BF16_DOT 1
#include "isa_target.inl"
#endif
