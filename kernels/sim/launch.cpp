// One launch: fibers, pipe queues, flags, barriers and cross-core signals.
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "core.h"
#include "shadow.h"
#if defined(__x86_64__)
#include <asm/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sim {

const char* const kPipeNames[kPipes] = {"S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX"};
const char* const kMemNames[kGm + 1] = {"UB", "L1", "L0A", "L0B", "L0C", "GM"};

Launch* g_launch = nullptr;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 64 << 10;  // a multiple of every page size
// At 120 bytes a record and more, gigabytes; the largest launch of the suites has 1.2 million.
constexpr uint64_t kMostOperations = 1 << 24;
constexpr int kMaxCounter = 15;  // a core's cross-core counters have four bits

// With clang on x86-64, a `__ubuf__` pointer is relative to the GS segment, so a plain dereference
// in a kernel reaches the running core's UB once the base is set.
void set_ub_base(uint8_t* base) {
#if defined(__x86_64__)
  syscall(SYS_arch_prctl, ARCH_SET_GS, base);
#else
  (void)base;
#endif
}

}  // namespace

std::string core_text(const Core& core) {
  std::ostringstream text;
  if (core.cube) {
    text << "AIC " << core.cluster;
  } else {
    text << "AIV " << core.cluster << "." << core.sub;
  }
  return text.str();
}

std::string site_text(const Site& site) {
  std::ostringstream text;
  if (site.file) {
    const char* slash = std::strrchr(site.file, '/');
    text << (slash ? slash + 1 : site.file) << ":" << site.line;
    return text.str();
  }
  // A scalar access: the library and the offset in it of the instruction before the return address,
  // which the Python side turns into a line.
  Dl_info info{};
  if (dladdr(site.pc, &info) != 0 && info.dli_fname != nullptr) {
    const char* slash = std::strrchr(info.dli_fname, '/');
    text << (slash ? slash + 1 : info.dli_fname) << "+0x" << std::hex
         << static_cast<const char*>(site.pc) - static_cast<const char*>(info.dli_fbase) - 1;
  } else {
    text << "pc " << site.pc;
  }
  return text.str();
}

// ---- Construction
// -------------------------------------------------------------------------------------

Launch::Launch(const Options& options, std::vector<Region> regions, int cores_kind)
    : options_(options),
      regions_(std::move(regions)),
      cores_kind_(cores_kind),
      random_state_(options.seed) {
  std::sort(regions_.begin(), regions_.end(),
            [](const Region& a, const Region& b) { return a.begin < b.begin; });
  reset_gm_shadow();
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto* ranges = static_cast<std::vector<std::pair<uint64_t, uint64_t>>*>(data);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type != PT_LOAD) continue;
          const uint64_t begin = info->dlpi_addr + header.p_vaddr;
          ranges->emplace_back(begin, begin + header.p_memsz);
        }
        return 0;
      },
      &static_data_);
  const auto add = [&](int cluster, bool cube, int sub) {
    auto core = std::make_unique<Core>();
    core->index = static_cast<int>(cores_.size());
    core->cluster = cluster;
    core->cube = cube;
    core->sub = sub;
    const auto uses = [cube](int mem) { return cube ? mem != kUb : mem == kUb; };
    for (int mem = 0; mem < kLocalMems; ++mem) {
      if (!uses(mem)) continue;
      core->mem[mem] = static_cast<uint8_t*>(std::aligned_alloc(4096, kMemBytes[mem]));
      std::memset(core->mem[mem], options_.poison, kMemBytes[mem]);
    }
    core->shadow = std::make_shared<Shadow>(core->mem);
    cores_.push_back(std::move(core));
  };
  for (int block = 0; block < options_.block_dim; ++block) {
    if (cores_kind_ != 2) add(block, true, 0);
    if (cores_kind_ != 1) add(block, false, 0);
    if (cores_kind_ == 0) add(block, false, 1);
  }
  auto nothing = std::make_shared<Known>();
  nothing->done.resize(cores_.size());
  nothing->visible.resize(cores_.size());
  for (auto& core : cores_) core->known = nothing;
}

