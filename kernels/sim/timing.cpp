// Discrete-event replay of a launch.
//
// Per core, the scalar unit issues the records in program order; each pipe takes its own from an
// in-order queue (of unbounded depth). An operation starts when the one before it in its pipe has
// ended: the overlap of one operation's tail with the next one's head is not modelled, except that
// the latency of GM delays what waits for a transfer and not the next transfer. Everything local to
// a core follows from times already known and is worked off at once; only GM traffic meets other
// cores, and is taken chunk by chunk in the order of time, through first-come-first-served servers
// for the L2 and for HBM.
#include "timing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <queue>
#include <sstream>
#include <unordered_map>

namespace sim {

// Entries of chips.json, where each has its unit and source.
// clang-format off
#define PA_SIM_PARAMETERS(X) \
  X(cube_cores) X(vector_cores) X(clock) X(hbm) \
  X(l2) X(l2_size) X(gm_to_l1_hbm) X(gm_to_l1_l2) \
  X(nd2nz) X(gm_to_ub_hbm) X(gm_to_ub_l2) X(ub_to_gm) \
  X(l1_to_gm) X(l0c_to_gm) X(l2_write) X(l2_hit_latency) \
  X(l2_miss_latency) X(l2_line) X(burst_unit) X(chunk) \
  X(issue) X(sync_issue) X(sync) X(signal)
// clang-format on

#define PA_SIM_NAME(name) #name,
const std::vector<const char*> kParameters{PA_SIM_PARAMETERS(PA_SIM_NAME)};

namespace {

#define PA_SIM_MEMBER(name) double name;
struct Chip {
  PA_SIM_PARAMETERS(PA_SIM_MEMBER)
};

constexpr uint32_t kNone = ~0u;
constexpr double kUnknown = -1;

// ---- L2 ---------------------------------------------------------------------------------------

// A write-back cache of whole lines, fully associative, least recently used line out first.
// Addresses are taken relative to their tensor, as if every tensor began on a line: results do not
// depend on where the host put them.
class Cache {
 public:
  Cache(const std::vector<Region>& regions, uint64_t line, uint64_t capacity)
      : line_(line), capacity_(std::max<uint64_t>(1, capacity / line)) {
    uint64_t lines = 0;
    for (const Region& region : regions) {  // sorted by begin; views of one tensor overlap
      if (!spans_.empty() && region.begin < spans_.back().end) {
        Span& last = spans_.back();
        last.end = std::max(last.end, region.end);
      } else {
        spans_.push_back({region.begin, region.end, 0});
      }
    }
    for (Span& span : spans_) {
      span.first = static_cast<uint32_t>(lines);
      lines += (span.end - span.begin + line - 1) / line;
    }
    lines_.resize(lines + 1);  // the last one is the list's head
    head_ = static_cast<uint32_t>(lines);
    lines_[head_] = {head_, head_, 0, false, false};
  }

  // Offset of a GM address in its tensor, and the tensor's first line.
  std::pair<uint64_t, uint32_t> locate(uint64_t address) {
    if (address - spans_[last_].begin >= spans_[last_].end - spans_[last_].begin) {
      const auto after = std::upper_bound(spans_.begin(), spans_.end(), address,
                                          [](uint64_t a, const Span& s) { return a < s.begin; });
      last_ = after == spans_.begin() ? 0 : after - spans_.begin() - 1;
    }
    return {address - spans_[last_].begin, spans_[last_].first};
  }

  enum Found { kHit, kFilling, kMiss };

  // kFilling: transfer number `transfer` itself has brought the line in. A line that falls out
  // dirty counts in write_backs.
  Found touch(uint32_t index, bool write, uint32_t transfer) {
    Line& line = lines_[index];
    Found found = kMiss;
    if (line.present) {
      found = line.filled_by == transfer ? kFilling : kHit;
      if (lines_[head_].next != index) {
        unlink(index);
        push_front(index);
      }
    } else {
      if (count_ == capacity_) {
        const uint32_t oldest = lines_[head_].previous;
        unlink(oldest);
        lines_[oldest].present = false;
        write_backs += lines_[oldest].dirty;
        lines_[oldest].dirty = false;
      } else {
        ++count_;
      }
      line.present = true;
      line.filled_by = transfer;
      push_front(index);
    }
    line.dirty |= write;
    return found;
  }

