// Random operators: a seed and an offset in, the same numbers every time.
#include <ATen/CPUGeneratorImpl.h>

#include "op.h"

using namespace vnpu;

static at::Generator generator(U seed, U offset) {
  return at::detail::createCPUGenerator(seed * 0x9E3779B97F4A7C15u + offset);
}

OP(InplaceUniform, (T, x), (D, low), (D, high), (U, seed), (U, offset)) {
  x.uniform_(low, high, generator(seed, offset));
}
OP(InplaceNormal, (T, x), (F, mean), (F, std), (N, seed), (N, offset)) {
  x.normal_(mean, std, generator(seed, offset));
}
OP(InplaceRandom, (T, x), (N, low), (N, high), (N, seed), (N, offset)) {
  x.random_(low, high, generator(seed, offset));
}
OP(InplaceBernoulli, (T, x), (S, p), (N, seed), (N, offset)) {
  x.bernoulli_(p.toDouble(), generator(seed, offset));
}
OP(InplaceBernoulliTensor, (T, x), (T, p), (N, seed), (N, offset)) {
  x.bernoulli_(p, generator(seed, offset));
}
OP(Randperm, (N, count), (N, seed), (N, offset), (T, out)) {
  out.copy_(at::randperm(count, generator(seed, offset), out.options()));
}
OP(Multinomial, (T, x), (N, count), (B, replacement), (N, seed), (N, offset), (T, out)) {
  out.copy_(at::multinomial(x, count, replacement, generator(seed, offset)));
}
