// Inner parts of libascendcl.so.
#pragma once
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "acl/acl.h"
#include "vnpu.h"

namespace vnpu {

constexpr int kInvalidParam = 107000;   // ACL_ERROR_RT_PARAM_INVALID
constexpr int kInvalidDevice = 107001;  // ACL_ERROR_RT_INVALID_DEVICEID
constexpr int kNoContext = 107002;      // ACL_ERROR_RT_CONTEXT_NULL
constexpr int kOutOfMemory = 207001;    // ACL_ERROR_RT_MEMORY_ALLOCATION
constexpr int kDeviceError = 507015;    // ACL_ERROR_RT_AICORE_EXCEPTION
constexpr int kMaxDevices = 16;

// How often the host did what a captured decode step must not do; vnpu_counter reads them.
struct Counters {
  std::atomic<uint64_t> synchronise{0}, device_to_host{0}, host_to_device{0}, malloc{0}, tasks{0};
};
extern Counters g_counters;
extern std::atomic<bool> g_dropping;  // see vnpu_drop_tasks

// A point of a stream that others can wait for: an event's record makes a new one.
struct Mark {
  std::mutex mutex;
  std::condition_variable reached_cv;
  bool reached = false;
  double model_us = 0;  // the stream's modelled clock when it got there
  void reach(double now_us);
  void wait();
  bool is_reached();
};

struct Entry {
  const char* name;
  Task task;
};

// A captured graph: its tasks in the order of submission, which respects every dependency.
struct Graph {
  uint32_t id;
  std::vector<std::shared_ptr<Entry>> entries;
  bool invalid = false;
  std::shared_ptr<Graph> self;  // until its handle is destroyed
};
extern std::mutex g_update;  // held while a task of a graph is read or replaced

// The tasks between TaskGrpBegin and TaskGrpEnd; an update replaces them one by one.
struct TaskGroup {
  std::vector<std::shared_ptr<Entry>> entries;
};

struct Stream {
  int32_t id;
  int device;
  uint32_t priority = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Entry> queue;
  uint64_t submitted = 0, done = 0;
  bool stop = false;
  double model_us = 0;  // worker only
  std::shared_ptr<Graph> capture;
  TaskGroup* group = nullptr;   // being captured
  TaskGroup* update = nullptr;  // being replaced
  size_t updated = 0;
};

struct Event {
  std::mutex mutex;
  std::shared_ptr<Mark> mark;      // of the latest record
  std::shared_ptr<Graph> capture;  // recorded by a stream that captures
  bool external = false;           // waited for by a graph, recorded outside of it
  std::condition_variable recorded;
};

// device.cpp
int current_device();  // of this thread; -1 if not set
int num_devices();

// stream.cpp
Stream* resolve(void* stream);  // null: the default stream of the current device
void run(Stream& stream, const Entry& entry);
void wait_idle(Stream& stream);
void drain_all();
int running_device();        // of the task that this thread runs; -1 outside of one
int take_error(int device);  // 0, or the first error that nobody has been told of
void end_capture(const std::shared_ptr<Graph>& graph);

// memory.cpp
bool is_pinned(const void* address);
bool is_device(const void* address);
std::string describe(uint64_t address);  // where it lies: "16 bytes past the end of ..."; or ""

struct Region {
  uint64_t begin, end;
  std::string name;
};
std::vector<Region> regions_of(int device);  // its live blocks

// fault.cpp
// Runs a task; an access outside of any live block becomes an error with a name.
int run_guarded(const Entry& entry, std::string& message);
void catch_faults();

}  // namespace vnpu
