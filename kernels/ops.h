// The op family over a backend's kernel: checks, new outputs, parameter block, registration.
#pragma once

#include <ATen/DeviceGuard.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_ops.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "check.h"
#include "params.h"

namespace pa_hp {

using Scale = std::optional<double>;

// Backend: `key`, its dispatch key; `limits`; accept(check, name, tensor), which may refuse a
// tensor that check.h has passed; run(check, params, query).
template <class Backend>
struct Ops {
  using Tensor = at::Tensor;

  static Tensor decode(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                       const Tensor& block_table, const Tensor& seq_lens, Scale scale) {
    const c10::OptionalDeviceGuard guard(at::device_of(query));
    const check::Checker check{"decode"};
    check.inputs(query, key_cache, value_cache, block_table, seq_lens, scale, Backend::limits);
    Tensor out = empty_out(query, value_cache);
    run(check, query, key_cache, value_cache, block_table, seq_lens, scale, out, nullptr);
    return out;
  }

  static void decode_out(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                         const Tensor& block_table, const Tensor& seq_lens, Scale scale,
                         Tensor& out) {
    const c10::OptionalDeviceGuard guard(at::device_of(query));
    const check::Checker check{"decode_out"};
    check.inputs(query, key_cache, value_cache, block_table, seq_lens, scale, Backend::limits);
    check.output(out, query, key_cache, value_cache, block_table, seq_lens);
    Backend::accept(check, "out", out);
    run(check, query, key_cache, value_cache, block_table, seq_lens, scale, out, nullptr);
  }

  static std::tuple<Tensor, Tensor> decode_lse(const Tensor& query, const Tensor& key_cache,
                                               const Tensor& value_cache, const Tensor& block_table,
                                               const Tensor& seq_lens, Scale scale) {
    const c10::OptionalDeviceGuard guard(at::device_of(query));
    const check::Checker check{"decode_lse"};
    check.inputs(query, key_cache, value_cache, block_table, seq_lens, scale, Backend::limits);
    Tensor out = empty_out(query, value_cache);
    Tensor lse = empty(query, {query.size(0), query.size(1)}, at::kFloat);
    run(check, query, key_cache, value_cache, block_table, seq_lens, scale, out,
        lse.mutable_data_ptr<float>());
    return {out, lse};
  }

  static void define(torch::Library& m) {
    m.impl("decode", TORCH_FN(decode));
    m.impl("decode_out", TORCH_FN(decode_out));
    m.impl("decode_lse", TORCH_FN(decode_lse));
  }

 private:
  static Tensor empty_out(const Tensor& query, const Tensor& value_cache) {
    return empty(query, {query.size(0), query.size(1), value_cache.size(3)}, query.scalar_type());
  }

  // Straight from the backend: to find it anew takes 3 % of a call on the NPU.
  static Tensor empty(const Tensor& query, at::IntArrayRef sizes, at::ScalarType dtype) {
    return at::_ops::empty_memory_format::redispatch(
        c10::DispatchKeySet(Backend::key), c10::fromIntArrayRefSlow(sizes), dtype, query.layout(),
        query.device(), false, std::nullopt);
  }

  static void run(const check::Checker& check, const Tensor& query, const Tensor& key_cache,
                  const Tensor& value_cache, const Tensor& block_table, const Tensor& seq_lens,
                  Scale scale, const Tensor& out, float* lse) {
    Backend::accept(check, "query", query);
    Backend::accept(check, "key_cache", key_cache);
    Backend::accept(check, "value_cache", value_cache);
    Backend::accept(check, "block_table", block_table);
    Backend::accept(check, "seq_lens", seq_lens);
    DecodeParams p{};
    p.query = query.const_data_ptr();
    p.key_cache = key_cache.const_data_ptr();
    p.value_cache = value_cache.const_data_ptr();
    p.block_table = block_table.const_data_ptr<int32_t>();
    p.seq_lens = seq_lens.const_data_ptr<int32_t>();
    p.out = out.mutable_data_ptr();
    p.lse = lse;
    // Once each: asked for one by one they take 2 % of a call on the NPU.
    const at::IntArrayRef queries = query.sizes(), keys = key_cache.sizes();
    const at::IntArrayRef query_strides = query.strides(), key_strides = key_cache.strides();
    const at::IntArrayRef value_strides = value_cache.strides(), out_strides = out.strides();
    p.batch = queries[0];
    p.heads = queries[1];
    p.kv_heads = keys[2];
    p.group = p.heads / p.kv_heads;
    p.head_dim = queries[2];
    p.head_dim_v = value_cache.size(3);
    p.num_blocks = keys[0];
    p.block_size = keys[1];
    p.max_blocks = block_table.size(1);
    p.query_stride_batch = query_strides[0];
    p.query_stride_head = query_strides[1];
    p.key_stride_block = key_strides[0];
    p.key_stride_token = key_strides[1];
    p.key_stride_head = key_strides[2];
    p.value_stride_block = value_strides[0];
    p.value_stride_token = value_strides[1];
    p.value_stride_head = value_strides[2];
    p.block_table_stride = block_table.stride(0);
    p.out_stride_batch = out_strides[0];
    p.out_stride_head = out_strides[1];
    p.scale = static_cast<float>(scale.value_or(1.0 / std::sqrt(static_cast<double>(p.head_dim))));
    p.dtype = query.scalar_type() == at::kHalf       ? DType::kFloat16
              : query.scalar_type() == at::kBFloat16 ? DType::kBFloat16
                                                     : DType::kFloat32;
    Backend::run(check, p, query);
  }
};

}  // namespace pa_hp
