// The simulator's C interface, for ctypes.
#include "api.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "core.h"
#include "timing.h"

namespace {

using namespace sim;

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    // No message needs a control character; JSON must not have one.
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "\"";
}

struct Handle {
  std::unique_ptr<Launch> launch;
  std::string report;
  Timing timing;
};

using Entry = SimEntry;

void swap_in(std::map<std::pair<uint64_t, uint64_t>, Launch::Saved>& journal) {
  for (auto& [place, saved] : journal) {
    auto* memory = reinterpret_cast<uint8_t*>(saved.begin);
    std::swap_ranges(saved.bytes.begin(), saved.bytes.end(), memory);
  }
}

// Runs the kernel again from the same GM with other bytes in the local memories: where the results
// differ, something that nobody wrote has reached them. What is read and then ignored does no harm.
void find_uninitialised(Launch& first, Options options, int cores_kind, Entry cube, Entry vector,
                        const uint64_t* args, int num_args) {
  if (first.unwritten().empty()) return;
  auto& journal = first.journal();
  swap_in(journal);  // memory: as before the launch; journal: results of the first run
  options.check = false;
  options.record = false;
  options.poison = 0x35;  // 0.33 in fp16, 6.7e-7 in bf16 and fp32: an ordinary number in every type
  {
    Launch second(options, first.regions(), cores_kind);
    second.run(cube, vector, args, num_args);
    bool other_way = !second.failure().empty();
    for (auto& [place, saved] : second.journal()) {
      if (journal.count(place)) continue;
      other_way = true;  // a store that the first run has not made: undo it
      std::copy(saved.bytes.begin(), saved.bytes.end(), reinterpret_cast<uint8_t*>(saved.begin));
    }
    if (other_way) {
      first.find("uninitialised",
                 "what the kernel does, and not only its results, depends on local "
                 "memory that nothing wrote");
    }
  }
  std::string readers;
  for (size_t i = 0; i < first.unwritten().size() && i < 3; ++i) {
    readers += (i ? ", " : "") + first.unwritten()[i];
  }
  for (auto& [place, saved] : journal) {
    const auto* memory = reinterpret_cast<const uint8_t*>(saved.begin);
    const auto differ = std::mismatch(saved.bytes.begin(), saved.bytes.end(), memory);
    if (differ.first == saved.bytes.end()) continue;
    const Region& region = *first.region_of(saved.begin);
    const uint64_t at = saved.begin + (differ.first - saved.bytes.begin()) - region.begin;
    first.find_at(
        "uninitialised " + region.name,
        {"uninitialised", "GM " + region.name, at, at + 1,
         "depends on local memory that nothing wrote; such memory is read at " + readers});
  }
  swap_in(journal);
}

}  // namespace

