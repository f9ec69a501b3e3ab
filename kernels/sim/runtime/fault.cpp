// Accesses outside of every live block: a task that makes one ends there, with the place's name.
#include <csetjmp>
#include <cstdio>
#include <exception>

#include "runtime.h"

namespace vnpu {
namespace {

struct Guard {
  sigjmp_buf back;
  uint64_t address = 0;
};
thread_local Guard* t_guard = nullptr;
struct sigaction g_before;

void on_fault(int number, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uint64_t>(info->si_addr);
  if (t_guard != nullptr) {
    t_guard->address = address;
    siglongjmp(t_guard->back, 1);
  }
  // The host's own access: name it and let the process end as it would.
  if (const std::string where = describe(address); !where.empty()) {
    std::fprintf(stderr, "vnpu: the host touched device memory %s\n", where.c_str());
  }
  if ((g_before.sa_flags & SA_SIGINFO) && g_before.sa_sigaction != nullptr) {
    g_before.sa_sigaction(number, info, context);
  } else {
    sigaction(SIGSEGV, &g_before, nullptr);  // returning repeats the access
  }
}

}  // namespace

void catch_faults() {
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  // NODEFER: the handler is left by a jump, so the signal must not stay blocked.
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  sigaction(SIGSEGV, &action, &g_before);
}

int run_guarded(const Entry& entry, std::string& message) {
  Guard guard;
  Guard* const outer = t_guard;
  // NOTE: the jump skips destructors of what the task has on its stack: memory may leak, no more,
  // as tasks are single-threaded (OMP_NUM_THREADS=1 in `python -m pa_hp vnpu`).
  if (sigsetjmp(guard.back, 0) != 0) {
    t_guard = outer;
    const std::string where = describe(guard.address);
    char text[32];
    std::snprintf(text, sizeof(text), "0x%lx", static_cast<unsigned long>(guard.address));
    message = std::string(entry.name) + " accessed " + text + ", " +
              (where.empty() ? "which is no device memory" : where);
    return kDeviceError;
  }
  t_guard = &guard;
  int error = 0;
  try {
    error = entry.task();
    if (error != 0) message = std::string(entry.name) + " returned " + std::to_string(error);
  } catch (const std::exception& thrown) {
    error = kDeviceError;
    message = std::string(entry.name) + ": " + thrown.what();
  }
  t_guard = outer;
  return error;
}

}  // namespace vnpu
