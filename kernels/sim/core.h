// The modelled chip: cores, pipes, local memories, flags, and the life of one operation.
//
// A kernel's cube and vector halves run as one fiber per core. Every builtin becomes an Op: it is
// issued by the scalar unit in program order, waits in the queue of its pipe, and is executed from
// there: checked against the happens-before order, carried out on the memories, and recorded for
// the timing pass.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "abi.h"

namespace sim {

// ---- Places
// -------------------------------------------------------------------------------------------

enum Pipe : uint8_t { kS, kV, kM, kMte1, kMte2, kMte3, kFix, kPipes };
extern const char* const kPipeNames[kPipes];

enum Mem : uint8_t { kUb, kL1, kL0a, kL0b, kL0c, kLocalMems, kGm = kLocalMems, kNoMem };
extern const char* const kMemNames[kGm + 1];

// Bytes of every local memory, and what an address in it must be a multiple of. Ascend C
// programming guide, architecture 2201: UB 192 KiB, L1 512, L0A 64, L0B 64, L0C 128; alignment 32 B
// in UB and L1, 512 B in L0A and L0B, 64 B in L0C.
constexpr std::array<uint32_t, kLocalMems> kMemBytes{192 << 10, 512 << 10, 64 << 10, 64 << 10,
                                                     128 << 10};

constexpr int kBlock = 32;  // bytes; the unit of the shadow memory and of most addresses

// ---- Operations
// ---------------------------------------------------------------------------------------

// Bytes that an operation touches: `outer` x `inner` stretches of `bytes`, from `base`. In GM
// `base` is a host address.
struct Access {
  Mem mem = kNoMem;
  bool write = false;
  bool atomic = false;  // an atomic store: unordered among its like
  uint64_t base = 0;
  uint32_t bytes = 0;
  uint32_t inner = 1;
  uint32_t outer = 1;
  int64_t inner_stride = 0;
  int64_t outer_stride = 0;
};

enum class Kind : uint8_t { kWork, kSetFlag, kWaitFlag, kBarrier, kSignal };

struct Core;
struct Op;
using Execute = void (*)(Core&, const Op&);

constexpr int kMaxAccesses = 4;
constexpr int kMaxArgs = 12;

struct Op {
  const char* name = nullptr;  // the builtin's
  Site site;
  Kind kind = Kind::kWork;
  Pipe pipe = kS;
  Pipe other = kS;   // flags: the pipe at the other end
  uint8_t id = 0;    // flags and signals
  uint8_t mode = 0;  // signals
  uint8_t num_accesses = 0;
  bool all_pipes = false;  // pipe_barrier(PIPE_ALL)
  bool dropped = false;    // a synchronisation that the launch was told to leave out
  bool large_mad = false;  // a mad whose tile is large enough to need no barrier before the next
  Execute execute = nullptr;
  float cycles = 0;       // time in the pipe apart from GM traffic
  uint64_t mask[2] = {};  // vector mask at issue
  bool counted = false;   // counter mode: mask[0] is an element count
  Access access[kMaxAccesses];
  int64_t arg[kMaxArgs] = {};

