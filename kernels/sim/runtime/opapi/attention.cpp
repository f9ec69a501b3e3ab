// The vendor's decode attention, as documented: the drop-ins are compared with it.
#include <cmath>
#include <stdexcept>

#include "op.h"

using namespace vnpu;

namespace {

// [kv_heads, tokens, head_dim] of one sequence, from a dense cache or from its pages.
T keys_of(const T& cache, const T& table, const Text& layout, N row, N tokens, N kv_heads,
          N block_size) {
  if (!table.defined()) {
    const T one = cache.select(0, row).to(at::kDouble);
    if (layout == "BNSD") return one.narrow(1, 0, tokens);
    return one.reshape({one.size(0), kv_heads, -1}).transpose(0, 1).narrow(1, 0, tokens);
  }
  std::vector<T> pages;
  for (N first = 0; first < tokens; first += block_size) {
    const T page = cache.select(0, table.index({row, first / block_size}).item<int64_t>());
    // [tokens, kv_heads * head_dim], or [kv_heads, tokens, head_dim].
    pages.push_back(page.dim() == 2 ? page.reshape({block_size, kv_heads, -1}).transpose(0, 1)
                                    : page);
  }
  return at::cat(pages, 1).narrow(1, 0, tokens).to(at::kDouble);
}

}  // namespace

OP(IncreFlashAttentionV4, (T, query), (L, key), (L, value), (T, pse_shift), (T, atten_mask),
   (I, lengths), (T, dequant_scale1), (T, quant_scale1), (T, dequant_scale2), (T, quant_scale2),
   (T, quant_offset2), (T, antiquant_scale), (T, antiquant_offset), (T, table), (T, padding),
   (N, heads), (D, scale), (Text, layout), (N, given_kv_heads), (N, block_size), (N, inner_precise),
   (T, out)) {
  for (const T& quantised : {dequant_scale1, quant_scale1, dequant_scale2, quant_scale2,
                             quant_offset2, antiquant_scale, antiquant_offset, padding}) {
    if (quantised.defined()) throw std::runtime_error("no quantised or left-padded caches here");
  }
  const N kv_heads = given_kv_heads == 0 ? heads : given_kv_heads;
  const N batch = query.size(0);
  for (N row = 0; row < batch; ++row) {
    N tokens = layout == "BNSD" ? key[0].size(2) : key[0].size(1);
    if (table.defined()) tokens = table.size(1) * block_size;
    if (!lengths.empty()) tokens = lengths.size() == 1 ? lengths[0] : lengths[row];
    const T result = out.select(0, row);
    if (tokens == 0) {
      result.zero_();
      continue;
    }
    const bool listed = key.size() > 1;  // one dense tensor a sequence
    const T& keys = listed ? key[row] : key[0];
    const T& values = listed ? value[row] : value[0];
    const N at_row = listed ? 0 : row;
    const T k = keys_of(keys, table, layout, at_row, tokens, kv_heads, block_size);
    const T v = keys_of(values, table, layout, at_row, tokens, kv_heads, block_size);
    const T q = query.select(0, row).to(at::kDouble).reshape({kv_heads, heads / kv_heads, -1});
    T scores = at::matmul(q, k.transpose(1, 2)) * scale;
    if (pse_shift.defined()) {
      const T shift = pse_shift.select(0, pse_shift.size(0) == 1 ? 0 : row);
      scores += shift.reshape({heads, -1}).narrow(1, 0, tokens).reshape(scores.sizes());
    }
    if (atten_mask.defined()) {
      const T mask = atten_mask.reshape({atten_mask.size(0), -1});
      const T own = mask.select(0, mask.size(0) == 1 ? 0 : row).narrow(0, 0, tokens);
      scores = scores.masked_fill(own.to(at::kBool), -INFINITY);
    }
    result.copy_(at::matmul(at::softmax(scores, -1), v).reshape(result.sizes()));
  }
}
