// The CPU kernels of the op family: checks, output allocation, parameter block, torch's threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <pthread.h>
#include <torch/library.h>

#include <atomic>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "../check.h"
#include "decode.h"

namespace pa_hp::cpu {
namespace {

using at::Tensor;
using Scale = std::optional<double>;

// OpenMP's pool does not survive a fork: a parallel region in the child would wait for threads that
// are gone. There the op runs on the calling thread alone.
std::atomic<bool> forked{false};
const int atfork_registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

void run_on_torch_threads(void (*body)(void*, int64_t), void* data, int64_t n) {
  at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(data, i);
  });
}

void run(const check::Checker& check, const Tensor& query, const Tensor& key_cache,
         const Tensor& value_cache, const Tensor& block_table, const Tensor& seq_lens, Scale scale,
         const Tensor& out, float* lse) {
  DecodeParams p{};
  p.query = query.const_data_ptr();
  p.key_cache = key_cache.const_data_ptr();
  p.value_cache = value_cache.const_data_ptr();
  p.block_table = block_table.const_data_ptr<int32_t>();
  p.seq_lens = seq_lens.const_data_ptr<int32_t>();
  p.out = out.mutable_data_ptr();
  p.lse = lse;
  p.batch = query.size(0);
  p.heads = query.size(1);
  p.kv_heads = key_cache.size(2);
  p.group = p.heads / p.kv_heads;
  p.head_dim = query.size(2);
  p.head_dim_v = value_cache.size(3);
  p.num_blocks = key_cache.size(0);
  p.block_size = key_cache.size(1);
  p.max_blocks = block_table.size(1);
  p.query_stride_batch = query.stride(0);
  p.query_stride_head = query.stride(1);
  p.key_stride_block = key_cache.stride(0);
  p.key_stride_token = key_cache.stride(1);
  p.key_stride_head = key_cache.stride(2);
  p.value_stride_block = value_cache.stride(0);
  p.value_stride_token = value_cache.stride(1);
  p.value_stride_head = value_cache.stride(2);
  p.block_table_stride = block_table.stride(0);
  p.out_stride_batch = out.stride(0);
  p.out_stride_head = out.stride(1);
  p.scale = static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(p.head_dim))));
  p.dtype = query.scalar_type() == at::kHalf       ? DType::kFloat16
            : query.scalar_type() == at::kBFloat16 ? DType::kBFloat16
                                                   : DType::kFloat32;
  check.values(p);
  const bool alone = forked || at::in_parallel_region();
  run_decode(p, {alone ? 1 : at::get_num_threads(), run_on_torch_threads});
}

Tensor empty_out(const Tensor& query, const Tensor& value_cache) {
  return at::empty({query.size(0), query.size(1), value_cache.size(3)}, query.options());
}

Tensor decode(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
              const Tensor& block_table, const Tensor& seq_lens, Scale scale) {
  const check::Checker check{"decode"};
  check.inputs(query, key_cache, value_cache, block_table, seq_lens, scale, check::kCpuLimits);
  Tensor out = empty_out(query, value_cache);
  run(check, query, key_cache, value_cache, block_table, seq_lens, scale, out, nullptr);
  return out;
}

void decode_out(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                const Tensor& block_table, const Tensor& seq_lens, Scale scale, Tensor& out) {
  const check::Checker check{"decode_out"};
  check.inputs(query, key_cache, value_cache, block_table, seq_lens, scale, check::kCpuLimits);
  check.output(out, query, key_cache, value_cache, block_table, seq_lens);
  run(check, query, key_cache, value_cache, block_table, seq_lens, scale, out, nullptr);
}

std::tuple<Tensor, Tensor> decode_lse(const Tensor& query, const Tensor& key_cache,
                                      const Tensor& value_cache, const Tensor& block_table,
                                      const Tensor& seq_lens, Scale scale) {
  const check::Checker check{"decode_lse"};
  check.inputs(query, key_cache, value_cache, block_table, seq_lens, scale, check::kCpuLimits);
  Tensor out = empty_out(query, value_cache);
  Tensor lse = at::empty({query.size(0), query.size(1)}, query.options().dtype(at::kFloat));
  run(check, query, key_cache, value_cache, block_table, seq_lens, scale, out,
      lse.mutable_data_ptr<float>());
  return {out, lse};
}

TORCH_LIBRARY_IMPL(pa_hp, CPU, m) {
  m.impl("decode", TORCH_FN(decode));
  m.impl("decode_out", TORCH_FN(decode_out));
  m.impl("decode_lse", TORCH_FN(decode_lse));
}

}  // namespace

}  // namespace pa_hp::cpu

extern "C" __attribute__((visibility("default"))) void pa_hp_cpu_run_alone() {
  pa_hp::cpu::forked = true;
}

// For `python -m pa_hp info`: plain C, read through ctypes. Null if PA_HP_CPU_ISA names none of
// this machine's, which an op says in full.
extern "C" __attribute__((visibility("default"))) const char* pa_hp_cpu_isa() {
  try {
    return pa_hp::cpu::isa_name();
  } catch (const std::runtime_error&) {
    return nullptr;
  }
}