Launch::~Launch() {
  for (auto& core : cores_) {
    for (uint8_t* mem : core->mem) std::free(mem);
    if (core->stack) munmap(core->stack - kGuardBytes, kStackBytes + kGuardBytes);
  }
}

const Region* Launch::region_of(uint64_t address) const {
  auto after = std::upper_bound(regions_.begin(), regions_.end(), address,
                                [](uint64_t a, const Region& r) { return a < r.begin; });
  if (after == regions_.begin()) return nullptr;
  const Region& region = *(after - 1);
  return address < region.end ? &region : nullptr;
}

bool Launch::is_host(uint64_t address) const {
  const auto stack = reinterpret_cast<uint64_t>(cores_[running_]->stack);
  if (address - stack < kStackBytes) return true;
  // g_tilingKey, which kernels assign to, lies in the core's record.
  const auto core = reinterpret_cast<uint64_t>(cores_[running_].get());
  if (address - core < sizeof(Core)) return true;
  for (const auto& [begin, end] : static_data_) {
    if (begin <= address && address < end) return true;
  }
  return false;
}

std::string Finding::message() const {
  if (place.empty()) return kind + ": " + text;
  return kind + " " + place + "[" + std::to_string(begin) + ", " + std::to_string(end) +
         "): " + text;
}

void Launch::find(const char* kind, const std::string& message) {
  find_at(kind + message, {kind, "", 0, 0, message});
}

void Launch::find_at(const std::string& key, Finding finding) {
  const auto [place, fresh] = finding_index_.try_emplace(key, findings_.size());
  if (fresh) {
    findings_.push_back(std::move(finding));
    return;
  }
  Finding& known = findings_[place->second];
  if (finding.op == 0 || finding.op != known.op) {
    known.op = finding.op;
    ++known.count;
  } else if (known.count == 1 && known.end == finding.begin) {
    known.end = finding.end;
  }
}

void Launch::note_unwritten(const Op& op) {
  if (!unwritten_at_.insert({op.site.file, op.site.line}).second) return;
  unwritten_.push_back(site_text(op.site) + " (" + op.name + ")");
}

// Keeps what a store to GM will overwrite, page by page, so that a launch can be repeated.
void Launch::save_before(const Op& op) {
  constexpr int kPageBits = 12;
  for (int i = 0; i < op.num_accesses; ++i) {
    const Access& a = op.access[i];
    if (a.mem != kGm || !a.write) continue;
    for (uint64_t n = 0; n < uint64_t{a.inner} * a.outer; ++n) {
      const uint64_t begin = a.base + n / a.inner * a.outer_stride + n % a.inner * a.inner_stride;
      for (uint64_t page = begin >> kPageBits; page << kPageBits < begin + a.bytes; ++page) {
        // A page may hold the end of one tensor, the host's own data and the start of another, so
        // the part of this tensor is kept.
        const Region& region = *region_of(begin);
        const auto [place, fresh] = journal_.try_emplace({page, region.begin});
        if (!fresh) continue;
        const uint64_t from = std::max(page << kPageBits, region.begin);
        const uint64_t to = std::min((page + 1) << kPageBits, region.end);
        const auto* bytes = reinterpret_cast<const uint8_t*>(from);
        place->second = {from, {bytes, bytes + (to - from)}};
      }
    }
  }
}

// Leaves every fiber where it stands; the launch cannot go on.
void Launch::fail(const std::string& message) {
  if (failure_.empty()) failure_ = message;
  swapcontext(&current().context, &main_);
  std::abort();  // a failed launch is never resumed
}

uint64_t Launch::random(uint64_t bound) {
  // SplitMix64 (Steele, Lea, Flood 2014).
  uint64_t z = (random_state_ += 0x9e3779b97f4a7c15ull);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return (z ^ z >> 31) % bound;
}

// ---- Issue and execution
// ------------------------------------------------------------------------------

