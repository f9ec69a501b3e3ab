// Kernels: registered as CANN's compiler does it, run by the simulator (kernels/sim).
//
// A device binary of the virtual NPU is the text "vnpu <mix|aic|aiv> <directory>", the directory
// being that of the kernel's halves as kernels/sim/toolchain.py builds them.
#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <sstream>

#include "../api.h"
#include "runtime.h"

namespace vnpu {
namespace {

struct Kernel {
  int cores_kind = 0;
  SimEntry cube = nullptr, vector = nullptr;
};

struct Simulator {
  decltype(&pa_sim_launch) launch = nullptr;
  decltype(&pa_sim_report) report = nullptr;
  decltype(&pa_sim_time) time = nullptr;
  decltype(&pa_sim_free) free = nullptr;
  std::vector<double> chip;  // parameters of its timing model
  std::mutex running;        // it runs one kernel at a time
};

struct Kernels {
  std::mutex mutex;
  std::map<const void*, std::shared_ptr<Kernel>> by_stub;
  std::map<std::string, std::shared_ptr<Kernel>> by_name;
};

Kernels& kernels() {
  static Kernels* const one = new Kernels;
  return *one;
}

// Null if `python -m pa_hp vnpu` has not named the simulator's library.
Simulator* simulator() {
  static Simulator* const one = []() -> Simulator* {
    void* library = dlopen(setting("PA_HP_VNPU_SIM", "").c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) return nullptr;
    auto* sim = new Simulator;
    const auto find = [library](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    if (!find(sim->launch, "pa_sim_launch") || !find(sim->report, "pa_sim_report") ||
        !find(sim->time, "pa_sim_time") || !find(sim->free, "pa_sim_free")) {
      return nullptr;
    }
    std::istringstream values(setting("PA_HP_VNPU_CHIP", ""));
    for (std::string value; std::getline(values, value, ',');) {
      sim->chip.push_back(std::stod(value));
    }
    return sim;
  }();
  return one;
}

// The string behind `"key": "` in the simulator's report; "" if there is none.
std::string text_of(const std::string& json, const std::string& key) {
  const std::string mark = "\"" + key + "\": \"";
  size_t at = json.find(mark);
  std::string text;
  if (at == std::string::npos) return text;
  for (at += mark.size(); at < json.size() && json[at] != '"'; ++at) {
    if (json[at] == '\\' && at + 1 < json.size()) ++at;
    text += json[at];
  }
  return text;
}

void run_kernel(const Kernel& kernel, uint32_t blocks, const std::vector<uint64_t>& words) {
  Simulator& sim = *simulator();
  const std::vector<Region> regions = regions_of(running_device());
  std::vector<uint64_t> begins, ends;
  std::vector<const char*> names;
  for (const Region& region : regions) {
    begins.push_back(region.begin);
    ends.push_back(region.end);
    names.push_back(region.name.c_str());
  }
  SimOptions options = {};
  options.block_dim = static_cast<int32_t>(blocks);
  options.cores_kind = kernel.cores_kind;
  options.check = setting("PA_HP_VNPU_CHECK", "1") == "1";
  options.record = !sim.chip.empty();
  options.poison = 0xFF;
  options.drop = "";
  const std::lock_guard hold(sim.running);
  void* handle = sim.launch(&options, kernel.cube, kernel.vector, words.data(),
                            static_cast<int32_t>(words.size()), static_cast<int32_t>(names.size()),
                            begins.data(), ends.data(), names.data());
  const std::string report = sim.report(handle);
  std::string wrong = text_of(report, "failure");
  if (wrong.empty()) wrong = text_of(report, "message");
  if (wrong.empty() && options.record) {
    const std::string timing = sim.time(handle, sim.chip.data(), 0);
    const size_t at = timing.find("\"time_us\": ");
    if (at != std::string::npos) advance(std::atof(timing.c_str() + at + 11));
  }
  sim.free(handle);
  if (!wrong.empty()) throw std::runtime_error(wrong);
}

int submit_kernel(const std::shared_ptr<Kernel>& kernel, const char* name, uint32_t blocks,
                  void* stream, std::vector<uint64_t> words) {
  if (simulator() == nullptr) return fail(kInvalidParam, "no simulator: PA_HP_VNPU_SIM");
  return submit(stream, name, [kernel, blocks, words = std::move(words)] {
    run_kernel(*kernel, blocks, words);
    return 0;
  });
}

SimEntry entry_of(const std::string& path) {
  void* half = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  return half == nullptr ? nullptr : reinterpret_cast<SimEntry>(dlsym(half, "pa_sim_entry"));
}

}  // namespace
}  // namespace vnpu

using namespace vnpu;

extern "C" {

struct rtDevBinary {
  uint32_t magic;
  uint32_t version;
  const void* data;
  uint64_t length;
};

VNPU_EXPORT int rtDevBinaryRegister(const rtDevBinary* binary, void** handle) {
  std::istringstream words(std::string(static_cast<const char*>(binary->data), binary->length));
  std::string mark, cores, folder;
  words >> mark >> cores;
  std::getline(words >> std::ws, folder);
  if (mark != "vnpu") {
    return fail(500001, "rtDevBinaryRegister: a binary for the chip cannot run on the virtual NPU");
  }
  if (simulator() == nullptr) return fail(kInvalidParam, "no simulator: PA_HP_VNPU_SIM");
  auto* kernel = new Kernel;
  kernel->cores_kind = cores == "mix" ? 0 : cores == "aic" ? 1 : 2;
  if (cores != "aiv") kernel->cube = entry_of(folder + "/cube.so");
  if (cores != "aic") kernel->vector = entry_of(folder + "/vector.so");
  if ((cores != "aiv" && kernel->cube == nullptr) ||
      (cores != "aic" && kernel->vector == nullptr)) {
    return fail(kInvalidParam, "rtDevBinaryRegister: expected a kernel in " + folder);
  }
  *handle = kernel;
  return 0;
}

VNPU_EXPORT int rtFunctionRegister(void* binary, const void* stub, const char* name, const void*,
                                   uint32_t) {
  const std::lock_guard hold(kernels().mutex);
  const auto kernel = std::make_shared<Kernel>(*static_cast<Kernel*>(binary));
  kernels().by_stub[stub] = kernel;
  kernels().by_name[name] = kernel;
  return 0;
}

VNPU_EXPORT int rtKernelLaunch(const void* stub, uint32_t blocks, void* args, uint32_t bytes, void*,
                               void* stream) {
  std::unique_lock hold(kernels().mutex);
  const auto found = kernels().by_stub.find(stub);
  if (found == kernels().by_stub.end()) {
    return fail(kInvalidParam, "rtKernelLaunch: expected a registered kernel");
  }
  const std::shared_ptr<Kernel> kernel = found->second;
  hold.unlock();
  const auto* words = static_cast<const uint64_t*>(args);
  return submit_kernel(kernel, "rtKernelLaunch", blocks, stream, {words, words + bytes / 8});
}

VNPU_EXPORT int vnpu_launch(const char* name, uint32_t blocks, void* stream, const uint64_t* words,
                            uint32_t num_words) {
  if (g_dropping) return 0;
  std::unique_lock hold(kernels().mutex);
  const auto found = kernels().by_name.find(name);
  if (found == kernels().by_name.end()) {
    return fail(kInvalidParam, std::string("no kernel is registered as ") + name);
  }
  const std::shared_ptr<Kernel> kernel = found->second;
  const char* known_as = found->first.c_str();  // never removed
  hold.unlock();
  return submit_kernel(kernel, known_as, blocks, stream, {words, words + num_words});
}

// Where the chip's cross-core flags live; the simulator has its own, so any address will do.
VNPU_EXPORT int rtGetC2cCtrlAddr(uint64_t* address, uint32_t* length) {
  static uint64_t flags[64];
  *address = reinterpret_cast<uint64_t>(flags);
  *length = sizeof(flags);
  return 0;
}

}  // extern "C"
