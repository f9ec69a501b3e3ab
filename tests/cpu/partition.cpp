// What each share of the CPU kernel's work attends: its cuts and the walk over it, with kernels
// that write down what they are asked for instead of doing it.
#include "../../kernels/cpu/decode.cpp"
#include "absent.h"

namespace {

struct Log {
  int64_t* rows;
  int64_t capacity;
  int64_t count;
  int64_t run;  // share or worker
};
Log calls;

constexpr int64_t kFields = 6;

void note(const pa_hp::DecodeParams&, int64_t seq, int64_t begin, int64_t end, int64_t kv_begin,
          int64_t kv_end, float*, pa_hp::cpu::State, float*) {
  if (calls.count < calls.capacity) {
    const int64_t row[kFields] = {calls.run, seq, begin, end, kv_begin, kv_end};
    std::copy_n(row, kFields, calls.rows + calls.count * kFields);
  }
  ++calls.count;
}

void load_nothing(const pa_hp::DecodeParams&, int64_t, float*) {}
void fold_nothing(int64_t, int64_t, pa_hp::cpu::State, pa_hp::cpu::State) {}
void finish_nothing(const pa_hp::DecodeParams&, int64_t, int64_t, int64_t, pa_hp::cpu::State) {}

}  // namespace

namespace pa_hp::cpu {
namespace baseline {
const Kernels kernels{load_nothing, note, fold_nothing, finish_nothing};
}
}  // namespace pa_hp::cpu

// Rows of (share, seq, first token, end of tokens, first kv head, end of kv heads), in the order of
// the shares, or as workers take them who run one after the other: of (worker, ...). Returns their
// number, which may be more than there was room for.
extern "C" int64_t partition_calls(const int32_t* seq_lens, int64_t batch, int64_t kv_heads,
                                   int64_t heads_together, int64_t workers, int64_t by_workers,
                                   int64_t* rows, int64_t capacity) {
  using namespace pa_hp::cpu;
  pa_hp::DecodeParams p{};
  p.seq_lens = seq_lens;
  p.batch = batch;
  p.heads = p.kv_heads = kv_heads;
  p.group = p.head_dim_v = 1;
  p.head_dim = 512;  // from 8 kv heads on work for two
  p.key_stride_head = heads_together ? 1 : kChunkTokens;
  p.key_stride_token = heads_together ? kv_heads + 1 : 1;
  const std::vector<Cut> cuts = partition(p, workers);
  Partials partials(p, cuts);
  std::vector<float> states(partials.num_floats());
  partials.set_data(states.data());
  const std::unique_ptr<Line[]> scratch(new Line[workers * worker_lines(p)]());
  Job job{p, baseline::kernels, cuts, partials, scratch.get()};
  calls = {rows, capacity, 0, 0};
  const int64_t runs = by_workers ? workers : static_cast<int64_t>(cuts.size()) - 1;
  for (; calls.run < runs; ++calls.run) {
    by_workers ? run_worker(&job, calls.run) : run_share(job, calls.run, scratch[0].x);
  }
  return calls.count;
}