bool Launch::dropped(const char* name, const Site& site) {
  const bool cube = current().cube;
  const auto [place, fresh] =
      sync_sites_.try_emplace({site.file, site.line, cube, name}, SyncSite{"", 0, false});
  SyncSite& entry = place->second;
  if (fresh) {
    entry.text = std::string(cube ? "cube " : "vector ") + site_text(site) + " " + name;
    entry.drop = entry.text == options_.drop;
  }
  ++entry.count;
  return entry.drop;
}

std::map<std::string, uint64_t> Launch::sync_sites() const {
  std::map<std::string, uint64_t> sites;
  for (const auto& [key, entry] : sync_sites_) sites[entry.text] += entry.count;
  return sites;
}

// True if every byte of every access lies in its memory or in one tensor; else a finding.
bool Launch::in_bounds(const Core& core, const Op& op) {
  bool good = true;
  for (int i = 0; i < op.num_accesses; ++i) {
    const Access& a = op.access[i];
    if (a.bytes == 0 || a.inner == 0 || a.outer == 0) continue;
    const int64_t inner = a.inner_stride * (a.inner - 1);
    const int64_t outer = a.outer_stride * (a.outer - 1);
    const uint64_t begin = a.base + std::min<int64_t>(inner, 0) + std::min<int64_t>(outer, 0);
    const uint64_t end =
        a.base + std::max<int64_t>(inner, 0) + std::max<int64_t>(outer, 0) + a.bytes;
    if (a.mem != kGm) {
      if (core.mem[a.mem] != nullptr && end <= kMemBytes[a.mem] && begin < end) continue;
    } else {
      const Region* region = region_of(begin);
      if (region != nullptr && end <= region->end) continue;
    }
    report_bounds(core, op, a, begin, end);
    good = false;
  }
  return good;
}

void Launch::report_bounds(const Core& core, const Op& op, const Access& a, uint64_t begin,
                           uint64_t end) {
  std::ostringstream text;
  text << core_text(core) << " " << kPipeNames[op.pipe] << " " << (a.write ? "writes" : "reads")
       << " at " << site_text(op.site) << " (" << op.name << ") ";
  if (a.mem != kGm) {
    text << kMemNames[a.mem] << "[" << int64_t(begin) << ", " << int64_t(end) << "), ";
    if (core.mem[a.mem] == nullptr) {
      text << "a memory that this core does not have";
    } else {
      text << "which has " << kMemBytes[a.mem] << " bytes";
    }
  } else if (begin < 4096) {
    text << "GM through a null pointer";
  } else {
    // Of the tensor that it is nearest to, if one is anywhere near.
    constexpr uint64_t kNear = 1 << 30;
    const Region* nearest = nullptr;
    uint64_t distance = kNear;
    for (const Region& region : regions_) {
      const uint64_t gap = begin < region.begin  ? region.begin - begin
                           : begin >= region.end ? begin - region.end + 1
                                                 : 0;
      if (gap < distance) nearest = &region, distance = gap;
    }
    if (nearest) {
      text << "GM " << nearest->name << "[" << int64_t(begin - nearest->begin) << ", "
           << int64_t(end - nearest->begin) << "), which has " << nearest->end - nearest->begin
           << " bytes";
    } else {
      text << "GM where no tensor is near";
    }
  }
  // One finding a site, or a loop would fill the report.
  find_at("out of bounds " + site_text(op.site) + op.name, {"out of bounds", "", 0, 0, text.str()});
}

uint32_t Launch::record(const Op& op, bool blocks_scalar) {
  Core& core = current();
  if (++operations_ > kMostOperations) {
    fail("stopped: more than " + std::to_string(kMostOperations) + " operations; " +
         core_text(core) + " is at " + site_text(op.site));
  }
  if (!options_.record) return 0;
  Record record{};
  record.kind = op.kind;
  record.pipe = op.pipe;
  record.other = op.other;
  record.id = op.id;
  record.blocks_scalar = blocks_scalar;
  record.all_pipes = op.all_pipes;
  record.name = op.name;
  record.site = op.site;
  record.cycles = op.cycles;
  record.gm.mem = kNoMem;
  for (int i = 0; i < op.num_accesses; ++i) {
    if (op.access[i].mem == kGm) record.gm = op.access[i];
  }
  core.records.push_back(std::move(record));
  return static_cast<uint32_t>(core.records.size() - 1);
}

