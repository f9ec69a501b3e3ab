// Every argument check of the op family, once, for all backends. The fakes (ops/fake.py) say the
// same words about everything that shapes and dtypes can tell; a test compares the two.
//
// Template of a message: pa_hp.<op>: expected <argument> to be <rule>, got <value>[; <what to do>].
// Order: dtype, device, rank, size relations, stride, scale, then the values of lengths and ids.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "params.h"

namespace pa_hp::check {

using at::Tensor;

inline const char* dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf:
      return "float16";
    case at::kBFloat16:
      return "bfloat16";
    case at::kFloat:
      return "float32";
    case at::kDouble:
      return "float64";
    case at::kInt:
      return "int32";
    case at::kLong:
      return "int64";
    case at::ScalarType::Undefined:
      return "None";
    default:
      return c10::toString(dtype);
  }
}

inline std::string size_text(const Tensor& tensor) {
  std::ostringstream text;
  text << tensor.sizes();
  return text.str();
}

// Limits that differ between backends; the rest of the rules is the same everywhere.
struct Limits {
  bool float32;
  int64_t head_dim_step;
  int64_t head_dim_max;
  int64_t block_size_step;
  int64_t block_size_max;
  int64_t group_max;
};
constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
constexpr Limits kCpuLimits{true, 8, 576, 1, kAny, kAny};
constexpr Limits kNpuLimits{false, 16, 256, 16, 512, 64};  // tiling/plan.py says why

// Prefix of every message of one op; `op` is the name behind "pa_hp.".
struct Checker {
  const char* op;

#define PA_HP_EXPECT(CHECK, COND, ARG, RULE, ...) \
  CHECK(COND, "pa_hp.", op, ": expected ", ARG, " to be ", RULE, ", got ", __VA_ARGS__)

  void same_dtype(const char* name, const Tensor& tensor, const Tensor& query) const {
    PA_HP_EXPECT(TORCH_CHECK_TYPE, tensor.scalar_type() == query.scalar_type(), name,
                 dtype_name(query.scalar_type()), dtype_name(tensor.scalar_type()),
                 tensor.defined() ? "; it must have the dtype of query" : "");
  }
  void int32(const char* name, const Tensor& tensor) const {
    PA_HP_EXPECT(TORCH_CHECK_TYPE, tensor.scalar_type() == at::kInt, name, "int32",
                 dtype_name(tensor.scalar_type()),
                 tensor.defined() ? "; call .to(torch.int32)" : "");
  }
  void same_device(const char* name, const Tensor& tensor, const Tensor& query) const {
    PA_HP_EXPECT(TORCH_CHECK_VALUE, tensor.device() == query.device(), name,
                 "on " + query.device().str(), tensor.device().str(),
                 "; it must be on the device of query");
  }
  void rank(const char* name, const Tensor& tensor, int64_t dims, const char* shape) const {
    PA_HP_EXPECT(TORCH_CHECK_VALUE, tensor.dim() == dims, name,
                 std::to_string(dims) + "-D " + shape, size_text(tensor));
  }
  void size(const char* name, const Tensor& tensor, int64_t dim, int64_t expected,
            const char* meaning) const {
    PA_HP_EXPECT(TORCH_CHECK_VALUE, tensor.sizes()[dim] == expected,
                 std::string(name) + ".size(" + std::to_string(dim) + ")",
                 std::to_string(expected) + " (" + meaning + ")", tensor.size(dim));
  }
  void head_dim(const char* name, const Tensor& tensor, const Limits& limits) const {
    const int64_t dim = tensor.size(-1);
    PA_HP_EXPECT(TORCH_CHECK_VALUE,
                 dim >= 1 && dim <= limits.head_dim_max && dim % limits.head_dim_step == 0,
                 std::string(name) + ".size(" + std::to_string(tensor.dim() - 1) + ")",
                 "a multiple of " + std::to_string(limits.head_dim_step) + " up to " +
                     std::to_string(limits.head_dim_max),
                 dim);
  }
  void last_dim_contiguous(const char* name, const Tensor& tensor) const {
    PA_HP_EXPECT(TORCH_CHECK_VALUE, tensor.size(-1) <= 1 || tensor.stride(-1) == 1, name,
                 "contiguous in its last dimension", "stride ", tensor.stride(-1),
                 "; call .contiguous()");
  }

