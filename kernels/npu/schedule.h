// Who works on what. All (sequence, head group, token) lie on one line in that order; before its
// tokens an item (one sequence and head group) has a stretch for what it costs beyond them. Every
// cluster takes an equal share of the line, cut wherever that falls. Cube cores, vector cores and
// tests use this file; tiling/partition.py is the same in numpy.
#pragma once

#include "plan.h"

namespace pa_hp::npu {

// Tokens [begin, end) of an item, at most tile_tokens of them. A piece is what one cluster has of
// an item.
struct Tile {
  int32_t seq;
  int32_t head_group;
  int32_t begin;
  int32_t end;
  int32_t load_tokens;  // of a load at most
  bool first;           // of its piece
  bool last;
  int64_t behind;  // places that the share goes on for behind the piece; 0: no tokens are there
  int32_t piece_begin;
  int32_t piece_end;
  int32_t length;         // of the sequence
  int32_t first_cluster;  // the clusters that the item's pieces are in
  int32_t last_cluster;

  // Whether the piece is all of its item.
  __aicore__ bool whole() const { return piece_begin == 0 && piece_end == length; }
};

// From `token` on to the end of `most` tokens counted from the last multiple of `grain`, or to
// `end`. Lengths may come near the largest int32: nothing here goes beyond `end`.
inline __aicore__ int32_t step_end(int32_t token, int32_t most, int32_t end, int32_t grain) {
  const int32_t from = token / grain * grain;
  return end - from > most ? from + most : end;
}

// The first of as few parts of `tokens` tokens as may be, with `most` each, a multiple of kFractal.
// They are all but equal: a short one would be over before it has hidden anything.
inline __aicore__ int32_t even_part(int32_t tokens, int32_t most) {
  if (tokens <= most) return tokens;
  const int32_t parts = (tokens - 1) / most + 1;
  return round_up((tokens - 1) / parts + 1, kFractal);
}

class Schedule {
 public:
  __aicore__ Schedule(const DecodePlan& plan, const __gm__ int32_t* seq_lens, int64_t cluster,
                      int64_t clusters)
      : seq_lens_(seq_lens),
        batch_(plan.batch),
        capacity_(static_cast<int64_t>(plan.max_blocks) * plan.block_size),
        head_groups_(plan.head_groups),
        item_cost_(plan.item_cost),
        item_floor_(plan.item_floor),
        chunk_tokens_(plan.chunk_tokens),
        tile_tokens_(plan.tile_tokens),
        half_rows_(ceil_div(plan.rows, 2)),
        clusters_(1) {
    for (int32_t seq = 0; seq < batch_; ++seq) {
      const int32_t length = this->length(seq);
      // The first item's cost is left out: nearly every share begins inside an item, at no cost.
      if (total_ == 0) item_start_ = total_ = length - extent(length);
      total_ += head_groups_ * extent(length);
      if (longest_ < extent(length)) longest_ = extent(length);
    }
    // No share is empty between two others, or so short that it is not worth its signals.
    if (total_ > kMinShare) clusters_ = total_ / kMinShare;
    if (clusters_ > clusters) clusters_ = clusters;
    if (cluster >= clusters_ || total_ == 0) return;
    at_ = total_ * cluster / clusters_;
    end_ = total_ * (cluster + 1) / clusters_;
    while (at_ < end_) {  // to the item that the share begins in
      const int64_t item = extent(length(seq_));
      if (at_ < item_start_ + head_groups_ * item) {
        head_group_ = static_cast<int32_t>((at_ - item_start_) / item);
        item_start_ += head_group_ * item;
        break;
      }
      item_start_ += head_groups_ * item;
      ++seq_;
    }
    // Two tiles where there are loads enough, so that one core's work hides the other's. A share
    // that ends just behind the item is as one that lies in it.
    const int64_t share = end_ - at_;
    int32_t parts = 2;
    if (end_ > item_start_ + extent(length(seq_)) + kLastLoad) {
      parts = kParts;
      while ((chunk_tokens_ > kShortLoad || chunk_tokens_ * plan.tile_heads > 2 * kShortLoad) &&
             chunk_tokens_ % (2 * kFractal) == 0 && share / kParts < chunk_tokens_) {
        chunk_tokens_ /= 2;
      }
    }
    const int64_t part = share / parts / chunk_tokens_ * chunk_tokens_ + chunk_tokens_;
    if (tile_tokens_ > part) tile_tokens_ = static_cast<int32_t>(part);
  }