void Launch::issue(Op op) {
  Core& core = current();
  if (!in_bounds(core, op)) return;  // reported; carrying it out would hurt the host
  if (options_.journal) save_before(op);
  if (op.kind != Kind::kWork) op.dropped = dropped(op.name, op.site);
  op.mask[0] = core.mask[0];
  op.mask[1] = core.mask[1];
  op.counted = core.counted;
  if (op.kind == Kind::kBarrier && op.all_pipes) return barrier_all(op);
  Queued item{op, core.clock[kS], core.fenced, core.known, record(op, op.pipe == kS)};
  item.scalar.done[kS] = core.executed[kS];
  if (op.pipe == kS) {
    if (!execute(core, item)) {
      fail("deadlock: " + core_text(core) + " waits at " + site_text(op.site) + " for flag " +
           kPipeNames[op.other] + "->S " + std::to_string(op.id) + ", which nothing sets");
    }
    return;
  }
  auto& queue = core.queue[op.pipe];
  if (options_.latest || !queue.empty() || !execute(core, item)) {
    queue.push_back(std::move(item));
    if (!options_.latest) run_queue(core, op.pipe);
  }
}

// Executes one operation. False: it is a wait whose flag is not set yet.
bool Launch::execute(Core& core, Queued& item) {
  Op& op = item.op;
  Clock& clock = core.clock[op.pipe];
  clock.join(item.scalar);
  switch (op.kind) {
    case Kind::kWork: {
      const uint32_t epoch = ++core.executed[op.pipe];
      if (op.pipe == kS) clock.done[kS] = epoch;
      if (options_.check) check_accesses(*this, core, op, clock, item.known, epoch);
      if (op.execute) op.execute(core, op);
      return true;
    }
    case Kind::kSetFlag: {
      Flag& flag = core.flags[op.pipe][op.other][op.id];
      if (op.dropped) return true;
      if (flag.owed > 0) {
        --flag.owed;
        return true;
      }
      if (flag.set) {
        find("flag set twice", core_text(core) + ": flag " + kPipeNames[op.pipe] + "->" +
                                   kPipeNames[op.other] + " " + std::to_string(op.id) + " set at " +
                                   site_text(op.site) + " is still set from " +
                                   site_text(flag.site));
      }
      flag.set = true;
      flag.site = op.site;
      flag.snapshot = clock;
      flag.snapshot.done[op.pipe] = core.executed[op.pipe];
      flag.record = item.record;
      if (!options_.latest && !core.busy[op.other]) run_queue(core, op.other);
      return true;
    }
    case Kind::kWaitFlag: {
      Flag& flag = core.flags[op.other][op.pipe][op.id];
      if (op.dropped && !options_.blind) return true;
      if (op.dropped) {
        if (flag.set) {
          flag.set = false;
        } else {
          ++flag.owed;
        }
        return true;
      }
      while (!flag.set && execute_head(core, op.other)) {
      }
      if (!flag.set) return false;
      flag.set = false;
      clock.join(flag.snapshot);
      if (options_.record) core.records[item.record].after = {{core.index, flag.record}};
      return true;
    }
    case Kind::kBarrier:
      if (op.dropped) return true;
      clock.done[op.pipe] = core.executed[op.pipe];
      core.barriered.done[op.pipe] = core.executed[op.pipe];
      return true;
    case Kind::kSignal:
      if (!op.dropped) deliver(core, item);
      return true;
  }
  return true;
}

// Executes the first operation of a pipe's queue if there is one and it can run.
bool Launch::execute_head(Core& core, Pipe pipe) {
  auto& queue = core.queue[pipe];
  if (queue.empty() || core.busy[pipe]) return false;
  core.busy[pipe] = true;
  const bool done = execute(core, queue.front());
  core.busy[pipe] = false;
  if (done) queue.pop_front();
  return done;
}