  uint64_t write_backs = 0;
  uint32_t transfers = 0;  // so far

 private:
  struct Span {
    uint64_t begin, end;
    uint32_t first;
  };
  struct Line {
    uint32_t previous, next, filled_by;
    bool present, dirty;
  };

  void unlink(uint32_t index) {
    lines_[lines_[index].previous].next = lines_[index].next;
    lines_[lines_[index].next].previous = lines_[index].previous;
  }
  void push_front(uint32_t index) {
    const uint32_t next = lines_[head_].next;
    lines_[index].previous = head_;
    lines_[index].next = next;
    lines_[next].previous = index;
    lines_[head_].next = index;
  }

  uint64_t line_;
  uint64_t capacity_;
  uint64_t count_ = 0;
  std::vector<Span> spans_;
  std::vector<Line> lines_;
  uint32_t head_ = 0;
  size_t last_ = 0;
};

struct Bytes {
  double gm_read = 0, gm_write = 0;  // what the operations asked for
  double l2_read = 0, l2_write = 0;  // with bursts rounded up to the burst unit
  double hbm_read = 0, hbm_write = 0;
};

// ---- State ------------------------------------------------------------------------------------

// Why a pipe is not at work. kFlag + pipe, kCounter + id.
enum Stall : uint8_t {
  kIssue,
  kBarrierStall,
  kDrain,
  kBandwidth,
  kFlag,
  kCounter = kFlag + kPipes,
  kWave = kCounter + 16,
  kFinished,
  kStalls
};

std::string stall_text(int stall) {
  if (stall >= kCounter && stall < kWave) {
    return "cross-core counter " + std::to_string(stall - kCounter);
  }
  if (stall >= kFlag && stall < kCounter)
    return std::string("flag from ") + kPipeNames[stall - kFlag];
  switch (stall) {
    case kIssue:
      return "issue";
    case kBarrierStall:
      return "barrier";
    case kDrain:
      return "barrier of all pipes";
    case kBandwidth:
      return "bandwidth";
    case kWave:
      return "earlier blocks";
    default:
      return "finished";
  }
}

struct Transfer {
  uint32_t number = 0;
  const Access* access = nullptr;
  uint64_t stretch = 0;  // next one, and how far into it
  uint32_t offset = 0;
  double hit_rate = 0, miss_rate = 0;
  bool missed = false;
};

// Who made an operation start when it did: a record, by issue the scalar unit, or nobody.
enum class Cause : uint8_t { kStart, kIssue, kRecord, kSignal };

struct Pipeline {
  std::vector<uint32_t> queue;  // records, in issue order
  size_t next = 0;
  size_t issued = 0;
  double free = 0;  // end of its latest operation; `done` with its latency
  double done = 0;
  uint32_t free_by = kNone;
  uint32_t done_by = kNone;
  bool transferring = false;
  Transfer transfer;
  size_t block = 0;  // first of the scalar unit's waits that may explain a gap
  double busy = 0;
  std::array<double, kStalls> stall{};
  bool idle() const { return next == issued && !transferring; }
};

struct Wait {  // of the scalar unit
  double begin, end;
  Stall why;
};

struct CoreState {
  std::array<Pipeline, kPipes> pipe;  // pipe[kS] keeps the scalar unit's shares only
  size_t pc = 0;
  double now = 0;
  double begin = 0;
  double end = kUnknown;
  uint32_t last_block = kNone;
  std::vector<Wait> waits;
  bool draining = false;
};

class Replay {
 public:
  Replay(Launch& launch, const Chip& chip, Cache& cache);
  bool run();  // false if cores are left waiting
  Timing result();