extern "C" {

void* pa_sim_launch(const SimOptions* options, Entry cube, Entry vector, const uint64_t* args,
                    int32_t num_args, int32_t num_regions, const uint64_t* begins,
                    const uint64_t* ends, const char* const* names) {
  std::vector<Region> regions;
  for (int i = 0; i < num_regions; ++i) regions.push_back({names[i], begins[i], ends[i]});
  Options o;
  o.block_dim = options->block_dim;
  o.check = options->check;
  o.strict_visibility = options->strict_visibility;
  o.latest = options->latest;
  o.record = options->record;
  o.poison = static_cast<uint8_t>(options->poison);
  o.seed = options->seed;
  o.drop = options->drop;
  o.blind = options->blind;
  auto* handle = new Handle;
  handle->launch = std::make_unique<Launch>(o, std::move(regions), options->cores_kind);
  handle->launch->run(cube, vector, args, num_args);
  if (o.check && handle->launch->failure().empty()) {
    find_uninitialised(*handle->launch, o, options->cores_kind, cube, vector, args, num_args);
  }

  std::ostringstream text;
  text << "{\"failure\": " << quoted(handle->launch->failure()) << ", \"findings\": [";
  const char* comma = "";
  for (const Finding& finding : handle->launch->findings()) {
    text << comma << "{\"kind\": " << quoted(finding.kind)
         << ", \"message\": " << quoted(finding.message()) << ", \"count\": " << finding.count
         << "}";
    comma = ", ";
  }
  text << "], \"sync_sites\": {";
  comma = "";
  for (const auto& [site, count] : handle->launch->sync_sites()) {
    text << comma << quoted(site) << ": " << count;
    comma = ", ";
  }
  uint64_t ops = 0;
  for (const auto& core : handle->launch->cores()) ops += core->records.size();
  text << "}, \"ops\": " << ops << "}";
  handle->report = text.str();
  return handle;
}

const char* pa_sim_report(void* handle) { return static_cast<Handle*>(handle)->report.c_str(); }

// Names of the parameters that pa_sim_time takes, in their order, with commas between.
const char* pa_sim_parameters() {
  static const std::string text = [] {
    std::string names;
    for (const char* name : kParameters) names += (names.empty() ? "" : ",") + std::string(name);
    return names;
  }();
  return text.c_str();
}

const char* pa_sim_time(void* handle, const double* parameters, int32_t warm) {
  auto* h = static_cast<Handle*>(handle);
  h->timing = time_launch(*h->launch, parameters, warm != 0);
  return h->timing.json.c_str();
}

// How many records pa_sim_events fills in, and waits pa_sim_edges. Only after pa_sim_time.
uint64_t pa_sim_num_events(void* handle) {
  return static_cast<Handle*>(handle)->timing.start.size();
}

// Per record, core after core: times in us, and core, pipe, Kind, label, flag or counter id, GM
// bytes.
void pa_sim_events(void* handle, double* start, double* end, int32_t* fields) {
  auto* h = static_cast<Handle*>(handle);
  std::copy(h->timing.start.begin(), h->timing.start.end(), start);
  std::copy(h->timing.end.begin(), h->timing.end.end(), end);
  size_t i = 0;
  for (const auto& core : h->launch->cores()) {
    for (const Record& record : core->records) {
      const uint64_t bytes =
          record.gm.mem == kGm ? uint64_t{record.gm.bytes} * record.gm.inner * record.gm.outer : 0;
      *fields++ = core->index;
      *fields++ = record.all_pipes ? kS : record.pipe;
      *fields++ = static_cast<int32_t>(record.kind);
      *fields++ = h->timing.label[i++];
      *fields++ = record.id;
      *fields++ = static_cast<int32_t>(std::min<uint64_t>(bytes, INT32_MAX));
    }
  }
}

// Pairs of records (set or signal, wait); null only counts them.
uint64_t pa_sim_edges(void* handle, int64_t* pairs) {
  auto* h = static_cast<Handle*>(handle);
  std::vector<int64_t> first{0};
  for (const auto& core : h->launch->cores()) {
    first.push_back(first.back() + static_cast<int64_t>(core->records.size()));
  }
  uint64_t count = 0;
  for (const auto& core : h->launch->cores()) {
    for (size_t i = 0; i < core->records.size(); ++i) {
      for (const auto& [from_core, from_record] : core->records[i].after) {
        ++count;
        if (pairs == nullptr) continue;
        *pairs++ = first[from_core] + from_record;
        *pairs++ = first[core->index] + static_cast<int64_t>(i);
      }
    }
  }
  return count;
}

void pa_sim_free(void* handle) { delete static_cast<Handle*>(handle); }

// ---- Scalar accesses of the kernel
// ----------------------------------------------------------------------

// Kernel sources are compiled with -fsanitize=thread and linked without its runtime: every load and
// store of memory then calls one of these, and the simulator sees the scalar unit's GM accesses.
// Stack and static data are the host's.
static void scalar(void* address, uint32_t bytes, bool write, const void* pc) {
  if (g_launch == nullptr) return;
  const auto where = reinterpret_cast<uint64_t>(address);
  if (g_launch->is_host(where)) return;
  g_launch->scalar_access(where, bytes, write, Site{nullptr, 0, pc});
}

#define PA_SIM_TSAN(SIZE)                                                                  \
  void __tsan_read##SIZE(void* p) { scalar(p, SIZE, false, __builtin_return_address(0)); } \
  void __tsan_write##SIZE(void* p) { scalar(p, SIZE, true, __builtin_return_address(0)); } \
  void __tsan_unaligned_read##SIZE(void* p) {                                              \
    scalar(p, SIZE, false, __builtin_return_address(0));                                   \
  }                                                                                        \
  void __tsan_unaligned_write##SIZE(void* p) {                                             \
    scalar(p, SIZE, true, __builtin_return_address(0));                                    \
  }                                                                                        \
  void __tsan_volatile_read##SIZE(void* p) {                                               \
    scalar(p, SIZE, false, __builtin_return_address(0));                                   \
  }                                                                                        \
  void __tsan_volatile_write##SIZE(void* p) { scalar(p, SIZE, true, __builtin_return_address(0)); }
PA_SIM_TSAN(1)
PA_SIM_TSAN(2)
PA_SIM_TSAN(4)
PA_SIM_TSAN(8)
PA_SIM_TSAN(16)
void __tsan_read_range(void* p, size_t n) { scalar(p, n, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { scalar(p, n, true, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  scalar(const_cast<void*>(from), n, false, __builtin_return_address(0));
  scalar(to, n, true, __builtin_return_address(0));
  return std::memcpy(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  scalar(to, n, true, __builtin_return_address(0));
  return std::memset(to, value, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  scalar(const_cast<void*>(from), n, false, __builtin_return_address(0));
  scalar(to, n, true, __builtin_return_address(0));
  return std::memmove(to, from, n);
}

}  // extern "C"
