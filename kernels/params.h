// The one argument block that every backend's kernel takes. Plain data, no torch types.
#pragma once

#include <cstdint>

namespace pa_hp {

enum class DType : int32_t { kFloat16 = 0, kBFloat16 = 1, kFloat32 = 2 };

// Sizes are counts, strides are in elements (not bytes); the last dimension is always contiguous.
struct DecodeParams {
  const void* query;           // [batch, heads, head_dim]
  const void* key_cache;       // [num_blocks, block_size, kv_heads, head_dim]
  const void* value_cache;     // [num_blocks, block_size, kv_heads, head_dim_v]
  const int32_t* block_table;  // [batch, max_blocks]
  const int32_t* seq_lens;     // [batch]
  void* out;                   // [batch, heads, head_dim_v]
  float* lse;                  // [batch, heads], contiguous; null when not asked for

  int64_t batch;
  int64_t heads;
  int64_t kv_heads;
  int64_t group;  // heads / kv_heads
  int64_t head_dim;
  int64_t head_dim_v;
  int64_t num_blocks;
  int64_t block_size;
  int64_t max_blocks;

  int64_t query_stride_batch;
  int64_t query_stride_head;
  int64_t key_stride_block;
  int64_t key_stride_token;
  int64_t key_stride_head;
  int64_t value_stride_block;
  int64_t value_stride_token;
  int64_t value_stride_head;
  int64_t block_table_stride;
  int64_t out_stride_batch;
  int64_t out_stride_head;

  float scale;  // multiplies the scores before the softmax
  DType dtype;  // of query, key_cache, value_cache and out
};

}  // namespace pa_hp
