#include "decode.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#ifndef HWCAP2_BF16  // Linux headers have it since 5.6
#define HWCAP2_BF16 (1 << 14)
#endif
#endif

#include "isa.h"

namespace pa_hp::cpu {
namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports does not know it in Clang 14.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// AMX, whose registers Linux lets a process use that has asked for them. It refuses while the
// alternate signal stack of a thread is too small for them (arch/x86/kernel/fpu/xstate.c).
bool has_amx_bf16() {
#if defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;  // CPUID leaf 7, edx
  constexpr long kAskPermission = 0x1023;                 // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;                          // XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kBf16) != 0 &&
         (edx & kTile) != 0 && syscall(SYS_arch_prctl, kAskPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

constexpr const char* kAmxRefused =
    "; where the machine has AMX, no thread may have an alternate signal stack that is too small "
    "for its registers (sigaltstack)";

struct Isa {
  const char* name;
  const Kernels* kernels;
};

Isa choose_isa() {
  const char* wanted = std::getenv("PA_HP_CPU_ISA");
  const bool any = wanted == nullptr || *wanted == '\0';
#if defined(__x86_64__)
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool has_avx512_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
  if (has_avx512_bf16 && (any || std::strcmp(wanted, "amx_bf16") == 0) && has_amx_bf16()) {
    return {"amx_bf16", &amx_bf16::kernels};
  }
  if (has_avx512_bf16 && (any || std::strcmp(wanted, "avx512_bf16") == 0)) {
    return {"avx512_bf16", &avx512_bf16::kernels};
  }
  if (has_avx512 && (any || std::strcmp(wanted, "avx512") == 0)) {
    return {"avx512", &avx512::kernels};
  }
  if (has_avx2 && (any || std::strcmp(wanted, "avx2") == 0)) return {"avx2", &avx2::kernels};
#elif defined(__aarch64__) && defined(__linux__)
  if ((getauxval(AT_HWCAP2) & HWCAP2_BF16) && (any || std::strcmp(wanted, "neon_bf16") == 0)) {
    return {"neon_bf16", &neon_bf16::kernels};
  }
#endif
  if (any || std::strcmp(wanted, "baseline") == 0) return {"baseline", &baseline::kernels};
  throw std::runtime_error(
      std::string("pa_hp: expected PA_HP_CPU_ISA to name an instruction set of this "
                  "machine (baseline, avx2, avx512, avx512_bf16, amx_bf16, neon_bf16), got ") +
      wanted + (std::strcmp(wanted, "amx_bf16") == 0 ? kAmxRefused : ""));
}

const Isa& isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

// The chosen ones, or those for shorter vectors where a row is not a whole number of them, or a key
// no more than one.
const Kernels& kernels_for(const DecodeParams& p) {
#if defined(__x86_64__)
  const bool fits = p.head_dim % 16 == 0 && p.head_dim_v % 16 == 0 && p.head_dim > 16;
  const Kernels* chosen = isa().kernels;
  const bool wide = chosen != &avx2::kernels && chosen != &baseline::kernels;
  if (wide && !fits) return avx2::kernels;
#endif
  return *isa().kernels;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t num_chunks(const DecodeParams& p, int64_t seq) {
  return ceil_div(p.seq_lens[seq], chunk_tokens(p, p.seq_lens[seq]));
}

int64_t num_units(const DecodeParams& p, int64_t seq) { return num_chunks(p, seq) * p.kv_heads; }

// A place on the work axis. Units are (sequence, chunk, kv head) in that order; `unit` counts those
// of one sequence: unit = chunk * kv_heads + kv_head.
struct Cut {
  int64_t seq;
  int64_t unit;
};

// How many shares each worker has: eight, of which others take the last ones when they are done
// with theirs. A share that is not taken together with the one before, and starts or ends within a
// span, leaves up to eight states a head to be merged. So there is only one each where an eighth
// would be less than half a chunk times the number of workers.
int64_t shares_each(int64_t total, int64_t kv_heads, int64_t num_workers) {
  constexpr int64_t kMost = 8;
  const bool small = total < kMost * num_workers * num_workers * (kChunkTokens / 2) * kv_heads;
  return num_workers == 1 || small ? 1 : kMost;
}

// Cuts the work at even distances, but at unit boundaries. Workers who share a chunk each read some
// heads of all its tokens; where the heads of a token lie next to each other, their prefetchers
// take the others' lines as well, and two Xeon cores need 1.7 times as long for it. So a cut moves
// to an end of its chunk where that is no more than an eighth of a worker's part. Returns the ends
// of all shares, each the start of the next one: from {0, 0} to {batch, 0}.
std::vector<Cut> partition(const DecodeParams& p, int64_t num_workers) {
  int64_t total = 0;
  for (int64_t seq = 0; seq < p.batch; ++seq) total += p.seq_lens[seq];
  total *= p.kv_heads;
  const bool heads_together = p.key_stride_head < p.key_stride_token;

  std::vector<Cut> cuts{{0, 0}};
  int64_t before = 0;  // work of the sequences before `seq`
  int64_t seq = 0;
  const int64_t shares = num_workers * shares_each(total, p.kv_heads, num_workers);
  for (int64_t share = 1; share < shares; ++share) {
    const int64_t target = total * share / shares;
    while (seq < p.batch && before + p.seq_lens[seq] * p.kv_heads <= target) {
      before += p.seq_lens[seq++] * p.kv_heads;
    }
    if (seq == p.batch) {
      cuts.push_back({p.batch, 0});
      continue;
    }
    const int64_t size = chunk_tokens(p, p.seq_lens[seq]);
    const int64_t chunk = (target - before) / (size * p.kv_heads);
    const int64_t tokens = std::min(size, p.seq_lens[seq] - chunk * size);
    const int64_t rest = target - before - chunk * size * p.kv_heads;
    int64_t kv_head = (rest + tokens / 2) / tokens;  // the first one behind the cut
    const int64_t end = 2 * kv_head < p.kv_heads ? 0 : p.kv_heads;
    if (heads_together && 8 * std::abs(end - kv_head) * tokens * num_workers <= total) {
      kv_head = end;
    }
    const int64_t unit = chunk * p.kv_heads + kv_head;
    cuts.push_back(unit == num_units(p, seq) ? Cut{seq + 1, 0} : Cut{seq, unit});
  }
  cuts.push_back({p.batch, 0});
  return cuts;
}

// Whether a cut leaves two runs something to merge: a sequence of one chunk has each head in one.
bool divides(const DecodeParams& p, const Cut& cut) {
  return cut.unit > 0 && num_chunks(p, cut.seq) > 1;
}

// Partial states of the sequences that a cut goes through, but for those of one chunk, whose heads
// each are in one share alone: one slot per (sequence, chunk), each with all heads. A run leaves
// the fold of all its chunks of a span in the slot of the last one, if it starts with the first
// one; otherwise every chunk by itself, so that the merge can fold them in order. Of spans up to
// which all chunks of a kv head are its own it leaves the fold in the slot of their last one.
class Partials {
 public:
  Partials(const DecodeParams& p, const std::vector<Cut>& cuts) : params_(p) {
    for (size_t i = 1; i + 1 < cuts.size(); ++i) {
      if (!divides(p, cuts[i]) || (!seqs_.empty() && seqs_.back().seq == cuts[i].seq)) continue;
      seqs_.push_back({cuts[i].seq, slots_});
      slots_ += num_chunks(p, cuts[i].seq);
    }
  }

  // What `at` needs to be given before its first call.
  int64_t num_floats() const { return slots_ * params_.heads * (params_.head_dim_v + 2); }
  void set_data(float* data) { data_ = data; }

  // State of query head `head` in chunk `chunk` of a cut sequence, rows of the same kv head behind
  // it.
  State at(int64_t seq, int64_t chunk, int64_t head) const {
    const auto found =
        std::find_if(seqs_.begin(), seqs_.end(), [&](const CutSeq& s) { return s.seq == seq; });
    float* slot = data_ + (found->first_slot + chunk) * params_.heads * (params_.head_dim_v + 2);
    return {slot + head, slot + params_.heads + head,
            slot + 2 * params_.heads + head * params_.head_dim_v};
  }

 private:
  struct CutSeq {
    int64_t seq;
    int64_t first_slot;
  };

  const DecodeParams& params_;
  std::vector<CutSeq> seqs_;
  int64_t slots_ = 0;
  float* data_ = nullptr;
};

State rows_from(State state, int64_t head, int64_t head_dim_v) {
  return {state.max + head, state.sum + head, state.acc + head * head_dim_v};
}

void copy_state(int64_t rows, int64_t head_dim_v, State to, State from) {
  std::copy_n(from.max, rows, to.max);
  std::copy_n(from.sum, rows, to.sum);
  std::copy_n(from.acc, rows * head_dim_v, to.acc);
}

// Vectors that cross a line of the cache cost a tenth of the speed.
struct alignas(64) Line {
  float x[16];
};

// The memory of a thread's last call serves its next one, unless it is large: had anew it costs
// page faults, and freeing it makes glibc give back whatever others have freed before, a
// millisecond after 32 MiB.
class Memory {
 public:
  explicit Memory(int64_t lines) {
    if (lines > kMostKept) {
      own_.reset(new Line[lines]);
    } else if (lines > kept_lines) {
      kept_lines = 0;
      kept.reset(new Line[lines]);
      kept_lines = lines;
    }
  }
  Line* lines() const { return own_ ? own_.get() : kept.get(); }

 private:
  static constexpr int64_t kMostKept = (32 << 20) / sizeof(Line);
  static thread_local std::unique_ptr<Line[]> kept;
  static thread_local int64_t kept_lines;
  std::unique_ptr<Line[]> own_;
};

thread_local std::unique_ptr<Line[]> Memory::kept;
thread_local int64_t Memory::kept_lines = 0;

// 64 KiB between the workers: a core's prefetcher runs on beyond what is its own and takes lines
// from the other. On two Zen 5 cores group 4 has 0.69 of `read` in float16 and 0.74 in bfloat16
// without, 0.76 and 0.81 with 16 KiB, 0.81 and 0.85 with 64 KiB or more.
constexpr int64_t kApart = (64 << 10) / sizeof(Line);

// Scratch of one worker: scaled query, the sums of values of three states (of spans, of a span, of
// a chunk), the kernel's own, and the states' maxima and sums.
int64_t worker_lines(const DecodeParams& p) {
  const int64_t states = p.heads * (3 * p.head_dim_v + 6);
  return ceil_div(padded_heads(p) * p.head_dim + states + scratch_floats(p), 16) + kApart;
}

// Whether a worker has taken a share, as the first one of a run or together with the one before.
enum Taken : char { kFree = 0, kFirst, kJoined };

struct Job {
  const DecodeParams& params;
  const Kernels& kernels;
  const std::vector<Cut>& cuts;
  const Partials& partials;
  Line* scratch;
  int64_t num_workers;
  // New elements of a vector are 0.
  std::vector<std::atomic<Taken>> taken = std::vector<std::atomic<Taken>>(cuts.size() - 1);
  std::vector<int64_t> divided = {};  // sequences that workers have left states of

  int64_t shares_of_each() const { return static_cast<int64_t>(taken.size()) / num_workers; }

  bool take(int64_t share, Taken how) {
    Taken expected = kFree;
    // Looks first: a failed exchange, too, takes the line from other cores.
    return taken[share] == kFree && taken[share].compare_exchange_strong(expected, how);
  }
};

// Shares that one worker takes one behind the other: `share`, and those before `last` that are free
// when it gets to them.
struct Run {
  Job& job;
  int64_t share;
  int64_t last;

  Cut end() const { return job.cuts[share + 1]; }

  // Takes the next shares, if they are free, when no unit behind `unit` is left, and returns where
  // the run then ends in sequence `seq`. To be asked before the chunk up to `unit` is attended, for
  // what is left to merge depends on it.
  int64_t extend(int64_t seq, int64_t unit) {
    while (end().seq == seq && end().unit <= unit && share + 1 < last &&
           job.take(share + 1, kJoined)) {
      ++share;
    }
    return end().seq == seq ? end().unit : num_units(job.params, seq);
  }
};

// The run's units of one sequence, from `begin` on.
void run_units(Run& run, int64_t seq, int64_t begin, float* scratch) {
  const Job& job = run.job;
  const DecodeParams& p = job.params;
  int64_t end = run.extend(seq, begin);
  if (begin >= end) return;
  const int64_t units = num_units(p, seq);
  const int64_t size = chunk_tokens(p, p.seq_lens[seq]);
  const int64_t kv_heads = p.kv_heads;
  float* query = scratch;
  float* acc = query + padded_heads(p) * p.head_dim;
  float* kernel_scratch = acc + 3 * p.heads * p.head_dim_v;
  float* max = kernel_scratch + scratch_floats(p);
  State total, span, fresh;
  for (State* state : {&total, &span, &fresh}) {
    *state = {max, max + p.heads, acc};
    max += 2 * p.heads;
    acc += p.heads * p.head_dim_v;
  }

  job.kernels.load_query(p, seq, query);
  for (int64_t chunk = begin / kv_heads; chunk * kv_heads < end; ++chunk) {
    end = run.extend(seq, (chunk + 1) * kv_heads);
    const int64_t kv_begin = std::max(begin - chunk * kv_heads, int64_t{0});
    const int64_t kv_end = std::min(end - chunk * kv_heads, kv_heads);
    const int64_t token = chunk * size;
    const int64_t token_end = std::min(token + size, int64_t{p.seq_lens[seq]});
    const int64_t first = chunk / kSpanChunks * kSpanChunks;  // of the span
    const State sum = first == 0 ? total : span;
    job.kernels.attend(p, seq, token, token_end, kv_begin, kv_end, query,
                       chunk == first ? sum : fresh, kernel_scratch);
    for (int64_t kv_head = kv_begin; kv_head < kv_end; ++kv_head) {
      const int64_t head = kv_head * p.group;
      const auto leave = [&](int64_t slot, State state) {
        copy_state(p.group, p.head_dim_v, job.partials.at(seq, slot, head),
                   rows_from(state, head, p.head_dim_v));
      };
      const auto fold = [&](State to, State next) {
        job.kernels.fold(p.group, p.head_dim_v, rows_from(to, head, p.head_dim_v),
                         rows_from(next, head, p.head_dim_v));
      };
      if (first * kv_heads + kv_head < begin) {  // the first one of the span is another run's
        leave(chunk, fresh);
        continue;
      }
      if (chunk > first) fold(sum, fresh);
      const int64_t next_unit = (chunk + 1) * kv_heads + kv_head;
      const bool whole = chunk + 1 == first + kSpanChunks || next_unit >= units;
      if (!whole && next_unit < end) continue;
      if (kv_head < begin) {  // chunk 0 is another run's
        leave(chunk, sum);
        continue;
      }
      if (whole && first > 0) fold(total, span);
      if (next_unit >= units) {
        job.kernels.finish(p, seq, head, p.group, rows_from(total, head, p.head_dim_v));
      } else if (next_unit >= end) {
        if (!whole && first > 0) leave(first - 1, total);
        leave(chunk, whole ? total : sum);
      }
    }
  }
}

void run_shares(Run run, float* scratch) {
  const Cut from = run.job.cuts[run.share];
  for (int64_t seq = from.seq; seq < run.end().seq || (seq == run.end().seq && run.end().unit > 0);
       ++seq) {
    run_units(run, seq, seq == from.seq ? from.unit : 0, scratch);
  }
}

void run_own(Job& job, int64_t worker, float* scratch) {
  const int64_t last = (worker + 1) * job.shares_of_each();
  for (int64_t share = last - job.shares_of_each(); share < last; ++share) {
    if (job.take(share, kFirst)) run_shares({job, share, last}, scratch);
  }
}

// First a worker's own shares, in order; then those that others have not begun, from the last one
// backwards, which they would come to last.
void run_worker(void* data, int64_t worker) {
  Job& job = *static_cast<Job*>(data);
  float* scratch = job.scratch[worker * worker_lines(job.params)].x;
  run_own(job, worker, scratch);
  const int64_t each = job.shares_of_each();
  for (int64_t i = 1; i < job.num_workers; ++i) {
    const int64_t first = (worker + i) % job.num_workers * each;
    for (int64_t share = first + each - 1; share >= first; --share) {
      if (job.take(share, kFirst)) run_shares({job, share, share + 1}, scratch);
    }
  }
}

// One kv head of one divided sequence: folds what the runs left, in the order of the chunks.
void merge_row(void* data, int64_t row) {
  const Job& job = *static_cast<const Job*>(data);
  const DecodeParams& p = job.params;
  const int64_t seq = job.divided[row / p.kv_heads];
  const int64_t kv_head = row % p.kv_heads;
  const int64_t head = kv_head * p.group;
  const int64_t chunks = num_chunks(p, seq);

  // The first chunk behind `chunk` with which another run begins; at most `chunks`.
  const auto next_cut = [&](int64_t chunk) {
    for (size_t share = 0; share < job.taken.size() && job.cuts[share].seq <= seq; ++share) {
      const Cut& cut = job.cuts[share];
      if (cut.seq == seq && cut.unit > chunk * p.kv_heads + kv_head &&
          job.taken[share] != kJoined) {
        return ceil_div(cut.unit - kv_head, p.kv_heads);
      }
    }
    return chunks;
  };

  const int64_t cut = next_cut(0);
  if (cut == chunks) return;  // the row is finished
  int64_t first = cut / kSpanChunks * kSpanChunks;
  const State total = job.partials.at(seq, first > 0 ? first - 1 : cut - 1, head);
  for (; first < chunks; first += kSpanChunks) {
    const int64_t end = std::min(first + kSpanChunks, chunks);
    int64_t chunk = std::min(next_cut(first), end);
    const State span = job.partials.at(seq, chunk - 1, head);
    for (; chunk < end; ++chunk) {
      job.kernels.fold(p.group, p.head_dim_v, span, job.partials.at(seq, chunk, head));
    }
    if (first > 0) job.kernels.fold(p.group, p.head_dim_v, total, span);
  }
  job.kernels.finish(p, seq, head, p.group, total);
}

// Finishes the rows that workers have left states of.
void merge(Job& job, const Threads& threads) {
  for (size_t share = 1; share < job.taken.size(); ++share) {
    const Cut& cut = job.cuts[share];
    if (job.taken[share] == kJoined || !divides(job.params, cut)) continue;
    if (job.divided.empty() || job.divided.back() != cut.seq) job.divided.push_back(cut.seq);
  }
  const int64_t rows = static_cast<int64_t>(job.divided.size()) * job.params.kv_heads;
  // So few rows that to wake a thread mostly takes longer.
  if (job.num_workers == 2 && job.divided.size() <= 1) {
    for (int64_t row = 0; row < rows; ++row) merge_row(&job, row);
  } else {
    threads.run(merge_row, &job, rows);
  }
}

void write_empty_row(const DecodeParams& p, int64_t seq) {
  const size_t bytes = p.head_dim_v * (p.dtype == DType::kFloat32 ? 4 : 2);
  for (int64_t head = 0; head < p.heads; ++head) {
    const int64_t offset = seq * p.out_stride_batch + head * p.out_stride_head;
    std::memset(static_cast<char*>(p.out) + offset * (p.dtype == DType::kFloat32 ? 4 : 2), 0,
                bytes);
    if (p.lse) p.lse[seq * p.heads + head] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace

Core core() {
#if defined(__x86_64__)
  static const Core found = [] {
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return Core::kOther;
    // The family, of which AMD alone has these. 0x19 is Zen 3 as well, which has no AVX-512 and
    // does not ask.
    switch ((eax >> 8 & 0xf) + (eax >> 20 & 0xff)) {
      case 0x19:
        return Core::kZen4;
      case 0x1a:
        return Core::kZen5;
      default:
        return Core::kOther;
    }
  }();
  return found;
#else
  return Core::kOther;
#endif
}

const char* isa_name() { return isa().name; }

void run_decode(const DecodeParams& p, const Threads& threads) {
  int64_t tokens = 0;
  for (int64_t seq = 0; seq < p.batch; ++seq) {
    if (p.seq_lens[seq] == 0) write_empty_row(p, seq);
    tokens += p.seq_lens[seq];
  }
  if (tokens == 0) return;

  const int64_t workers =
      std::clamp<int64_t>(multiply_adds(p, tokens) / kMinWorkPerThread, 1, threads.num_threads);
  const std::vector<Cut> cuts = partition(p, workers);
  Partials partials(p, cuts);
  const int64_t scratch = workers * worker_lines(p);
  const Memory memory(scratch + ceil_div(partials.num_floats(), 16));
  partials.set_data(reinterpret_cast<float*>(memory.lines() + scratch));
  Job job{p, kernels_for(p), cuts, partials, memory.lines(), workers};
  if (workers == 1) return run_worker(&job, 0);
  threads.run(run_worker, &job, workers);
  merge(job, threads);
}

}  // namespace pa_hp::cpu