  void inputs(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
              const Tensor& block_table, const Tensor& seq_lens, const std::optional<double>& scale,
              const Limits& limits) const {
    const auto dtype = query.scalar_type();
    PA_HP_EXPECT(
        TORCH_CHECK_TYPE,
        dtype == at::kHalf || dtype == at::kBFloat16 || (dtype == at::kFloat && limits.float32),
        "query", limits.float32 ? "float16, bfloat16 or float32" : "float16 or bfloat16",
        dtype_name(dtype));
    same_dtype("key_cache", key_cache, query);
    same_dtype("value_cache", value_cache, query);
    int32("block_table", block_table);
    int32("seq_lens", seq_lens);

    same_device("key_cache", key_cache, query);
    same_device("value_cache", value_cache, query);
    same_device("block_table", block_table, query);
    same_device("seq_lens", seq_lens, query);

    rank("query", query, 3, "[batch, heads, head_dim]");
    rank("key_cache", key_cache, 4, "[num_blocks, block_size, kv_heads, head_dim]");
    rank("value_cache", value_cache, 4, "[num_blocks, block_size, kv_heads, head_dim_v]");
    rank("block_table", block_table, 2, "[batch, max_blocks]");
    rank("seq_lens", seq_lens, 1, "[batch]");

    const at::IntArrayRef queries = query.sizes(), keys = key_cache.sizes();
    head_dim("query", query, limits);
    size("key_cache", key_cache, 3, queries[2], "head_dim of query");
    size("value_cache", value_cache, 0, keys[0], "num_blocks of key_cache");
    size("value_cache", value_cache, 1, keys[1], "block_size of key_cache");
    size("value_cache", value_cache, 2, keys[2], "kv_heads of key_cache");
    head_dim("value_cache", value_cache, limits);
    PA_HP_EXPECT(TORCH_CHECK_VALUE, keys[1] >= 1, "key_cache.size(1)", "at least 1 (block_size)",
                 keys[1]);
    PA_HP_EXPECT(TORCH_CHECK_VALUE, keys[2] >= 1, "key_cache.size(2)", "at least 1 (kv_heads)",
                 keys[2]);
    PA_HP_EXPECT(TORCH_CHECK_VALUE, queries[1] >= 1 && queries[1] % keys[2] == 0, "query.size(1)",
                 "a positive multiple of " + std::to_string(keys[2]) + " (kv_heads of key_cache)",
                 queries[1]);
    const int64_t block_size = keys[1], kv_heads = keys[2];
    PA_HP_EXPECT(TORCH_CHECK_VALUE,
                 block_size % limits.block_size_step == 0 && block_size <= limits.block_size_max,
                 "key_cache.size(1)",
                 "a multiple of " + std::to_string(limits.block_size_step) + " up to " +
                     std::to_string(limits.block_size_max) + " (block_size)",
                 block_size);
    PA_HP_EXPECT(TORCH_CHECK_VALUE, queries[1] / kv_heads <= limits.group_max, "query.size(1)",
                 "at most " + std::to_string(limits.group_max) + " times " +
                     std::to_string(kv_heads) + " (kv_heads of key_cache)",
                 queries[1]);
    size("block_table", block_table, 0, queries[0], "batch of query");
    size("seq_lens", seq_lens, 0, queries[0], "batch of query");

    last_dim_contiguous("query", query);
    last_dim_contiguous("key_cache", key_cache);
    last_dim_contiguous("value_cache", value_cache);
    last_dim_contiguous("block_table", block_table);
    last_dim_contiguous("seq_lens", seq_lens);

    // The kernels work in float32 and with powers of 2: log2(e) is on top of the scale.
    PA_HP_EXPECT(TORCH_CHECK_VALUE, !scale || std::isfinite(static_cast<float>(*scale) * 1.442695f),
                 "scale", "finite in float32 times log2(e)", *scale);
  }

