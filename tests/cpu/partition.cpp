// What each share of the CPU kernel's work attends: its cuts and the walk over it, with kernels
// that write down what they are asked for instead of doing it, and fold numbers that tell in which
// order.
#include "../../kernels/cpu/decode.cpp"
#include "absent.h"

namespace {

struct Log {
  int64_t* rows;
  int64_t capacity;
  int64_t count;
  int64_t run;  // share or worker
  uint32_t* finished;
};
Log calls;

constexpr int64_t kFields = 6;

uint32_t number(const pa_hp::cpu::State& state, int64_t head) {
  uint32_t bits;
  std::memcpy(&bits, state.acc + head, sizeof bits);
  return bits;
}

void set_number(const pa_hp::cpu::State& state, int64_t head, uint64_t value) {
  const uint32_t bits = static_cast<uint32_t>(value ^ value >> 32);
  std::memcpy(state.acc + head, &bits, sizeof bits);
}

void note(const pa_hp::DecodeParams&, int64_t seq, int64_t begin, int64_t end, int64_t kv_begin,
          int64_t kv_end, float*, pa_hp::cpu::State state, float*) {
  if (calls.count < calls.capacity) {
    const int64_t row[kFields] = {calls.run, seq, begin, end, kv_begin, kv_end};
    std::copy_n(row, kFields, calls.rows + calls.count * kFields);
  }
  ++calls.count;
  for (int64_t kv_head = kv_begin; kv_head < kv_end; ++kv_head) {
    set_number(state, kv_head, ((seq << 20) + begin + kv_head + 1) * 0x9e3779b97f4a7c15);
  }
}

void load_nothing(const pa_hp::DecodeParams&, int64_t, float*) {}

void fold_numbers(int64_t, int64_t, pa_hp::cpu::State state, pa_hp::cpu::State next) {
  set_number(state, 0, number(state, 0) * 0x9e3779b97f4a7c15 + number(next, 0));
}

void finish_number(const pa_hp::DecodeParams& p, int64_t seq, int64_t head, int64_t,
                   pa_hp::cpu::State state) {
  if (calls.finished != nullptr) calls.finished[seq * p.heads + head] = number(state, 0);
}

}  // namespace

namespace pa_hp::cpu {
namespace baseline {
const Kernels kernels{load_nothing, note, fold_numbers, finish_number};
}
}  // namespace pa_hp::cpu

namespace {

struct Work {
  Work(const int32_t* seq_lens, int64_t batch, int64_t kv_heads, bool heads_together,
       int64_t workers)
      : p(params(seq_lens, batch, kv_heads, heads_together)),
        cuts(pa_hp::cpu::partition(p, workers)),
        partials(p, cuts),
        states(partials.num_floats(), 1.f),  // what nobody has left shows
        scratch(new pa_hp::cpu::Line[workers * pa_hp::cpu::worker_lines(p)]()),
        job{p, pa_hp::cpu::baseline::kernels, cuts, partials, scratch.get(), workers} {
    partials.set_data(states.data());
  }

  static pa_hp::DecodeParams params(const int32_t* seq_lens, int64_t batch, int64_t kv_heads,
                                    bool heads_together) {
    pa_hp::DecodeParams p{};
    p.seq_lens = seq_lens;
    p.batch = batch;
    p.heads = p.kv_heads = kv_heads;
    p.group = p.head_dim_v = 1;
    p.head_dim = 512;  // from 8 kv heads on work for two
    p.key_stride_head = heads_together ? 1 : pa_hp::cpu::kChunkTokens;
    p.key_stride_token = heads_together ? kv_heads + 1 : 1;
    return p;
  }

  int64_t shares() const { return static_cast<int64_t>(cuts.size()) - 1; }

  pa_hp::DecodeParams p;
  std::vector<pa_hp::cpu::Cut> cuts;
  pa_hp::cpu::Partials partials;
  std::vector<float> states;
  std::unique_ptr<pa_hp::cpu::Line[]> scratch;
  pa_hp::cpu::Job job;
};

void run_serially(void (*body)(void*, int64_t), void* data, int64_t n) {
  for (int64_t i = 0; i < n; ++i) body(data, i);
}

}  // namespace

// Rows of (share, seq, first token, end of tokens, first kv head, end of kv heads), in the order of
// the shares, or as workers take them who run one after the other: of (worker, ...). Returns their
// number, which may be more than there was room for.
extern "C" int64_t partition_calls(const int32_t* seq_lens, int64_t batch, int64_t kv_heads,
                                   int64_t heads_together, int64_t workers, int64_t by_workers,
                                   int64_t* rows, int64_t capacity) {
  using namespace pa_hp::cpu;
  Work work(seq_lens, batch, kv_heads, heads_together, workers);
  calls = {rows, capacity, 0, 0, nullptr};
  for (; calls.run < (by_workers ? workers : work.shares()); ++calls.run) {
    if (by_workers) {
      run_worker(&work.job, calls.run);
    } else {
      run_shares({work.job, calls.run, calls.run + 1}, work.scratch[0].x);
    }
  }
  return calls.count;
}

// What finish gets for each row, where first the shares at `stolen` places of all (below 1) are
// taken by themselves, then each worker takes what is left of its own, then it is merged.
extern "C" void finished_rows(const int32_t* seq_lens, int64_t batch, int64_t kv_heads,
                              int64_t workers, const double* stolen, int64_t count,
                              uint32_t* finished) {
  using namespace pa_hp::cpu;
  Work work(seq_lens, batch, kv_heads, true, workers);
  calls = {nullptr, 0, 0, 0, finished};
  float* scratch = work.scratch[0].x;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t share = static_cast<int64_t>(stolen[i] * static_cast<double>(work.shares()));
    if (work.job.take(share, kFirst)) run_shares({work.job, share, share + 1}, scratch);
  }
  for (int64_t worker = 0; worker < workers; ++worker) run_own(work.job, worker, scratch);
  merge(work.job, {1, run_serially});
}