  Access& add(Mem mem, bool write, uint64_t base, uint32_t bytes) {
    Access& a = access[num_accesses++];
    a.mem = mem;
    a.write = write;
    a.base = base;
    a.bytes = bytes;
    return a;
  }
};

// ---- Order
// --------------------------------------------------------------------------------------------

// How many operations of each pipe of one core are known to be complete.
struct Clock {
  std::array<uint32_t, kPipes> done{};
  void join(const Clock& other) {
    for (int p = 0; p < kPipes; ++p) done[p] = done[p] > other.done[p] ? done[p] : other.done[p];
  }
};

// What a core has learnt of all cores through cross-core signals: operations complete, and stores
// that a fence has made visible. Immutable once published.
struct Known {
  std::vector<Clock> done;
  std::vector<Clock> visible;
};
using KnownPtr = std::shared_ptr<const Known>;

struct Signal {
  KnownPtr known;
  std::vector<std::pair<int, uint32_t>> from;  // (core, record) of its sources, for the timing pass
};

struct Flag {
  bool set = false;
  int owed = 0;  // blind waits that came before their set
  Clock snapshot;
  Site site;
  uint32_t record = 0;
};

// An operation in its pipe's queue, with what the scalar unit knew when it issued it.
struct Queued {
  Op op;
  Clock scalar;
  Clock fenced;
  KnownPtr known;
  uint32_t record;
};

// ---- Timing records
// -----------------------------------------------------------------------------------

// One line of a core's program as the timing pass sees it, in issue order.
struct Record {
  Kind kind;
  Pipe pipe;
  Pipe other;
  uint8_t id;
  bool blocks_scalar;  // the scalar unit waits for it before it issues anything else
  bool all_pipes;      // pipe_barrier(PIPE_ALL)
  const char* name;
  Site site;
  float cycles;
  Access gm;  // GM side of a transfer; mem is kNoMem if there is none
  // kWaitFlag: record of the set_flag it consumes. wait_flag_dev: (core, record) of the signals.
  std::vector<std::pair<int, uint32_t>> after;
};

// ---- Core
// ---------------------------------------------------------------------------------------------

struct Shadow;

enum class State : uint8_t { kReady, kWaiting, kDone };

struct Core {
  int index = 0;    // over all cores of the launch
  int cluster = 0;  // block_idx
  int sub = 0;      // get_subblockid()
  bool cube = false;

  std::array<uint8_t*, kLocalMems> mem{};
  std::shared_ptr<Shadow> shadow;  // complete only in shadow.h

  // Order
  std::array<Clock, kPipes> clock;  // clock[p]: what the next operation of pipe p may rely on
  std::array<uint32_t, kPipes> executed{};  // operations of each pipe so far
  Clock barriered;                          // operations before each pipe's last pipe_barrier
  Clock fenced;                             // operations whose stores a dsb has pushed out
  KnownPtr known;
  Flag flags[kPipes][kPipes][8];
  std::deque<Signal> counters[16];
  std::array<std::deque<Queued>, kPipes> queue;
  std::array<bool, kPipes> busy{};  // being drained: a wait that leads back here is stuck

  // Registers
  uint64_t mask[2] = {~0ull, ~0ull};
  bool counted = false;
  std::array<uint64_t, kRegisters> registers{1};  // by Register of abi.h
  uint64_t tiling_key = 0;

  // Program
  State state = State::kReady;
  int waits_for = -1;  // counter id while waiting
  Site waits_at;
  ucontext_t context{};
  char* stack = nullptr;
  std::vector<Record> records;
};

// ---- Launch
// -------------------------------------------------------------------------------------------

struct Region {
  std::string name;
  uint64_t begin;
  uint64_t end;
};

struct Options {
  int block_dim = 1;
  bool check = true;
  bool strict_visibility = false;
  bool latest = false;  // execute every operation as late as its flags allow
  bool record = true;
  bool journal = true;  // keep what stores to GM overwrite
  uint64_t seed = 0;    // permutes which ready core runs; 0 is round robin
  uint8_t poison =
      0xff;  // what local memories hold at the start; 0xff.. is NaN in every float type
  // A synchronisation site to leave out, as sync_sites() names it; empty for none. `blind`: a wait
  // there still waits and consumes, but orders nothing, so that only the happens-before check can
  // notice.
  std::string drop;
  bool blind = false;
};

// One finding of the checker. Equal ones (same kind and sites) are counted and reported once, with
// the bytes [begin, end) of the first; `text` follows the place.
struct Finding {
  std::string kind;
  std::string place;  // empty: no range
  uint64_t begin = 0;
  uint64_t end = 0;
  std::string text;
  uint64_t op = 0;  // which operation it is of; its further blocks do not count again
  int count = 1;

