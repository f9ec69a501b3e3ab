// The device's work partition on the host, for tests of the one in numpy.
#include "../../kernels/npu/schedule.h"

// Every tile of every cluster as a row of 14 int64: the cluster, then the fields of Tile, then
// whether parts are merged together. Fills
// what there is room for; returns the number of tiles.
extern "C" int64_t schedule_tiles(const pa_hp::npu::DecodePlan* plan, const int32_t* seq_lens,
                                  int64_t clusters, int64_t* rows, int64_t room) {
  int64_t count = 0;
  for (int64_t cluster = 0; cluster < clusters; ++cluster) {
    pa_hp::npu::Schedule schedule(*plan, seq_lens, cluster, clusters);
    for (pa_hp::npu::Tile tile; schedule.next(tile); ++count) {
      if (count >= room) continue;
      const int64_t row[] = {cluster,           tile.seq,
                             tile.head_group,   tile.begin,
                             tile.end,          tile.first,
                             tile.last,         tile.behind,
                             tile.piece_begin,  tile.piece_end,
                             tile.length,       tile.first_cluster,
                             tile.last_cluster, schedule.merge_together()};
      for (int i = 0; i < 14; ++i) rows[14 * count + i] = row[i];
    }
  }
  return count;
}
