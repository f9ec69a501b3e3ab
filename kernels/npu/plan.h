// What the host decides once per shape, and every name that two files of the kernel share: the
// plan, cross-core flags, events, buffers, and the layout of the workspace. tiling/plan.py fills a
// DecodePlan in and checks each buffer map against the chip; docs/kernel.md draws them.
#pragma once

#include <cstdint>

#include "../params.h"

#ifndef __gm__  // the host's compiler, for schedule.h and launch.cpp
#define __gm__
#define __global__
#define __aicore__
#endif

// The half that bisheng compiles: since CANN 8.3 its manual has names without the architecture.
#if defined(__DAV_CUBE__) && !defined(__DAV_C220_CUBE__)
#define __DAV_C220_CUBE__
#elif defined(__DAV_VEC__) && !defined(__DAV_C220_VEC__)
#define __DAV_C220_VEC__
#endif
#if defined(__CCE_IS_AICORE__) && __CCE_IS_AICORE__ == 1 && !defined(__DAV_C220_CUBE__) && \
    !defined(__DAV_C220_VEC__)
#error "the compiler names neither cube nor vector core: the kernel would do nothing"
#endif

namespace pa_hp::npu {

// Sizes are counts, strides are in elements, buffers are offsets and sizes in bytes.
struct DecodePlan {
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

  int32_t dtype;  // DType of params.h
  int32_t batch;
  int32_t heads;
  int32_t group;  // query heads of a kv head
  int32_t head_dim;
  int32_t head_dim_v;
  int32_t num_blocks;
  int32_t block_size;
  int32_t max_blocks;
  float scale;

  int32_t tile_heads;    // kv heads that are worked on together
  int32_t head_groups;   // kv_heads / tile_heads
  int32_t rows;          // query heads of a tile: tile_heads * group
  int32_t chunk_tokens;  // tokens of one load
  int32_t tile_tokens;   // tokens of one softmax step: a multiple of chunk_tokens
  int32_t key_step;      // tokens of one product with K
  int32_t value_step;    // tokens of one product with V
  int32_t item_cost;     // what an item costs beyond its tokens, as a number of tokens
  int32_t item_floor;    // and in all, if it has next to none

  int32_t l1_slot_bytes;  // kSlots of them from 0 on
  int32_t l1_query;       // two of l1_query_bytes
  int32_t l1_query_bytes;
  int32_t l1_weights;  // two of l1_weights_bytes
  int32_t l1_weights_bytes;
  int32_t l0c_output;  // behind two halves of scores
  int32_t l0c_score_bytes;

  int32_t ub_scores;
  int32_t ub_weights;
  int32_t ub_output;
  int32_t ub_acc;  // a partial result
  int32_t ub_fold;
  int32_t ub_result;
  int32_t ub_stats;          // kStats vectors of kStatLanes
  int32_t ub_merge_weights;  // blocks of merge_rows rows, twice and a half
  int32_t ub_merge;          // merge_rows rows of head_dim_v
  int32_t merge_rows;        // rows times parts that are merged at once; at least the clusters