 private:
  uint32_t id(int core, uint32_t record) const { return first_[core] + record; }
  void wake(int proc) { ready_.push_back(proc); }
  // `fires`: the end as others see it; later than `end` for a flag that a transfer's latency holds
  // back.
  void complete(uint32_t record, double start, double end, double fires) {
    start_[record] = start;
    end_[record] = end;
    fires_[record] = fires;
    for (int proc = waiter_[record]; proc >= 0;) {
      const int next = next_waiter_[proc];
      waits_on_[proc] = kNone;
      wake(proc);
      proc = next;
    }
    waiter_[record] = -1;
  }
  void await(uint32_t record, int proc) {
    if (waits_on_[proc] == record) return;  // woken for another reason meanwhile
    waits_on_[proc] = record;
    next_waiter_[proc] = waiter_[record];
    waiter_[record] = proc;
  }
  void run_scalar(int core);
  void run_pipe(int core, Pipe pipe);
  bool scalar_step(int core, uint32_t index, const Record& record);
  void gap(CoreState& state, Pipeline& pipe, double until);
  void start_transfer(int proc, const Record& record, double at);
  void chunk(double at, int proc);
  void finish_core(int core);
  void label_records();
  std::string path_json(double total);

  Launch& launch_;
  const Chip& chip_;
  Cache& cache_;
  double hbm_rate_, l2_rate_;  // B/cycle of the chip
  double hbm_free_ = 0, l2_free_ = 0;
  int clusters_at_once_ = 0;
  int cores_per_cluster_ = 1;
  Bytes bytes_;
  std::vector<uint32_t> first_;
  std::vector<CoreState> cores_;
  std::vector<double> issue_, start_, end_, fires_, ready_at_;
  std::vector<uint32_t> because_, last_block_, waits_on_;
  std::vector<Cause> cause_;
  std::vector<int> waiter_, next_waiter_;
  std::vector<int> ready_;
  std::priority_queue<std::pair<double, int>, std::vector<std::pair<double, int>>,
                      std::greater<std::pair<double, int>>>
      events_;
  std::vector<int32_t> label_;
  struct Label {
    const char* name;
    std::string site;
  };
  std::vector<Label> labels_;
};

Replay::Replay(Launch& launch, const Chip& chip, Cache& cache)
    : launch_(launch),
      chip_(chip),
      cache_(cache),
      hbm_rate_(chip.hbm * 1e3 / chip.clock),
      l2_rate_(chip.l2 * 1e3 / chip.clock) {
  auto& cores = launch.cores();
  cores_.resize(cores.size());
  uint32_t total = 0;
  for (const auto& core : cores) {
    first_.push_back(total);
    CoreState& state = cores_[core->index];
    for (uint32_t i = 0; i < core->records.size(); ++i) {
      const Record& record = core->records[i];
      if (!record.blocks_scalar) state.pipe[record.pipe].queue.push_back(i);
    }
    total += static_cast<uint32_t>(core->records.size());
  }
  first_.push_back(total);
  cores_per_cluster_ = static_cast<int>(cores.size()) / launch.options().block_dim;
  const bool vector_only = cores_per_cluster_ == 1 && !cores[0]->cube;
  clusters_at_once_ = static_cast<int>(vector_only ? chip.vector_cores : chip.cube_cores);
  issue_.assign(total, kUnknown);
  start_.assign(total, kUnknown);
  end_.assign(total, kUnknown);
  fires_.assign(total, kUnknown);
  ready_at_.assign(total, 0);
  because_.assign(total, kNone);
  last_block_.assign(total, kNone);
  cause_.assign(total, Cause::kStart);
  waiter_.assign(total, -1);
  next_waiter_.assign(cores.size() * kPipes, -1);
  waits_on_.assign(cores.size() * kPipes, kNone);
}

bool Replay::run() {
  // More blocks than the chip holds: each later one starts when the one that many before it has
  // ended (assumed; the hardware's dispatch order is not documented).
  for (size_t core = 0; core < cores_.size(); ++core) {
    if (static_cast<int>(core) < clusters_at_once_ * cores_per_cluster_) {
      wake(static_cast<int>(core) * kPipes);
    }
  }
  for (;;) {
    while (!ready_.empty()) {
      const int proc = ready_.back();
      ready_.pop_back();
      if (proc % kPipes == kS) {
        run_scalar(proc / kPipes);
      } else {
        run_pipe(proc / kPipes, static_cast<Pipe>(proc % kPipes));
      }
    }
    if (events_.empty()) break;
    const auto [at, proc] = events_.top();
    events_.pop();
    chunk(at, proc);
  }
  return std::all_of(cores_.begin(), cores_.end(), [](const CoreState& c) { return c.end >= 0; });
}

// ---- Scalar unit ------------------------------------------------------------------------------

void Replay::run_scalar(int core) {
  CoreState& state = cores_[core];
  const auto& records = launch_.cores()[core]->records;
  std::array<bool, kPipes> more{};
  while (state.pc < records.size()) {
    const uint32_t index = id(core, static_cast<uint32_t>(state.pc));
    const Record& record = records[state.pc];
    if (issue_[index] < 0) {
      const double cost = record.kind == Kind::kWork ? chip_.issue : chip_.sync_issue;
      state.now += cost;
      state.pipe[kS].busy += cost;
      issue_[index] = state.now;
      last_block_[index] = state.last_block;
    }
    if (record.blocks_scalar) {
      // Wake the pipes first: a drain needs them to have run.
      for (int p = kV; p < kPipes; ++p) {
        if (more[p]) wake(core * kPipes + p);
        more[p] = false;
      }
      if (!scalar_step(core, index, record)) return;
      state.last_block = index;
    } else {
      ++state.pipe[record.pipe].issued;
      more[record.pipe] = true;
    }
    ++state.pc;
  }
  for (int p = kV; p < kPipes; ++p) {
    if (more[p]) wake(core * kPipes + p);
  }
  finish_core(core);
}

// A record that the scalar unit itself carries out. False: it has to wait.
bool Replay::scalar_step(int core, uint32_t index, const Record& record) {
  CoreState& state = cores_[core];
  const int proc = core * kPipes;
  const double begin = state.now;
  double until = begin;
  Stall why = kIssue;
  cause_[index] = Cause::kIssue;
  if (record.all_pipes) {
    state.draining = true;
    for (int p = kV; p < kPipes; ++p) {
      if (!state.pipe[p].idle()) return false;  // it wakes us when it is
    }
    state.draining = false;
    why = kDrain;
    for (int p = kV; p < kPipes; ++p) {
      if (state.pipe[p].done <= until) continue;
      until = state.pipe[p].done;
      cause_[index] = Cause::kRecord;
      because_[index] = state.pipe[p].done_by;
    }
  } else if (record.kind == Kind::kWaitFlag) {
    const bool cross = std::strcmp(record.name, "wait_flag_dev") == 0;
    why = static_cast<Stall>(cross ? kCounter + record.id : kFlag + record.other);
    for (const auto& [from_core, from_record] : record.after) {
      const uint32_t from = id(from_core, from_record);
      if (fires_[from] < 0) {
        await(from, proc);
        return false;
      }
      const double arrives = fires_[from] + (cross ? chip_.signal : 0);
      if (arrives <= until) continue;
      until = arrives;
      cause_[index] = cross ? Cause::kSignal : Cause::kRecord;
      because_[index] = from;
    }
  }
  ready_at_[index] = until;
  if (until > begin) {
    state.waits.push_back({begin, until, why});
    state.pipe[kS].stall[why] += until - begin;
  }
  state.now = until;
  complete(index, begin, until, until);
  return true;
}

// A core whose scalar unit has come to its end and whose pipes are empty.
void Replay::finish_core(int core) {
  CoreState& state = cores_[core];
  if (state.end >= 0 || state.pc < launch_.cores()[core]->records.size()) return;
  double end = state.now;
  for (int p = kV; p < kPipes; ++p) {
    if (state.pipe[p].next < state.pipe[p].queue.size() || state.pipe[p].transferring) return;
    end = std::max(end, state.pipe[p].done);
  }
  state.end = end;
  const size_t follower = core + static_cast<size_t>(clusters_at_once_) * cores_per_cluster_;
  if (follower >= cores_.size()) return;
  CoreState& next = cores_[follower];
  next.begin = next.now = end;
  for (Pipeline& pipe : next.pipe) pipe.free = pipe.done = end;
  wake(static_cast<int>(follower) * kPipes);
}

// ---- Pipes ------------------------------------------------------------------------------------

// Books the time from the pipe's last operation to `until`, when it was given its next: as the
// scalar unit's waits in that time, and the rest as issue.
void Replay::gap(CoreState& state, Pipeline& pipe, double until) {
  double from = pipe.free;
  if (until <= from) return;
  double rest = until - from;
  while (pipe.block < state.waits.size()) {
    const Wait& wait = state.waits[pipe.block];
    if (wait.begin >= until) break;
    const double overlap = std::min(wait.end, until) - std::max(wait.begin, from);
    if (overlap > 0) {
      pipe.stall[wait.why] += overlap;
      rest -= overlap;
    }
    if (wait.end > until) break;
    ++pipe.block;
  }
  pipe.stall[kIssue] += rest;
}

void Replay::run_pipe(int core, Pipe which) {
  CoreState& state = cores_[core];
  Pipeline& pipe = state.pipe[which];
  const auto& records = launch_.cores()[core]->records;
  const int proc = core * kPipes + which;
  while (!pipe.transferring && pipe.next < pipe.issued) {
    const uint32_t local = pipe.queue[pipe.next];
    const uint32_t index = id(core, local);
    const Record& record = records[local];
    const double issued = issue_[index];
    const double start = std::max(pipe.free, issued);
    double end = start;
    cause_[index] = pipe.free > issued && pipe.free_by != kNone ? Cause::kRecord : Cause::kIssue;
    because_[index] = pipe.free_by;
    ready_at_[index] = start;
    Stall why = kIssue;
    if (record.kind == Kind::kWaitFlag) {
      why = static_cast<Stall>(kFlag + record.other);
      for (const auto& [from_core, from_record] : record.after) {
        const uint32_t from = id(from_core, from_record);
        if (fires_[from] < 0) {
          await(from, proc);
          return;
        }
        if (fires_[from] <= end) continue;
        end = fires_[from];
        cause_[index] = Cause::kRecord;
        because_[index] = from;
      }
    } else if (record.kind != Kind::kWork) {
      // A flag or signal leaves, and a barrier lets go, when all earlier operations are done. The
      // pipe stands at a barrier; past a flag or signal it goes on.
      why = kBarrierStall;
      if (pipe.done > end) {
        end = pipe.done;
        cause_[index] = Cause::kRecord;
        because_[index] = pipe.done_by;
      }
    }
    gap(state, pipe, issued);
    ++pipe.next;
    if (record.kind == Kind::kWork) {
      if (record.gm.mem == kGm && record.gm.bytes != 0) {
        start_[index] = start;
        start_transfer(proc, record, start);
        return;
      }
      end = start + record.cycles;
      pipe.busy += record.cycles;
      if (end >= pipe.done) {
        pipe.done = end;
        pipe.done_by = index;
      }
    } else {
      ready_at_[index] = end;
      pipe.busy += chip_.sync;
      end += chip_.sync;
      pipe.done = std::max(pipe.done, end);
      pipe.done_by = pipe.done == end ? index : pipe.done_by;
      if (record.kind == Kind::kSetFlag || record.kind == Kind::kSignal) {
        pipe.free = start + chip_.sync;
        if (issued >= start) pipe.free_by = kNone;  // not held up by the operation before
        complete(index, start, pipe.free, end);
        continue;
      }
      pipe.stall[why] += end - chip_.sync - start;
    }
    pipe.free = end;
    pipe.free_by = index;
    complete(index, start, end, end);
  }
  if (pipe.transferring) return;
  if (state.draining) wake(core * kPipes);
  finish_core(core);
}

// ---- GM ---------------------------------------------------------------------------------------

void Replay::start_transfer(int proc, const Record& record, double at) {
  Pipeline& pipe = cores_[proc / kPipes].pipe[proc % kPipes];
  const bool cube = launch_.cores()[proc / kPipes]->cube;
  pipe.transferring = true;
  pipe.transfer = {};
  Transfer& transfer = pipe.transfer;
  transfer.number = ++cache_.transfers;
  transfer.access = &record.gm;
  const double fixed = record.cycles;  // of a series of records for one operation, in the first
  if (record.gm.write) {
    double rate = record.pipe == kFix ? chip_.l0c_to_gm : cube ? chip_.l1_to_gm : chip_.ub_to_gm;
    rate = std::min(rate, chip_.l2_write);
    transfer.hit_rate = transfer.miss_rate = rate;
  } else {
    transfer.hit_rate = cube ? chip_.gm_to_l1_l2 : chip_.gm_to_ub_l2;
    transfer.miss_rate = cube ? chip_.gm_to_l1_hbm : chip_.gm_to_ub_hbm;
    if (std::strstr(record.name, "nd2nz")) {
      transfer.hit_rate = std::min(transfer.hit_rate, chip_.nd2nz);
      transfer.miss_rate = std::min(transfer.miss_rate, chip_.nd2nz);
    }
  }
  pipe.busy += fixed;
  events_.push({at + fixed, proc});
}

// Takes the next chunk of a pipe's transfer through the L2 and, where that misses, HBM. Time in the
// core counts bursts rounded up to whole burst units; HBM is read by whole lines. Stores end in the
// L2; lines that they or loads push out are written to HBM without holding up anybody but the later
// users of HBM.
void Replay::chunk(double at, int proc) {
  Pipeline& pipe = cores_[proc / kPipes].pipe[proc % kPipes];
  Transfer& transfer = pipe.transfer;
  const Access& a = *transfer.access;
  const uint64_t stretches = static_cast<uint64_t>(a.inner) * a.outer;
  const auto line = static_cast<uint64_t>(chip_.l2_line);
  const auto unit = static_cast<uint64_t>(chip_.burst_unit);
  const auto limit = static_cast<uint32_t>(chip_.chunk);
  const uint64_t write_backs = cache_.write_backs;
  uint64_t asked = 0, hit = 0, missed = 0, fetched = 0;
  while (asked < limit && transfer.stretch < stretches) {
    const uint64_t n = transfer.stretch;
    const auto [offset, first_line] = cache_.locate(a.base + n / a.inner * a.outer_stride +
                                                    n % a.inner * a.inner_stride + transfer.offset);
    const auto bytes =
        static_cast<uint32_t>(std::min<uint64_t>(a.bytes - transfer.offset, limit - offset % line));
    for (uint64_t at_byte = offset; at_byte < offset + bytes;) {
      const uint64_t stop = std::min(offset + bytes, (at_byte / line + 1) * line);
      const uint64_t padded = (stop + unit - 1) / unit * unit - at_byte / unit * unit;
      const auto found = cache_.touch(first_line + static_cast<uint32_t>(at_byte / line), a.write,
                                      transfer.number);
      (found == Cache::kHit ? hit : missed) += padded;
      fetched += found == Cache::kMiss;
      at_byte = stop;
    }
    asked += bytes;
    transfer.offset += bytes;
    if (transfer.offset == a.bytes) {
      transfer.offset = 0;
      ++transfer.stretch;
    }
  }
  double from_hbm = 0;
  if (a.write) {
    bytes_.gm_write += static_cast<double>(asked);
    bytes_.l2_write += static_cast<double>(hit + missed);
  } else {
    bytes_.gm_read += static_cast<double>(asked);
    bytes_.l2_read += static_cast<double>(hit + missed);
    from_hbm = static_cast<double>(fetched * line);
    bytes_.hbm_read += from_hbm;
    transfer.missed |= fetched != 0;
  }
  const double own = static_cast<double>(hit) / transfer.hit_rate +
                     static_cast<double>(missed) / transfer.miss_rate;
  double end = at + own;
  l2_free_ = std::max(l2_free_, at) + static_cast<double>(hit + missed) / l2_rate_;
  end = std::max(end, l2_free_);
  if (from_hbm > 0) {
    hbm_free_ = std::max(hbm_free_, at) + from_hbm / hbm_rate_;
    end = std::max(end, hbm_free_);
  }
  const double out = static_cast<double>((cache_.write_backs - write_backs) * line);
  if (out > 0) {
    hbm_free_ = std::max(hbm_free_, at) + out / hbm_rate_;
    bytes_.hbm_write += out;
  }
  pipe.busy += own;
  pipe.stall[kBandwidth] += end - at - own;
  if (transfer.stretch < stretches) {
    events_.push({end, proc});
    return;
  }
  const int core = proc / kPipes;
  const uint32_t index = id(core, pipe.queue[pipe.next - 1]);
  pipe.transferring = false;
  pipe.free = end;
  pipe.free_by = index;
  const double done = end + (transfer.missed ? chip_.l2_miss_latency : chip_.l2_hit_latency);
  if (done >= pipe.done) {
    pipe.done = done;
    pipe.done_by = index;
  }
  complete(index, start_[index], end, end);
  wake(proc);
}

// ---- Result -----------------------------------------------------------------------------------

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

// Numbers the pairs of builtin and site. The pointers differ between the cube and the vector half.
void Replay::label_records() {
  struct Key {
    const char* name;
    const char* file;
    int line;
    bool operator==(const Key& o) const {
      return name == o.name && file == o.file && line == o.line;
    }
  };
  struct Hash {
    size_t operator()(const Key& k) const {
      return reinterpret_cast<size_t>(k.name) * 31 + reinterpret_cast<size_t>(k.file) * 17 +
             static_cast<size_t>(k.line);
    }
  };
  std::unordered_map<Key, int32_t, Hash> by_pointer;
  std::map<std::pair<std::string, std::string>, int32_t> by_text;
  label_.reserve(first_.back());
  for (const auto& core : launch_.cores()) {
    for (const Record& record : core->records) {
      const auto [place, fresh] =
          by_pointer.try_emplace(Key{record.name, record.site.file, record.site.line}, 0);
      if (fresh) {
        const std::string site = record.site.file ? site_text(record.site) : "";
        const auto [text, is_new] =
            by_text.try_emplace({record.name, site}, static_cast<int32_t>(labels_.size()));
        if (is_new) labels_.push_back({record.name, site});
        place->second = text->second;
      }
      label_.push_back(place->second);
    }
  }
}

// Walks back from the end of the last operation through what each one waited for.
std::string Replay::path_json(double total) {
  uint32_t at = kNone;
  for (size_t core = 0; core < cores_.size(); ++core) {
    if (cores_[core].end < total) continue;
    for (int p = kV; p < kPipes; ++p) {
      if (cores_[core].pipe[p].done == total) at = cores_[core].pipe[p].done_by;
    }
    if (at == kNone) at = cores_[core].last_block;
    break;
  }
  constexpr int32_t kIssueLabel = -1, kSignalLabel = -2;
  struct Share {
    double cycles = 0;
    uint64_t count = 0;
  };
  std::map<std::tuple<bool, int, int32_t>, Share> shares;
  const auto add = [&](bool cube, int pipe, int32_t label, double cycles) {
    if (cycles <= 0) return;
    Share& share = shares[{cube, pipe, label}];
    share.cycles += cycles;
    ++share.count;
  };
  double until = total;
  while (at != kNone) {
    const auto core = std::upper_bound(first_.begin(), first_.end(), at) - first_.begin() - 1;
    const Core& place = *launch_.cores()[core];
    add(place.cube, place.records[at - first_[core]].pipe, label_[at], until - ready_at_[at]);
    until = std::min(until, ready_at_[at]);
    switch (cause_[at]) {
      case Cause::kRecord:
        at = because_[at];
        break;
      case Cause::kSignal:
        add(place.cube, kS, kSignalLabel, until - fires_[because_[at]]);
        until = fires_[because_[at]];
        at = because_[at];
        break;
      case Cause::kIssue: {
        const uint32_t block = last_block_[at];
        const double resumed = block == kNone ? cores_[core].begin : end_[block];
        add(place.cube, kS, kIssueLabel, until - resumed);
        until = resumed;
        at = block;
        break;
      }
      case Cause::kStart:
        at = kNone;
        break;
    }
  }
  std::vector<std::pair<std::tuple<bool, int, int32_t>, Share>> sorted(shares.begin(),
                                                                       shares.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second.cycles > b.second.cycles; });
  std::ostringstream out;
  out.precision(17);
  const char* comma = "";
  for (const auto& [key, share] : sorted) {
    const auto [cube, pipe, label] = key;
    out << comma << "{\"core\": \"" << (cube ? "AIC" : "AIV") << "\", \"pipe\": \""
        << kPipeNames[pipe] << "\", \"builtin\": "
        << quoted(label == kIssueLabel    ? "issue"
                  : label == kSignalLabel ? "cross-core signal"
                                          : labels_[label].name)
        << ", \"site\": " << quoted(label < 0 ? "" : labels_[label].site)
        << ", \"us\": " << share.cycles / chip_.clock * 1e-3
        << ", \"share\": " << share.cycles / total << ", \"count\": " << share.count << "}";
    comma = ", ";
  }
  return out.str();
}

Timing Replay::result() {
  label_records();
  double total = 0;
  for (const CoreState& core : cores_) total = std::max(total, core.end);
  const double us = 1e-3 / chip_.clock;
  std::ostringstream out;
  out.precision(17);
  out << "{\"time_us\": " << total * us << ", \"cycles\": " << total << ", \"cores\": [";
  const char* comma = "";
  std::vector<double> clusters(launch_.options().block_dim);
  for (const auto& core : launch_.cores()) {
    const CoreState& state = cores_[core->index];
    clusters[core->cluster] = std::max(clusters[core->cluster], state.end - state.begin);
    out << comma << "{\"name\": " << quoted(core_text(*core)) << ", \"end_us\": " << state.end * us
        << ", \"pipes\": {";
    comma = ", ";
    const char* pipe_comma = "";
    for (int p = 0; p < kPipes; ++p) {
      const Pipeline& pipe = state.pipe[p];
      if (p != kS && pipe.queue.empty()) continue;
      out << pipe_comma << "\"" << kPipeNames[p] << "\": {\"busy\": " << pipe.busy * us
          << ", \"stalls\": {";
      pipe_comma = ", ";
      std::array<double, kStalls> stall = pipe.stall;
      stall[kWave] = state.begin;
      stall[kFinished] = total - (p == kS ? state.now : pipe.free);
      const char* stall_comma = "";
      for (int s = 0; s < kStalls; ++s) {
        if (stall[s] <= 0) continue;
        out << stall_comma << quoted(stall_text(s)) << ": " << stall[s] * us;
        stall_comma = ", ";
      }
      out << "}}";
    }
    out << "}}";
  }
  double mean = 0, slowest = 0;
  for (const double cluster : clusters) {
    mean += cluster / static_cast<double>(clusters.size());
    slowest = std::max(slowest, cluster);
  }
  out << "], \"bytes\": {\"gm_read\": " << bytes_.gm_read << ", \"gm_write\": " << bytes_.gm_write
      << ", \"l2_read\": " << bytes_.l2_read << ", \"l2_write\": " << bytes_.l2_write
      << ", \"hbm_read\": " << bytes_.hbm_read << ", \"hbm_write\": " << bytes_.hbm_write
      << "}, \"balance\": " << (mean > 0 ? slowest / mean : 1) << ", \"critical_path\": ["
      << (total > 0 ? path_json(total) : "") << "], \"labels\": [";
  comma = "";
  for (const Label& label : labels_) {
    out << comma << "[" << quoted(label.name) << ", " << quoted(label.site) << "]";
    comma = ", ";
  }
  out << "]}";
  Timing timing{out.str(), std::move(start_), std::move(end_), std::move(label_)};
  for (double& time : timing.start) time *= us;
  for (double& time : timing.end) time *= us;
  return timing;
}

}  // namespace

Timing time_launch(Launch& launch, const double* parameters, bool warm) {
  Chip chip;
  std::memcpy(&chip, parameters, sizeof(Chip));
  Cache cache(launch.regions(), static_cast<uint64_t>(chip.l2_line),
              static_cast<uint64_t>(chip.l2_size * 1048576));
  for (int pass = warm ? 2 : 1;; --pass) {
    Replay replay(launch, chip, cache);
    if (!replay.run()) {
      Timing failed;
      failed.json =
          "{\"failure\": \"the cores that the chip runs at once wait for cores that start later, "
          "or a "
          "wait has nothing to end it\"}";
      return failed;
    }
    if (pass == 1) return replay.result();
  }
}

}  // namespace sim
