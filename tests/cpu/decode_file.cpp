// run_decode from a file to a file, for instruction sets that this machine lacks: built for another
// machine and run by an emulator, or, with PA_HP_LOWERED, with AVX-512's vectors and bfloat16 dot
// products, and with PA_HP_AMX its tiles, spelled out in what the compiler has.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../kernels/cpu/decode.h"
#include "absent.h"

#if PA_HP_LOWERED
#define PA_HP_ISA baseline
#define PA_HP_VECTOR_BYTES 64
#define PA_HP_BF16_DOT 1
#include "../../kernels/cpu/kernel.inl"
#endif

namespace {

template <class T>
std::vector<T> read(std::FILE* file, int64_t count) {
  std::vector<T> data(count);
  if (static_cast<int64_t>(std::fread(data.data(), sizeof(T), count, file)) != count) std::abort();
  return data;
}

void run_in_turn(void (*body)(void*, int64_t), void* data, int64_t n) {
  for (int64_t i = 0; i < n; ++i) body(data, i);
}

}  // namespace

// Input: batch, heads, kv_heads, head_dim, head_dim_v, num_blocks, block_size, max_blocks, dtype as
// int64; scale as float; query, key cache, value cache, block table, lengths. Output: out, lse.
int main(int, char** argv) {
  std::FILE* file = std::fopen(argv[1], "rb");
  const std::vector<int64_t> sizes = read<int64_t>(file, 9);
  pa_hp::DecodeParams p{};
  p.batch = sizes[0];
  p.heads = sizes[1];
  p.kv_heads = sizes[2];
  p.group = p.heads / p.kv_heads;
  p.head_dim = sizes[3];
  p.head_dim_v = sizes[4];
  p.num_blocks = sizes[5];
  p.block_size = sizes[6];
  p.max_blocks = p.block_table_stride = sizes[7];
  p.dtype = static_cast<pa_hp::DType>(sizes[8]);
  p.scale = read<float>(file, 1)[0];
  const int64_t bytes = p.dtype == pa_hp::DType::kFloat32 ? 4 : 2;
  p.query_stride_head = p.head_dim;
  p.query_stride_batch = p.heads * p.head_dim;
  p.key_stride_head = p.head_dim;
  p.key_stride_token = p.kv_heads * p.head_dim;
  p.key_stride_block = p.block_size * p.key_stride_token;
  p.value_stride_head = p.head_dim_v;
  p.value_stride_token = p.kv_heads * p.head_dim_v;
  p.value_stride_block = p.block_size * p.value_stride_token;
  p.out_stride_head = p.head_dim_v;
  p.out_stride_batch = p.heads * p.head_dim_v;
  const auto query = read<char>(file, p.batch * p.query_stride_batch * bytes);
  const auto keys = read<char>(file, p.num_blocks * p.key_stride_block * bytes);
  const auto values = read<char>(file, p.num_blocks * p.value_stride_block * bytes);
  const auto table = read<int32_t>(file, p.batch * p.max_blocks);
  const auto lens = read<int32_t>(file, p.batch);
  std::vector<char> out(p.batch * p.out_stride_batch * bytes);
  std::vector<float> lse(p.batch * p.heads);
  p.query = query.data();
  p.key_cache = keys.data();
  p.value_cache = values.data();
  p.block_table = table.data();
  p.seq_lens = lens.data();
  p.out = out.data();
  p.lse = lse.data();
  pa_hp::cpu::run_decode(p, {3, run_in_turn});
  file = std::fopen(argv[2], "wb");
  std::fwrite(out.data(), 1, out.size(), file);
  std::fwrite(lse.data(), sizeof(float), lse.size(), file);
  return std::fclose(file);
}