  // Workspace of one cluster; scores, from 0 on, weights and output are kTiles buffers each.
  int32_t ws_weights;
  int32_t ws_output;
  int32_t ws_partials;  // of either vector core
  int32_t ws_bytes;
};

constexpr int32_t kFractal = 16;   // rows and columns of the cube's unit
constexpr int32_t kMinShare = 16;  // places of the line that are worth a cluster's signals
// A share of several pieces has kParts loads and tiles at least, where loads are longer than
// kShortLoad tokens, or than twice that of all their heads together: short pieces hide little of a
// long load's way, or of the vector cores' work on a long tile. Fitted to mixtures as those of
// tests/npu/test_even.py, on the model.
constexpr int32_t kParts = 6;
constexpr int32_t kShortLoad = 128;
constexpr int32_t kEvenTiles = 4;  // so many last tiles of a piece are all but equal
// A share's last V is loaded up to kTaper tokens before its end, then up to kLastLoad, then the
// rest: what follows a load takes about as long as the load of half as much.
constexpr int32_t kTaper = 80;
constexpr int32_t kLastLoad = 32;
// Parts of the longest item times rows of a vector core that one cluster merges on its own; more
// are merged by all that have parts. On the model the best of 0, 16, 24, 32 and 48 for 22 shapes.
constexpr int32_t kMergeAlone = 16;
constexpr int32_t kFirstPart = 0;  // in the workspace, over S: the part that an item begins with
constexpr int32_t kMaxRows = 64;   // query heads of a tile at most
constexpr int32_t kMaxScores = 16384;  // rows * tile_tokens at most
constexpr int32_t kSlots = 3;          // loads of K and V under way
constexpr int32_t kTiles = 3;          // tiles under way: V of one, K of the two behind it
constexpr int32_t kL0Half = 32 << 10;  // L0A and L0B: half of 64 KiB
constexpr int32_t kMaxStride = 65535;  // of a row or matrix in nd2nz, 16 bits
constexpr int32_t kBlockBytes = 32;
constexpr uint32_t kNanPair =
    0x7fff7fff;                     // two NaN, in float16 and in bfloat16, and one in float32
constexpr int32_t kLanes = 64;      // fp32 of one vector repeat
constexpr int32_t kBlockLanes = 8;  // fp32 of a block

// A vector core's partial result: its rows' sums, head_dim_v of each; their maxima and then their
// sums of weights, each eight times, as the vector unit wants them for a broadcast.
constexpr int32_t kRowTail = 2 * kBlockLanes;
// Statistics of a vector core's rows in UB, kStatLanes floats each; the ones with kTiles
// copies take turns.
constexpr int32_t kStatLanes = 64;
enum Stat : int32_t {
  kMax = 0,  // kTiles: of the pieces under way
  kSum = 3,  // kTiles
  kTileMax = 6,
  kTileSum = 7,
  kDecay = 8,
  kMaxBlocks = 9,     // kMaxRows / 2 rows of a block: 4 vectors
  kDecayBlocks = 13,  // kTiles of 4
  kLseBlocks = 25,    // 4
  kInverse = 29,      // 4
  kOnes = 33,
  kStats = 34,
};

// Cross-core flags.
enum CrossFlag : int32_t {
  kScoresReady = 0,    // cube -> vector: S of a tile is in the workspace
  kWeightsReady = 1,   // vector -> cube: P of a tile is there, and S has been read
  kOutputReady = 2,    // cube -> vector: P V of a tile is there, and P has been read
  kPartialsReady = 3,  // all vector cores: every partial result is there
};
enum CrossMode : int32_t { kAllVectorCores = 0, kCluster = 2 };

__aicore__ constexpr uint64_t cross_flag(CrossMode mode, CrossFlag flag) {
  return 1 | static_cast<uint64_t>(mode) << 4 | static_cast<uint64_t>(flag) << 8;
}

// Events, per pair of pipes. Forward: ready; backward: free again.
enum CubeLoadEvent : int32_t { kSlotEvent = 0, kWeightsEvent = 3, kQueryEvent = 5 };  // MTE2, MTE1
enum CubeStepEvent : int32_t { kL0Event = 0 };                        // MTE1, M: two halves
enum CubeStoreEvent : int32_t { kScoreEvent = 0, kOutputEvent = 2 };  // M, FIX: two halves; one
enum VectorLoadEvent : int32_t { kScoresIn = 0, kOutputIn = 1, kPartialsIn = 2 };  // MTE2, V
enum VectorStoreEvent : int32_t { kWeightsOut = 0, kResultOut = 1 };               // V, MTE3

__aicore__ constexpr int32_t round_up(int32_t x, int32_t to) { return (x + to - 1) / to * to; }
__aicore__ constexpr int32_t ceil_div(int32_t x, int32_t by) { return (x + by - 1) / by; }
__aicore__ constexpr int32_t min(int32_t a, int32_t b) { return a < b ? a : b; }

}  // namespace pa_hp::npu

// The kernel, in decode.cce. `ffts`: where cross-core flags live; `lse` may be null; `workspace`:
// ws_bytes a cluster, whatever it holds. The plan comes with the launch: nothing is to be uploaded,
// and a captured graph holds its own.
extern "C" __global__ __aicore__ void pa_hp_decode(
    uint64_t ffts, __gm__ uint8_t* query, __gm__ uint8_t* key_cache, __gm__ uint8_t* value_cache,
    __gm__ int32_t* block_table, __gm__ int32_t* seq_lens, __gm__ uint8_t* out, __gm__ float* lse,
    __gm__ uint8_t* workspace, pa_hp::npu::DecodePlan plan);