  std::string message() const;
};

class Launch {
 public:
  // cores_kind: 0 clusters of one cube and two vector cores, 1 cube cores only, 2 vector cores
  // only.
  Launch(const Options& options, std::vector<Region> regions, int cores_kind);
  ~Launch();

  // `args`: one word an argument of the entry.
  void run(void (*cube_entry)(const uint64_t*), void (*vector_entry)(const uint64_t*),
           const uint64_t* args, int num_args);

  // Called by the builtins, through abi.h, on the running core.
  Core& current() { return *cores_[running_]; }
  void issue(Op op);
  void wait_flag_dev(int id, Site site);
  void scalar_access(uint64_t address, uint32_t bytes, bool write, Site site);
  void fence(Site site);
  void find(const char* kind, const std::string& message);
  // As find, of bytes; findings with the same key count as one.
  void find_at(const std::string& key, Finding finding);
  [[noreturn]] void fail(const std::string& message);

  const Options& options() const { return options_; }
  std::vector<std::unique_ptr<Core>>& cores() { return cores_; }
  const std::vector<Finding>& findings() const { return findings_; }
  const Region* region_of(uint64_t address) const;
  // True for the running fiber's stack, the argument words and static data of the loaded libraries.
  bool is_host(uint64_t address) const;
  const std::vector<Region>& regions() const { return regions_; }
  // "cube|vector file:line builtin" of every synchronisation executed, and how often.
  std::map<std::string, uint64_t> sync_sites() const;
  const std::string& failure() const { return failure_; }

  // GM that the kernel has stored to: address and what stood there before, piece by piece.
  struct Saved {
    uint64_t begin;
    std::vector<uint8_t> bytes;
  };
  std::map<std::pair<uint64_t, uint64_t>, Saved>& journal() { return journal_; }
  void note_unwritten(const Op& op);
  const std::vector<std::string>& unwritten() const { return unwritten_; }

 private:
  static void fiber_main();
  bool in_bounds(const Core& core, const Op& op);
  void report_bounds(const Core& core, const Op& op, const Access& access, uint64_t begin,
                     uint64_t end);
  void save_before(const Op& op);
  bool dropped(const char* name, const Site& site);
  uint32_t record(const Op& op, bool blocks_scalar);
  bool execute(Core& core, Queued& item);
  bool execute_head(Core& core, Pipe pipe);
  void run_queue(Core& core, Pipe pipe);
  void barrier_all(const Op& op);
  void deliver(Core& core, const Queued& item);
  void yield();
  bool force_progress();
  int next_ready();
  void finish();
  uint64_t random(uint64_t bound);

  Options options_;
  std::vector<Region> regions_;
  std::vector<std::pair<uint64_t, uint64_t>> static_data_;
  int cores_kind_;
  std::vector<std::unique_ptr<Core>> cores_;
  int running_ = -1;
  ucontext_t main_{};
  uint64_t random_state_;
  std::map<std::array<int, 4>, std::vector<std::deque<Signal>>> pending_;
  std::vector<Finding> findings_;
  std::map<std::string, size_t> finding_index_;
  struct SyncSite {
    std::string text;
    uint64_t count;
    bool drop;
  };
  std::map<std::tuple<const char*, int, bool, const char*>, SyncSite> sync_sites_;
  uint64_t operations_ = 0;
  std::string failure_;
  std::map<std::pair<uint64_t, uint64_t>, Saved> journal_;  // by page and start of the tensor
  std::vector<std::string> unwritten_;  // sites that read local memory which nothing has written
  std::set<std::pair<const char*, int>> unwritten_at_;
  const uint64_t* args_ = nullptr;
  void (*entries_[2])(const uint64_t*) = {};
};

extern Launch* g_launch;

std::string core_text(const Core& core);
std::string site_text(const Site& site);

// shadow.cpp
void check_accesses(Launch& launch, Core& core, const Op& op, const Clock& clock,
                    const KnownPtr& known, uint32_t epoch);
void reset_gm_shadow();

}  // namespace sim