void Launch::run_queue(Core& core, Pipe pipe) {
  while (execute_head(core, pipe)) {
  }
}

void Launch::barrier_all(const Op& op) {
  Core& core = current();
  record(op, true);
  if (op.dropped) return;
  for (bool progress = true; progress;) {
    progress = false;
    for (int pipe = kV; pipe < kPipes; ++pipe)
      progress |= execute_head(core, static_cast<Pipe>(pipe));
  }
  for (int pipe = kV; pipe < kPipes; ++pipe) {
    if (core.queue[pipe].empty()) continue;
    const Op& stuck = core.queue[pipe].front().op;
    fail("deadlock: " + core_text(core) + " drains at " + site_text(op.site) + ", but pipe " +
         kPipeNames[pipe] + " waits at " + site_text(stuck.site) + " for flag " +
         kPipeNames[stuck.other] + "->" + kPipeNames[pipe] + " " + std::to_string(stuck.id));
  }
  for (Clock& clock : core.clock) {
    for (int pipe = 0; pipe < kPipes; ++pipe) clock.done[pipe] = core.executed[pipe];
  }
  for (int pipe = 0; pipe < kPipes; ++pipe) core.barriered.done[pipe] = core.executed[pipe];
}

// dsb: what the last barrier of each storing pipe has waited for becomes visible to other cores.
void Launch::fence(Site site) {
  Core& core = current();
  if (dropped("dsb", site)) return;
  for (const Pipe pipe : {kMte3, kFix}) {
    // In latest mode the barrier may still be queued; the fence waits for it.
    auto& queue = core.queue[pipe];
    const auto barrier = [&] {
      return std::any_of(queue.begin(), queue.end(),
                         [](const Queued& q) { return q.op.kind == Kind::kBarrier; });
    };
    while (barrier() && execute_head(core, pipe)) {
    }
  }
  core.fenced.join(core.barriered);
  core.fenced.join(core.clock[kS]);  // what a flag to the scalar unit has waited for
  core.fenced.done[kS] = core.executed[kS];
}

// ---- Cross-core signals
// -------------------------------------------------------------------------------

// Modes of ffts_cross_core_sync: 0 all cores of one type, 1 the vector cores of a cluster, 2 from
// the cube core to the vector cores of its cluster or from those, once both have arrived, to the
// cube core.
void Launch::deliver(Core& core, const Queued& item) {
  const Op& op = item.op;
  auto known = std::make_shared<Known>(*item.known);
  Clock own = core.clock[op.pipe];
  own.done[op.pipe] = core.executed[op.pipe];
  known->done[core.index].join(own);
  known->visible[core.index].join(item.fenced);
  const Signal signal{known, {{core.index, item.record}}};

  const int group = op.mode == 0 ? -1 : core.cluster;
  auto& queues = pending_[{op.mode, group, core.cube, op.id}];
  if (queues.empty()) queues.resize(cores_.size());
  queues[core.index].push_back(signal);

  const auto in_group = [&](const Core& c) { return group < 0 || c.cluster == group; };
  Signal merged;
  auto sum = std::make_shared<Known>();
  sum->done.resize(cores_.size());
  sum->visible.resize(cores_.size());
  for (const auto& source : cores_) {
    if (source->cube != core.cube || !in_group(*source)) continue;
    if (queues[source->index].empty()) return;  // not all have arrived
  }
  for (const auto& source : cores_) {
    if (source->cube != core.cube || !in_group(*source)) continue;
    const Signal& part = queues[source->index].front();
    for (size_t i = 0; i < cores_.size(); ++i) {
      sum->done[i].join(part.known->done[i]);
      sum->visible[i].join(part.known->visible[i]);
    }
    merged.from.insert(merged.from.end(), part.from.begin(), part.from.end());
    queues[source->index].pop_front();
  }
  merged.known = sum;
  for (const auto& target : cores_) {
    const bool wanted_cube = op.mode == 2 ? !core.cube : core.cube;
    if (target->cube != wanted_cube || !in_group(*target)) continue;
    auto& counter = target->counters[op.id];
    counter.push_back(merged);
    if (counter.size() > kMaxCounter) {
      find("counter overflow", core_text(*target) + ": cross-core counter " +
                                   std::to_string(op.id) + " passes 15 with the signal at " +
                                   site_text(op.site));
    }
    if (target->state == State::kWaiting && target->waits_for == op.id)
      target->state = State::kReady;
  }
}

