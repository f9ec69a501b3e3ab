// Scalar state and synchronisation builtins.
#include "build_op.h"

namespace sim {
namespace {

Pipe to_pipe(int number, const char* name, Site site) {
  switch (number) {  // pipe_t in cce.h
    case 0:
      return kS;
    case 1:
      return kV;
    case 2:
      return kM;
    case 3:
      return kMte1;
    case 4:
      return kMte2;
    case 5:
      return kMte3;
    case 10:
      return kFix;
  }
  g_launch->fail(std::string(name) + " at " + site_text(site) + ": pipe " + std::to_string(number) +
                 " is not one of dav-c220");
}

// Pipes between which flags exist. Ascend C, intra-core synchronisation of architecture 2201: cube
// cores M, MTE1, MTE2, MTE3, FIX in all combinations and no scalar pipe; vector cores S, V, MTE2,
// MTE3.
bool has_pipe(bool cube, Pipe pipe) {
  return cube ? pipe != kS && pipe != kV
              : pipe == kS || pipe == kV || pipe == kMte2 || pipe == kMte3;
}

Op flag_op(const char* name, Kind kind, Pipe from, Pipe to, int64_t id, Site site) {
  const Core& core = g_launch->current();
  if (!has_pipe(core.cube, from) || !has_pipe(core.cube, to) || from == to) {
    g_launch->find("no such pipe pair", std::string(name) + " at " + site_text(site) + ": a " +
                                            (core.cube ? "cube" : "vector") + " core has no flag " +
                                            kPipeNames[from] + "->" + kPipeNames[to]);
  }
  if (id < 0 || id > 7) {
    g_launch->find("argument out of range", std::string(name) + " at " + site_text(site) +
                                                ": event id is " + std::to_string(id) +
                                                ", the hardware has 0 to 7");
  }
  Op op = make_op(name, kind == Kind::kSetFlag ? from : to, site);
  op.kind = kind;
  op.other = kind == Kind::kSetFlag ? to : from;
  op.id = static_cast<uint8_t>(id & 7);
  return op;
}

}  // namespace

int64_t block_index() { return g_launch->current().cluster; }
int64_t num_blocks() { return g_launch->options().block_dim; }
int64_t subblock_index() { return g_launch->current().sub; }

uint64_t& tiling_key() { return g_launch->current().tiling_key; }

void set_vector_mask(uint64_t high, uint64_t low) {
  Core& core = g_launch->current();
  core.mask[0] = low;
  core.mask[1] = high;
}

void set_counted(bool counted) { g_launch->current().counted = counted; }

void set_register(Register which, uint64_t value) { g_launch->current().registers[which] = value; }

void not_modelled(const char* builtin, Site site) {
  g_launch->fail(std::string(builtin) + " at " + site_text(site) + " is not modelled");
}

void set_flag(int from, int to, int64_t id, Site site) {
  g_launch->issue(flag_op("set_flag", Kind::kSetFlag, to_pipe(from, "set_flag", site),
                          to_pipe(to, "set_flag", site), id, site));
}

void wait_flag(int from, int to, int64_t id, Site site) {
  g_launch->issue(flag_op("wait_flag", Kind::kWaitFlag, to_pipe(from, "wait_flag", site),
                          to_pipe(to, "wait_flag", site), id, site));
}

void pipe_barrier(int pipe, Site site) {
  constexpr int kAll = 6;  // PIPE_ALL
  Op op = make_op("pipe_barrier", pipe == kAll ? kS : to_pipe(pipe, "pipe_barrier", site), site);
  op.kind = Kind::kBarrier;
  op.all_pipes = pipe == kAll;
  if (!op.all_pipes && op.pipe == kS) {
    g_launch->find("no such pipe pair",
                   "pipe_barrier at " + site_text(site) + ": there is no barrier of PIPE_S");
  }
  g_launch->issue(op);
}

void cross_core_sync(int pipe, uint64_t config, Site site) {
  // 1 | mode << 4 | flag id << 8 (Ascend C, kernel_operator_sync_impl.h).
  Op op = make_op("ffts_cross_core_sync", to_pipe(pipe, "ffts_cross_core_sync", site), site);
  op.kind = Kind::kSignal;
  op.mode = config >> 4 & 3;
  op.id = config >> 8 & 15;
  if ((config & ~0xf30ull) != 1 || op.mode == 3 || op.pipe == kS) {
    std::ostringstream text;
    text << "ffts_cross_core_sync at " << site_text(site) << ": configuration 0x" << std::hex
         << config << " on pipe " << kPipeNames[op.pipe] << " means nothing";
    g_launch->find("argument out of range", text.str());
  }
  g_launch->issue(op);
}

void wait_flag_dev(int64_t id, Site site) {
  if (id < 0 || id > 15) {
    g_launch->find("argument out of range", "wait_flag_dev at " + site_text(site) +
                                                ": flag id is " + std::to_string(id) +
                                                ", the hardware has 0 to 15");
  }
  g_launch->wait_flag_dev(static_cast<int>(id & 15), site);
}

void data_sync_barrier(int kind, Site site) {
  constexpr int kAll = 0, kDdr = 1;  // DSB_ALL, DSB_DDR
  if (kind == kAll || kind == kDdr) g_launch->fence(site);
}

}  // namespace sim
