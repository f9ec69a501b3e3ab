// Data movement.
#include <cstring>

#include "build_op.h"

namespace sim {
namespace {

struct Route {
  Pipe pipe;
  Mem from;
  Mem to;
};

Route route(Path path) {
  switch (path) {
    case Path::kGmToUb: return {kMte2, kGm, kUb};
    case Path::kUbToGm: return {kMte3, kUb, kGm};
    case Path::kUbToUb: return {kV, kUb, kUb};
    case Path::kGmToL1: return {kMte2, kGm, kL1};
    case Path::kL1ToGm: return {kMte3, kL1, kGm};
  }
  return {};
}

// Access 0 is the source, access 1 the destination, of as many stretches of the same length.
void copy_stretches(Core& core, const Op& op) {
  const Access& from = op.access[0];
  const Access& to = op.access[1];
  const uint8_t* source = place<uint8_t>(core, from);
  uint8_t* target = place<uint8_t>(core, to);
  for (uint32_t i = 0; i < from.inner; ++i) {
    std::memmove(target + i * to.inner_stride, source + i * from.inner_stride, from.bytes);
  }
}

}  // namespace

void copy_blocks(const char* name, Path path, uint64_t dst, uint64_t src, F16 bursts, F16 length,
                 F16 src_gap, F16 dst_gap, Site site) {
  const Route way = route(path);
  Op op = make_op(name, way.pipe, site);
  const int64_t count = take(op, "nBurst", bursts);
  at_most(op, "nBurst", count, 4095);
  const int64_t bytes = take(op, "lenBurst", length) * kBlock;
  if (count == 0 || bytes == 0) return;
  if (way.from != kGm) aligned(op, way.from, src, kBlock);
  if (way.to != kGm) aligned(op, way.to, dst, kBlock);
  Access& from = op.add(way.from, false, src, bytes);
  from.inner = count;
  from.inner_stride = bytes + take(op, "srcGap", src_gap) * kBlock;
  Access& to = op.add(way.to, true, dst, bytes);
  to.inner = count;
  to.inner_stride = bytes + take(op, "dstGap", dst_gap) * kBlock;
  op.execute = copy_stretches;
  g_launch->issue(op);
}

}  // namespace sim