void Launch::wait_flag_dev(int id, Site site) {
  Core& core = current();
  const bool drop = dropped("wait_flag_dev", site);
  if (drop && !options_.blind) return;
  Op op;
  op.name = "wait_flag_dev";
  op.site = site;
  op.kind = Kind::kWaitFlag;
  op.id = static_cast<uint8_t>(id);
  const uint32_t index = record(op, true);
  while (core.counters[id].empty()) {
    core.state = State::kWaiting;
    core.waits_for = id;
    core.waits_at = site;
    yield();
  }
  const Signal signal = core.counters[id].front();
  core.counters[id].pop_front();
  if (drop) return;
  auto known = std::make_shared<Known>(*core.known);
  for (size_t i = 0; i < cores_.size(); ++i) {
    known->done[i].join(signal.known->done[i]);
    known->visible[i].join(signal.known->visible[i]);
  }
  core.known = known;
  core.clock[kS].join(known->done[core.index]);
  if (options_.record) core.records[index].after = signal.from;
}

void Launch::scalar_access(uint64_t address, uint32_t bytes, bool write, Site site) {
  Core& core = current();
  Op op;
  op.name = write ? "scalar store" : "scalar load";
  op.site = site;
  op.add(kGm, write, address, bytes);
  if (!in_bounds(core, op)) {
    // The access itself is the host's and comes next: it would hurt the process.
    fail("stopped: " + core_text(core) + " cannot go on behind the " + op.name +
         " out of bounds at " + site_text(site));
  }
  if (options_.journal) save_before(op);
  if (!options_.check) return;
  const uint32_t epoch = ++core.executed[kS];
  core.clock[kS].done[kS] = epoch;
  check_accesses(*this, core, op, core.clock[kS], core.known, epoch);
}

// ---- Fibers
// -------------------------------------------------------------------------------------------

void Launch::fiber_main() {
  Launch& launch = *g_launch;
  launch.entries_[launch.current().cube ? 0 : 1](launch.args_);
  launch.current().state = State::kDone;
  swapcontext(&launch.current().context, &launch.main_);
}

void Launch::yield() { swapcontext(&current().context, &main_); }

int Launch::next_ready() {
  std::vector<int> ready;
  const int count = static_cast<int>(cores_.size());
  for (int i = 1; i <= count; ++i) {
    const int index = (running_ + i + count) % count;
    if (cores_[index]->state != State::kReady) continue;
    if (options_.seed == 0) return index;
    ready.push_back(index);
  }
  return ready.empty() ? -1 : ready[random(ready.size())];
}

// Latest mode, every fiber waiting: lets one queue run as far as its next signal.
bool Launch::force_progress() {
  const size_t places = cores_.size() * kPipes;
  const size_t start = random(places);
  for (size_t i = 0; i < places; ++i) {
    const size_t place = (start + i) % places;
    Core& core = *cores_[place / kPipes];
    const Pipe pipe = static_cast<Pipe>(place % kPipes);
    auto& queue = core.queue[pipe];
    const auto signal = std::find_if(queue.begin(), queue.end(),
                                     [](const Queued& q) { return q.op.kind == Kind::kSignal; });
    if (signal == queue.end()) continue;
    const size_t rest = queue.end() - signal - 1;
    bool moved = false;
    while (queue.size() > rest && execute_head(core, pipe)) moved = true;
    if (moved) return true;
  }
  return false;
}

