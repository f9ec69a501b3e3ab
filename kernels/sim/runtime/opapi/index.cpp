// Operators that move elements: indexing, joining, repeating, padding, making.
#include "op.h"

using namespace vnpu;

// Index tensors as at::index wants them; an empty one stands for a whole dimension.
static c10::List<std::optional<T>> optional_indices(const L& indices) {
  c10::List<std::optional<T>> list;
  for (const T& index : indices) {
    const bool none = !index.defined() || (index.dim() == 1 && index.numel() == 0);
    list.push_back(none ? std::optional<T>() : std::optional<T>(index));
  }
  return list;
}

OP(Index, (T, x), (L, indices), (T, out)) { out.copy_(at::index(x, optional_indices(indices))); }
OP(IndexPutImpl, (T, x), (L, indices), (T, values), (B, accumulate), (B, unsafe)) {
  x.index_put_(optional_indices(indices), values, accumulate);
}
OP(IndexSelect, (T, x), (N, dim), (T, index), (T, out)) {
  out.copy_(at::index_select(x, dim, index));
}
OP(IndexAdd, (T, x), (N, dim), (T, index), (T, source), (S, alpha), (T, out)) {
  out.copy_(at::index_add(x, dim, index, source, alpha));
}
OP(InplaceIndexCopy, (T, x), (N, dim), (T, index), (T, source)) {
  x.copy_(at::index_copy(x, dim, index.to(at::kLong), source));
}
OP(IndexCopy, (T, x), (N, dim), (T, index), (T, source), (T, out)) {
  out.copy_(at::index_copy(x, dim, index.to(at::kLong), source));
}
OP(Gather, (T, x), (N, dim), (T, index), (T, out)) {
  out.copy_(at::gather(x, dim, index.to(at::kLong)));
}
OP(Take, (T, x), (T, index), (T, out)) { out.copy_(at::take(x, index.to(at::kLong))); }
OP(Embedding, (T, weight), (T, index), (T, out)) {
  out.copy_(at::embedding(weight, index.to(at::kLong)));
}

// reduce: 0 replaces, 1 adds, 2 multiplies.
static T scattered(const T& x, N dim, const T& index, const T& source, N reduce) {
  const T places = index.to(at::kLong);
  if (reduce == 0) return at::scatter(x, dim, places, source);
  return at::scatter(x, dim, places, source, reduce == 1 ? "add" : "multiply");
}
static T scattered(const T& x, N dim, const T& index, const S& value, N reduce) {
  const T places = index.to(at::kLong);
  if (reduce == 0) return at::scatter(x, dim, places, value);
  return at::scatter(x, dim, places, value, reduce == 1 ? "add" : "multiply");
}
OP(Scatter, (T, x), (N, dim), (T, index), (T, source), (N, reduce), (T, out)) {
  out.copy_(scattered(x, dim, index, source, reduce));
}
OP(InplaceScatter, (T, x), (N, dim), (T, index), (T, source), (N, reduce)) {
  x.copy_(scattered(x, dim, index, source, reduce));
}
OP(ScatterValue, (T, x), (N, dim), (T, index), (S, value), (N, reduce), (T, out)) {
  out.copy_(scattered(x, dim, index, value, reduce));
}
OP(InplaceScatterValue, (T, x), (N, dim), (T, index), (S, value), (N, reduce)) {
  x.copy_(scattered(x, dim, index, value, reduce));
}
OP(ScatterAdd, (T, x), (N, dim), (T, index), (T, source), (T, out)) {
  out.copy_(at::scatter_add(x, dim, index.to(at::kLong), source));
}
OP(InplaceMaskedScatter, (T, x), (T, mask), (T, source)) {
  x.copy_(at::masked_scatter(x, mask.to(at::kBool), source));
}

OP(MaskedSelect, (T, x), (T, mask), (Sized, out)) {
  out.set(at::masked_select(x, mask.to(at::kBool)));
}
OP(Nonzero, (T, x), (Sized, out)) { out.set(at::nonzero(x)); }
OP(NonzeroV2, (T, x), (Sized, out)) { out.set(at::nonzero(x).t().contiguous()); }

OP(Cat, (L, tensors), (N, dim), (T, out)) { out.copy_(at::cat(tensors, dim)); }
OP(Stack, (L, tensors), (N, dim), (T, out)) { out.copy_(at::stack(tensors, dim)); }
OP(SplitWithSize, (T, x), (I, sizes), (N, dim), (L, out)) {
  const auto parts = at::split_with_sizes(x, sizes, dim);
  for (size_t i = 0; i < parts.size(); ++i) out[i].copy_(parts[i]);
}
OP(Repeat, (T, x), (I, repeats), (T, out)) { out.copy_(x.repeat(repeats)); }
OP(RepeatInterleaveInt, (T, x), (N, repeats), (N, size), (T, out)) {
  out.copy_(at::repeat_interleave(x, repeats));
}
OP(RepeatInterleaveIntWithDim, (T, x), (N, repeats), (N, dim), (N, size), (T, out)) {
  out.copy_(at::repeat_interleave(x, repeats, dim));
}
OP(RepeatInterleave, (T, x), (T, repeats), (N, size), (T, out)) {
  out.copy_(at::repeat_interleave(x, repeats));
}
OP(RepeatInterleaveWithDim, (T, x), (T, repeats), (N, dim), (N, size), (T, out)) {
  out.copy_(at::repeat_interleave(x, repeats, dim));
}
OP(Flip, (T, x), (I, dims), (T, out)) { out.copy_(at::flip(x, dims)); }
OP(Roll, (T, x), (I, shifts), (I, dims), (T, out)) { out.copy_(at::roll(x, shifts, dims)); }
OP(Tril, (T, x), (N, diagonal), (T, out)) { out.copy_(at::tril(x, diagonal)); }
OP(Triu, (T, x), (N, diagonal), (T, out)) { out.copy_(at::triu(x, diagonal)); }
OP(InplaceTril, (T, x), (N, diagonal)) { x.copy_(at::tril(x, diagonal)); }
OP(InplaceTriu, (T, x), (N, diagonal)) { x.copy_(at::triu(x, diagonal)); }
OP(ConstantPadNd, (T, x), (I, pad), (S, value), (T, out)) {
  out.copy_(at::constant_pad_nd(x, pad, value));
}

OP(Arange, (S, start), (S, end), (S, step), (T, out)) {
  out.copy_(at::arange(start, end, step, out.options()));
}
OP(Range, (S, start), (S, end), (S, step), (T, out)) {
  out.copy_(at::range(start, end, step, out.options()));
}
OP(Linspace, (S, start), (S, end), (N, steps), (T, out)) {
  out.copy_(at::linspace(start, end, steps, out.options()));
}
OP(Eye, (N, rows), (N, columns), (T, out)) { out.copy_(at::eye(rows, columns, out.options())); }
OP(OneHot, (T, x), (N, classes), (T, on), (T, off), (N, axis), (T, out)) {
  const T hot = at::one_hot(x.to(at::kLong), classes).to(at::kBool);
  out.copy_(at::where(hot, on.reshape({}), off.reshape({})));
}
