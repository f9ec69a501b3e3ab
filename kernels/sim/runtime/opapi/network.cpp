// Products, normalisations and what else a decoder's layer is made of.
#include "op.h"

using namespace vnpu;

static std::optional<T> maybe(const T& x) {
  return x.defined() ? std::optional<T>(x) : std::nullopt;
}

#define PRODUCT(NAME) \
  OP(NAME, (T, x), (T, y), (T, out), (Math, math)) { out.copy_(at::matmul(x, y)); }
PRODUCT(Matmul)
PRODUCT(Mm)
PRODUCT(BatchMatMul)
PRODUCT(Mv)
#undef PRODUCT
OP(Dot, (T, x), (T, y), (T, out)) { out.copy_(at::dot(x, y)); }
OP(Addmm, (T, x), (T, a), (T, b), (S, beta), (S, alpha), (T, out), (Math, math)) {
  out.copy_(at::addmm(x, a, b, beta, alpha));
}
OP(InplaceAddmm, (T, x), (T, a), (T, b), (S, beta), (S, alpha), (Math, math)) {
  x.copy_(at::addmm(x, a, b, beta, alpha));
}
OP(Baddbmm, (T, x), (T, a), (T, b), (S, beta), (S, alpha), (T, out), (Math, math)) {
  out.copy_(at::baddbmm(x, a, b, beta, alpha));
}
OP(Addmv, (T, x), (T, a), (T, v), (S, alpha), (S, beta), (T, out), (Math, math)) {
  out.copy_(at::addmv(x, a, v, beta, alpha));
}

OP(Softmax, (T, x), (N, dim), (T, out)) { out.copy_(at::softmax(x, dim, out.scalar_type())); }
OP(LogSoftmax, (T, x), (N, dim), (T, out)) {
  out.copy_(at::log_softmax(x, dim, out.scalar_type()));
}
OP(LayerNorm, (T, x), (I, shape), (T, weight), (T, bias), (D, eps), (T, out), (T, mean),
   (T, rstd)) {
  const auto [y, m, r] = at::native_layer_norm(x, shape, maybe(weight), maybe(bias), eps);
  out.copy_(y);
  if (mean.defined()) mean.copy_(m.reshape(mean.sizes()));
  if (rstd.defined()) rstd.copy_(r.reshape(rstd.sizes()));
}

static void rms_norm(const T& x, const T& gamma, double eps, const T& out, const T& rstd) {
  I dims;
  for (int64_t d = x.dim() - gamma.dim(); d < x.dim(); ++d) dims.push_back(d);
  const T wide = x.to(at::kFloat);
  const T scale = at::rsqrt(at::mean(wide * wide, dims, true) + eps);
  if (rstd.defined() && rstd.numel() > 0) rstd.copy_(scale.reshape(rstd.sizes()));
  out.copy_(wide * scale * gamma.to(at::kFloat));
}
OP(RmsNorm, (T, x), (T, gamma), (D, eps), (T, out), (T, rstd)) {
  rms_norm(x, gamma, eps, out, rstd);
}
OP(AddRmsNorm, (T, x), (T, y), (T, gamma), (D, eps), (T, out), (T, rstd), (T, sum)) {
  sum.copy_(x.to(at::kFloat) + y.to(at::kFloat));
  rms_norm(sum, gamma, eps, out, rstd);
}
OP(SwiGlu, (T, x), (N, dim), (T, out)) {
  const auto halves = x.to(at::kFloat).chunk(2, dim);
  out.copy_(at::silu(halves[0]) * halves[1]);
}
OP(Glu, (T, x), (N, dim), (T, out)) { out.copy_(at::glu(x, dim)); }

// mode 0: halves of the head change places; 1: neighbours do.
static T rotated(const T& x, N mode) {
  if (mode == 0) {
    const auto halves = x.chunk(2, -1);
    return at::cat({-halves[1], halves[0]}, -1);
  }
  const T pairs = x.unflatten(-1, at::IntArrayRef({-1, 2}));
  return at::stack({-pairs.select(-1, 1), pairs.select(-1, 0)}, -1).flatten(-2);
}
OP(RotaryPositionEmbedding, (T, x), (T, cos), (T, sin), (N, mode), (T, out)) {
  const T wide = x.to(at::kFloat);
  out.copy_(wide * cos + rotated(wide, mode) * sin);
}

OP(SoftmaxBackward, (T, grad), (T, y), (N, dim), (T, out)) {
  out.copy_(at::_softmax_backward_data(grad, y, dim, y.scalar_type()));
}
OP(SiluBackward, (T, grad), (T, x), (T, out)) { out.copy_(at::silu_backward(grad, x)); }
OP(ThresholdBackward, (T, grad), (T, x), (S, threshold), (T, out)) {
  out.copy_(at::threshold_backward(grad, x, threshold));
}
OP(SigmoidBackward, (T, grad), (T, y), (T, out)) { out.copy_(at::sigmoid_backward(grad, y)); }
OP(TanhBackward, (T, grad), (T, y), (T, out)) { out.copy_(at::tanh_backward(grad, y)); }
OP(GeluBackward, (T, grad), (T, x), (T, out)) { out.copy_(at::gelu_backward(grad, x)); }
OP(EmbeddingDenseBackward, (T, grad), (T, index), (U, rows), (U, padding), (B, by_count),
   (T, out)) {
  out.copy_(at::embedding_dense_backward(grad, index.to(at::kLong), static_cast<int64_t>(rows),
                                         static_cast<int64_t>(padding), by_count));
}