  // The next tile of the share. False: there is none.
  __aicore__ bool next(Tile& tile) {
    while (token_ == piece_end_) {
      if (at_ >= end_) return false;
      next_piece();
    }
    tile.seq = piece_seq_;
    tile.head_group = piece_head_group_;
    tile.begin = token_;
    // A long piece's tiles end where a page does. P has columns of kFractal tokens from a tile's
    // first on; so have loads.
    const int32_t rest = piece_end_ - token_;
    tile.end = (rest - 1) / kEvenTiles < tile_tokens_
                   ? token_ + even_part(rest, tile_tokens_)
                   : step_end(token_, tile_tokens_, piece_end_, chunk_tokens_);
    tile.load_tokens = chunk_tokens_;
    tile.first = token_ == piece_begin_;
    tile.last = tile.end == piece_end_;
    tile.behind = behind_;
    tile.piece_begin = piece_begin_;
    tile.piece_end = piece_end_;
    tile.length = piece_length_;
    tile.first_cluster = cluster_of(piece_stop_ - piece_length_);
    tile.last_cluster = cluster_of(piece_stop_ - 1);
    token_ = tile.end;
    return true;
  }

  // Whether items are in so many clusters that these merge the parts together, each some rows.
  __aicore__ bool merge_together() const {
    return total_ > 0 && longest_ * clusters_ / total_ * half_rows_ > kMergeAlone;
  }

  // Tokens of a sequence; 0 where seq_lens holds a value out of range.
  __aicore__ int32_t length(int32_t seq) const {
    const int32_t length = seq_lens_[seq];
    return length >= 0 && length <= capacity_ ? length : 0;
  }

 private:
  // The line's stretch of one item; its tokens are the end of it. A short one takes the time of its
  // small instructions, which hide its loads.
  __aicore__ int64_t extent(int32_t length) const {
    if (length == 0) return 0;
    const int64_t work = int64_t{item_cost_} + length;
    return work > item_floor_ ? work : item_floor_;
  }
  __aicore__ int32_t cluster_of(int64_t place) const {
    return static_cast<int32_t>(((place + 1) * clusters_ - 1) / total_);
  }
  // Takes what the share has of the current item, and goes on to the next item.
  __aicore__ void next_piece() {
    const int32_t length = this->length(seq_);
    const int64_t item = extent(length);
    const int64_t tokens_at = item_start_ + item - length;
    const int64_t stop = end_ < item_start_ + item ? end_ : item_start_ + item;
    const int64_t from = at_ > tokens_at ? at_ - tokens_at : 0;
    const int64_t to = stop > tokens_at ? stop - tokens_at : 0;
    piece_seq_ = seq_;
    piece_head_group_ = head_group_;
    piece_stop_ = item_start_ + item;
    piece_length_ = length;
    token_ = piece_begin_ = static_cast<int32_t>(from);
    piece_end_ = static_cast<int32_t>(to);
    if (at_ < stop) at_ = stop;
    if (at_ == item_start_ + item) {
      item_start_ += item;
      if (++head_group_ == head_groups_) {
        head_group_ = 0;
        ++seq_;
      }
    }
    while (at_ < end_ && this->length(seq_) == 0) ++seq_;
    const int32_t following = at_ < end_ ? this->length(seq_) : 0;
    const int64_t rest = end_ - at_ - (extent(following) - following);
    behind_ = rest > 0 ? rest : 0;
  }

  const __gm__ int32_t* seq_lens_;
  int32_t batch_;
  int64_t capacity_;
  int32_t head_groups_;
  int32_t item_cost_;
  int32_t item_floor_;
  int32_t chunk_tokens_;
  int32_t tile_tokens_;
  int32_t half_rows_;  // of a vector core
  int64_t clusters_;
  int64_t total_ = 0;
  int64_t longest_ = 0;  // item
  int64_t at_ = 0;       // the rest of the share
  int64_t end_ = 0;
  int32_t seq_ = 0;  // the item that at_ is in, and where it starts
  int32_t head_group_ = 0;
  int64_t item_start_ = 0;
  int32_t piece_seq_ = 0;
  int32_t piece_head_group_ = 0;
  int64_t piece_stop_ = 0;  // of the whole item
  int32_t piece_length_ = 0;
  int32_t piece_begin_ = 0;
  int32_t piece_end_ = 0;
  int64_t behind_ = 0;
  int32_t token_ = 0;
};

}  // namespace pa_hp::npu