void Launch::run(void (*cube_entry)(const uint64_t*), void (*vector_entry)(const uint64_t*),
                 const uint64_t* args, int num_args) {
  static_data_.emplace_back(reinterpret_cast<uint64_t>(args),
                            reinterpret_cast<uint64_t>(args + num_args));
  entries_[0] = cube_entry;
  entries_[1] = vector_entry;
  args_ = args;
  g_launch = this;
  for (auto& core : cores_) {
    getcontext(&core->context);
    // The page below the stack stays out of reach: a local array that is too large ends there.
    void* stack =
        mmap(nullptr, kStackBytes + kGuardBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    core->stack = static_cast<char*>(stack) + kGuardBytes;
    mprotect(core->stack, kStackBytes, PROT_READ | PROT_WRITE);
    core->context.uc_stack.ss_sp = core->stack;
    core->context.uc_stack.ss_size = kStackBytes;
    core->context.uc_link = nullptr;
    makecontext(&core->context, fiber_main, 0);
  }
  while (failure_.empty()) {
    const int index = next_ready();
    if (index >= 0) {
      running_ = index;
      set_ub_base(cores_[index]->mem[kUb]);
      swapcontext(&main_, &cores_[index]->context);
      continue;
    }
    const bool done = std::all_of(cores_.begin(), cores_.end(),
                                  [](const auto& core) { return core->state == State::kDone; });
    if (done || !options_.latest || !force_progress()) break;
  }
  set_ub_base(nullptr);
  finish();
  g_launch = nullptr;
}

void Launch::finish() {
  if (!failure_.empty()) return;
  // Consumers first: whatever no flag holds back runs before what it should have waited for.
  std::vector<int> order(cores_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  if (options_.seed != 0) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random(i)]);
  }
  for (const int index : order) {
    for (const Pipe pipe : {kV, kM, kFix, kMte3, kMte1, kMte2}) run_queue(*cores_[index], pipe);
  }
  std::string stuck;
  for (const auto& core : cores_) {
    if (core->state == State::kWaiting && core->counters[core->waits_for].empty()) {
      stuck += "; " + core_text(*core) + " waits at " + site_text(core->waits_at) +
               " for cross-core counter " + std::to_string(core->waits_for);
    }
    for (int pipe = kV; pipe < kPipes; ++pipe) {
      if (core->queue[pipe].empty()) continue;
      const Op& op = core->queue[pipe].front().op;
      stuck += "; " + core_text(*core) + " pipe " + kPipeNames[pipe] + " waits at " +
               site_text(op.site) + " for flag " + kPipeNames[op.other] + "->" + kPipeNames[pipe] +
               " " + std::to_string(op.id);
    }
  }
  if (!stuck.empty()) {
    failure_ = "deadlock: " + stuck.substr(2);
    return;
  }
  for (const auto& [signal, queues] : pending_) {
    for (size_t core = 0; core < queues.size(); ++core) {
      if (queues[core].empty()) continue;
      find("signal left over", core_text(*cores_[core]) + ": signal " + std::to_string(signal[3]) +
                                   " of mode " + std::to_string(signal[0]) +
                                   " waits for the other cores of its group, which never send it");
    }
  }
  for (const auto& core : cores_) {
    for (int from = 0; from < kPipes; ++from) {
      for (int to = 0; to < kPipes; ++to) {
        for (int id = 0; id < 8; ++id) {
          const Flag& flag = core->flags[from][to][id];
          if (!flag.set) continue;
          find("flag left over", core_text(*core) + ": flag " + kPipeNames[from] + "->" +
                                     kPipeNames[to] + " " + std::to_string(id) + " set at " +
                                     site_text(flag.site) + " is never waited for");
        }
      }
    }
    for (int id = 0; id < 16; ++id) {
      if (core->counters[id].empty()) continue;
      find("counter left over", core_text(*core) + ": cross-core counter " + std::to_string(id) +
                                    " ends at " + std::to_string(core->counters[id].size()));
    }
  }
}

}  // namespace sim
