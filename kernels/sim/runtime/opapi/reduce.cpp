// Reductions, scans, sorts and comparisons of whole tensors.
#include "op.h"

using namespace vnpu;

// No dimensions means all of them.
static at::OptionalIntArrayRef dims_of(const I& dims) {
  return dims.empty() ? at::OptionalIntArrayRef() : at::OptionalIntArrayRef(dims);
}

OP(ReduceSum, (T, x), (I, dims), (B, keep), (Type, type), (T, out)) {
  out.copy_(at::sum(x, dims_of(dims), keep, type.value));
}
OP(Mean, (T, x), (I, dims), (B, keep), (Type, type), (T, out)) {
  out.copy_(at::mean(x, dims_of(dims), keep, type.value));
}
OP(Amax, (T, x), (I, dims), (B, keep), (T, out)) { out.copy_(at::amax(x, dims, keep)); }
OP(Amin, (T, x), (I, dims), (B, keep), (T, out)) { out.copy_(at::amin(x, dims, keep)); }
OP(All, (T, x), (I, dims), (B, keep), (T, out)) { out.copy_(at::all(x, dims_of(dims), keep)); }
OP(Any, (T, x), (I, dims), (B, keep), (T, out)) { out.copy_(at::any(x, dims_of(dims), keep)); }
OP(Max, (T, x), (T, out)) { out.copy_(at::max(x)); }
OP(Min, (T, x), (T, out)) { out.copy_(at::min(x)); }
OP(Median, (T, x), (T, out)) { out.copy_(at::median(x)); }
OP(Prod, (T, x), (Type, type), (T, out)) { out.copy_(at::prod(x, type.value)); }
OP(ProdDim, (T, x), (N, dim), (B, keep), (Type, type), (T, out)) {
  out.copy_(at::prod(x, dim, keep, type.value));
}
OP(LogSumExp, (T, x), (I, dims), (B, keep), (T, out)) { out.copy_(at::logsumexp(x, dims, keep)); }
OP(Norm, (T, x), (S, p), (I, dims), (B, keep), (T, out)) {
  out.copy_(at::linalg_vector_norm(x, p, dims_of(dims), keep));
}
OP(LinalgVectorNorm, (T, x), (S, p), (I, dims), (B, keep), (Type, type), (T, out)) {
  out.copy_(at::linalg_vector_norm(x, p, dims_of(dims), keep, type.value));
}
OP(VarCorrection, (T, x), (I, dims), (N, correction), (B, keep), (T, out)) {
  out.copy_(at::var(x, dims_of(dims), S(correction), keep));
}
OP(Std, (T, x), (I, dims), (N, correction), (B, keep), (T, out)) {
  out.copy_(at::std(x, dims_of(dims), S(correction), keep));
}
OP(ArgMax, (T, x), (N, dim), (B, keep), (T, out)) { out.copy_(at::argmax(x, dim, keep)); }
OP(ArgMin, (T, x), (N, dim), (B, keep), (T, out)) { out.copy_(at::argmin(x, dim, keep)); }
OP(Equal, (T, x), (T, y), (T, out)) { out.fill_(at::equal(x, y)); }

// Values and where they were.
#define VALUES_AND_INDICES(EXPR)       \
  {                                    \
    const auto [found, places] = EXPR; \
    values.copy_(found);               \
    indices.copy_(places);             \
  }
OP(MaxDim, (T, x), (N, dim), (B, keep), (T, values), (T, indices))
VALUES_AND_INDICES(at::max(x, dim, keep))
OP(MinDim, (T, x), (N, dim), (B, keep), (T, values), (T, indices))
VALUES_AND_INDICES(at::min(x, dim, keep))
OP(MedianDim, (T, x), (N, dim), (B, keep), (T, values), (T, indices))
VALUES_AND_INDICES(at::median(x, dim, keep))
OP(Kthvalue, (T, x), (N, k), (N, dim), (B, keep), (T, values), (T, indices))
VALUES_AND_INDICES(at::kthvalue(x, k, dim, keep))
OP(Sort, (T, x), (B, stable), (N, dim), (B, descending), (T, values), (T, indices))
VALUES_AND_INDICES(at::sort(x, stable, dim, descending))
OP(Topk, (T, x), (N, k), (N, dim), (B, largest), (B, sorted), (T, values), (T, indices))
VALUES_AND_INDICES(at::topk(x, k, dim, largest, sorted))
OP(Cummax, (T, x), (N, dim), (T, values), (T, indices))
VALUES_AND_INDICES(at::cummax(x, dim))
OP(Cummin, (T, x), (N, dim), (T, values), (T, indices))
VALUES_AND_INDICES(at::cummin(x, dim))

OP(Cumsum, (T, x), (N, dim), (Type, type), (T, out)) { out.copy_(at::cumsum(x, dim, type.value)); }
OP(Cumprod, (T, x), (S, dim), (Type, type), (T, out)) {
  out.copy_(at::cumprod(x, dim.toLong(), type.value));
}
OP(Histc, (T, x), (N, bins), (S, low), (S, high), (T, out)) {
  out.copy_(at::histc(x.to(at::kFloat), bins, low, high));
}
OP(SearchSorted, (T, sorted), (T, x), (B, int32), (B, right), (T, sorter), (T, out)) {
  const auto order = sorter.defined() ? std::optional<T>(sorter) : std::nullopt;
  out.copy_(at::searchsorted(sorted, x, int32, right, std::nullopt, order));
}
