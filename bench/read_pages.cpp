// The `read` peer of the bench: streams exactly the key and value rows that a decode needs, on the
// same threads, and does nothing with them but an xor. Its time is the floor that decode is held
// against.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using at::Tensor;

// Four places of a stretch are read at a time: a core follows several streams faster than one. The
// rows are aligned to their elements alone, hence `aligned`; whatever the tensors hold is read as
// integers, hence `may_alias`.
constexpr int64_t kStreams = 4;
using Vec __attribute__((vector_size(32), aligned(2), may_alias)) = uint64_t;
constexpr int64_t kLine = 2 * sizeof(Vec);

#if defined(__x86_64__) && defined(__GLIBC__)
__attribute__((target_clones("avx2", "default")))
#endif
uint64_t xor_words(const char* data, int64_t bytes) {
  const int64_t stream = bytes / (kStreams * kLine) * kLine;
  Vec even[kStreams] = {}, odd[kStreams] = {};
  for (int64_t at = 0; at < stream; at += kLine) {
    for (int64_t i = 0; i < kStreams; ++i) {
      const Vec* line = reinterpret_cast<const Vec*>(data + i * stream + at);
      even[i] ^= line[0];
      odd[i] ^= line[1];
    }
  }
  uint64_t sum = 0;
  for (int64_t at = kStreams * stream; at < bytes; at += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, data + at, sizeof(word));
    sum ^= word;
  }
  Vec total = {};
  for (int64_t i = 0; i < kStreams; ++i) total ^= even[i] ^ odd[i];
  return sum ^ total[0] ^ total[1] ^ total[2] ^ total[3];
}

// One cache [num_blocks, block_size, kv_heads, head_dim]; strides in bytes.
struct Cache {
  explicit Cache(const Tensor& cache)
      : data(static_cast<const char*>(cache.const_data_ptr())),
        kv_heads(cache.size(2)),
        block_stride(cache.stride(0) * cache.element_size()),
        token_stride(cache.stride(1) * cache.element_size()),
        head_stride(cache.stride(2) * cache.element_size()),
        row(cache.size(3) * cache.element_size()) {
    TORCH_CHECK_VALUE(cache.dim() == 4 && cache.stride(3) == 1 && row % sizeof(uint64_t) == 0,
                      "pa_hp_bench.read: expected a 4-D cache with rows of whole 64-bit words");
  }

  uint64_t read(int64_t block, int64_t token, int64_t count) const {
    const char* begin = data + block * block_stride + token * token_stride;
    if (head_stride == row && token_stride == kv_heads * row)
      return xor_words(begin,
                       count * kv_heads * row);  // all heads of all tokens lie in one stretch
    uint64_t sum = 0;
    for (int64_t head = 0; head < kv_heads; ++head) {
      if (token_stride == row) {
        sum ^= xor_words(begin + head * head_stride, count * row);
        continue;
      }
      for (int64_t i = 0; i < count; ++i)
        sum ^= xor_words(begin + head * head_stride + i * token_stride, row);
    }
    return sum;
  }

  const char* data;
  int64_t kv_heads, block_stride, token_stride, head_stride, row;
};

// Xor of all 64-bit words in the key and value rows of the tokens in [0, seq_lens[i]) of every
// sequence.
Tensor read(const Tensor& key_cache, const Tensor& value_cache, const Tensor& block_table,
            const Tensor& seq_lens) {
  const Cache keys(key_cache), values(value_cache);
  const int64_t batch = seq_lens.size(0), block_size = key_cache.size(1);
  const int32_t* lens = seq_lens.const_data_ptr<int32_t>();
  const int32_t* table = block_table.const_data_ptr<int32_t>();
  const int64_t table_stride = block_table.stride(0);

  std::vector<int64_t> starts(batch + 1,
                              0);  // first token of each sequence on the common token axis
  for (int64_t seq = 0; seq < batch; ++seq) {
    starts[seq + 1] = starts[seq] + lens[seq];
    for (int64_t i = 0; i * block_size < lens[seq]; ++i)
      TORCH_CHECK_INDEX(
          table[seq * table_stride + i] >= 0 && table[seq * table_stride + i] < key_cache.size(0),
          "pa_hp_bench.read: block_table[", seq, "][", i, "] is out of range");
  }

  std::atomic<uint64_t> sum{0};
  at::parallel_for(0, starts[batch], /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    uint64_t local = 0;
    int64_t seq = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    while (begin < end) {
      while (begin >= starts[seq + 1]) ++seq;
      const int64_t token = begin - starts[seq], offset = token % block_size;
      const int64_t count = std::min({block_size - offset, lens[seq] - token, end - begin});
      const int64_t block = table[seq * table_stride + token / block_size];
      local ^= keys.read(block, offset, count) ^ values.read(block, offset, count);
      begin += count;
    }
    sum ^= local;
  });

  Tensor out = at::empty({}, seq_lens.options().dtype(at::kLong));
  *out.mutable_data_ptr<int64_t>() = static_cast<int64_t>(sum.load());
  return out;
}

TORCH_LIBRARY(pa_hp_bench, m) {
  m.def(
      "read(Tensor key_cache, Tensor value_cache, Tensor block_table, Tensor seq_lens) -> Tensor");
}
TORCH_LIBRARY_IMPL(pa_hp_bench, CPU, m) { m.impl("read", TORCH_FN(read)); }

}  // namespace