  // `out` of decode_out; call after inputs().
  void output(const Tensor& out, const Tensor& query, const Tensor& key_cache,
              const Tensor& value_cache, const Tensor& block_table, const Tensor& seq_lens) const {
    same_dtype("out", out, query);
    same_device("out", out, query);
    rank("out", out, 3, "[batch, heads, head_dim_v]");
    size("out", out, 0, query.size(0), "batch of query");
    size("out", out, 1, query.size(1), "heads of query");
    size("out", out, 2, value_cache.size(3), "head_dim_v of value_cache");
    last_dim_contiguous("out", out);
    PA_HP_EXPECT(TORCH_CHECK_VALUE, rows_apart(out), "out", "free of rows that share memory",
                 "strides ", out.strides(), "; call .contiguous()");
    apart("query", out, query);
    apart("key_cache", out, key_cache);
    apart("value_cache", out, value_cache);
    apart("block_table", out, block_table);
    apart("seq_lens", out, seq_lens);
  }

  // Lengths and block ids, read on the host: for backends whose tensors live there. Nothing else
  // may be accessed before this has passed.
  void values(const DecodeParams& p) const {
    int64_t capacity = 0;
    if (__builtin_mul_overflow(p.max_blocks, p.block_size, &capacity)) {
      capacity = std::numeric_limits<int64_t>::max();  // an expanded cache; no length reaches it
    }
    for (int64_t row = 0; row < p.batch; ++row) {
      const int64_t len = p.seq_lens[row];
      PA_HP_EXPECT(TORCH_CHECK_VALUE, len >= 0 && len <= capacity,
                   "seq_lens[" + std::to_string(row) + "]",
                   "in [0, " + std::to_string(capacity) + "] (max_blocks * block_size)", len);
      const int32_t* ids = p.block_table + row * p.block_table_stride;
      const int64_t used = len == 0 ? 0 : (len - 1) / p.block_size + 1;
      for (int64_t entry = 0; entry < used; ++entry) {
        PA_HP_EXPECT(TORCH_CHECK_INDEX, ids[entry] >= 0 && ids[entry] < p.num_blocks,
                     "block_table[" + std::to_string(row) + ", " + std::to_string(entry) + "]",
                     "in [0, " + std::to_string(p.num_blocks) + ") (num_blocks of key_cache)",
                     ids[entry]);
      }
    }
  }

 private:
  // True if no two rows of `out` overlap: walking from the smallest stride up, each stride clears
  // everything below it.
  static bool rows_apart(const Tensor& out) {
    int64_t dims[2] = {0, 1};
    if (out.stride(0) < out.stride(1)) std::swap(dims[0], dims[1]);
    int64_t extent = out.size(2);
    for (const int64_t dim : {dims[1], dims[0]}) {
      if (out.size(dim) <= 1) continue;
      if (out.stride(dim) < extent) return false;
      extent += out.stride(dim) * (out.size(dim) - 1);
    }
    return true;
  }

  // Compares address ranges, so that an `out` woven into the gaps of an input is refused as well.
  void apart(const char* name, const Tensor& out, const Tensor& input) const {
    const auto range = [](const Tensor& tensor) {
      const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
      int64_t last = 0;
      for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
        last += tensor.stride(dim) * (tensor.size(dim) - 1);
      }
      return std::pair(begin, begin + static_cast<uintptr_t>((last + 1) * tensor.itemsize()));
    };
    if (out.numel() == 0 || input.numel() == 0) return;
    const auto [out_begin, out_end] = range(out);
    const auto [begin, end] = range(input);
    TORCH_CHECK_VALUE(out_end <= begin || end <= out_begin, "pa_hp.", op,
                      ": expected out to be apart from ", name,
                      ", got overlapping memory; pass a tensor of its own");
  }
#undef PA_HP_EXPECT
};

}  // namespace pa_hp::check
