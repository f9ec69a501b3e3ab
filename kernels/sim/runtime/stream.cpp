// Streams, each with a worker thread that runs its tasks in order, and events.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "runtime.h"

namespace vnpu {

Counters g_counters;
std::atomic<bool> g_dropping{false};
std::mutex g_update;

namespace {

struct Registry {
  std::mutex mutex;
  std::set<Stream*> live;
  Stream* by_default[kMaxDevices] = {};
  // Errors of tasks, per device, until a synchronisation reports the first.
  std::string error_text[kMaxDevices];
  int error[kMaxDevices] = {};
  int32_t next_id = 0;
  pid_t owner = getpid();
};

// Never destroyed: workers outlive main's end.
Registry& registry() {
  static Registry* const one = new Registry;
  return *one;
}

thread_local Stream* t_stream = nullptr;  // whose task this thread runs

void work(Stream* stream) {
  static const int jitter = std::stoi(setting("PA_HP_VNPU_JITTER_US", "0"));
  uint32_t random = 2463534242u + static_cast<uint32_t>(stream->id);
  std::unique_lock hold(stream->mutex);
  for (;;) {
    stream->changed.wait(hold, [&] { return stream->stop || !stream->queue.empty(); });
    if (stream->queue.empty()) break;
    const Entry entry = std::move(stream->queue.front());
    stream->queue.pop_front();
    hold.unlock();
    if (jitter > 0) {
      random ^= random << 13, random ^= random >> 17, random ^= random << 5;
      std::this_thread::sleep_for(std::chrono::microseconds(random % jitter));
    }
    run(*stream, entry);
    hold.lock();
    ++stream->done;
    stream->changed.notify_all();
  }
  hold.unlock();
  delete stream;  // aclrtDestroyStream has given it up
}

Stream* create(int device, uint32_t priority) {
  auto* stream = new Stream;
  Registry& r = registry();
  stream->id = r.next_id++;
  stream->device = device;
  stream->priority = priority;
  r.live.insert(stream);
  std::thread(work, stream).detach();
  return stream;
}

std::vector<Stream*> streams_of(int device) {
  const std::lock_guard hold(registry().mutex);
  std::vector<Stream*> found;
  for (Stream* stream : registry().live) {
    if (device < 0 || stream->device == device) found.push_back(stream);
  }
  return found;
}

int refuse_capture(const Stream& stream, const char* what) {
  stream.capture->invalid = true;
  return fail(ACL_ERROR_RT_STREAM_CAPTURED, std::string(what) + ": the stream is being captured");
}

}  // namespace

void Mark::reach(double now_us) {
  const std::lock_guard hold(mutex);
  model_us = now_us;
  reached = true;
  reached_cv.notify_all();
}

void Mark::wait() {
  std::unique_lock hold(mutex);
  reached_cv.wait(hold, [&] { return reached; });
}

bool Mark::is_reached() {
  const std::lock_guard hold(mutex);
  return reached;
}

Stream* resolve(void* stream) {
  Registry& r = registry();
  const std::lock_guard hold(r.mutex);
  if (stream != nullptr) {
    auto* known = static_cast<Stream*>(stream);
    return r.live.count(known) ? known : nullptr;
  }
  const int device = current_device();
  if (device < 0) return nullptr;
  Stream*& own = r.by_default[device];
  if (own == nullptr) own = create(device, 0);
  return own;
}

void run(Stream& stream, const Entry& entry) {
  trace(entry.name);
  Stream* const outer = t_stream;
  t_stream = &stream;
  std::string message;
  const int error = run_guarded(entry, message);
  t_stream = outer;
  if (error == 0) return;
  std::fprintf(stderr, "vnpu: error %d on device %d: %s\n", error, stream.device, message.c_str());
  Registry& r = registry();
  const std::lock_guard hold(r.mutex);
  if (r.error[stream.device] != 0) return;
  r.error[stream.device] = error;
  r.error_text[stream.device] = message;
}

void advance(double microseconds) {
  if (t_stream != nullptr) t_stream->model_us += microseconds;
}

int running_device() { return t_stream == nullptr ? -1 : t_stream->device; }

int submit(void* handle, const char* name, Task task) {
  Stream* stream = resolve(handle);
  if (stream == nullptr) return fail(kInvalidParam, std::string(name) + ": no such stream");
  ++g_counters.tasks;
  if (g_dropping) return 0;
  const std::lock_guard hold(stream->mutex);
  if (stream->update != nullptr) {
    if (stream->updated == stream->update->entries.size()) {
      return fail(kInvalidParam,
                  std::string(name) + ": more tasks than the group was captured with");
    }
    const std::lock_guard replacing(g_update);
    *stream->update->entries[stream->updated++] = {name, std::move(task)};
  } else if (stream->capture) {
    auto entry = std::make_shared<Entry>(Entry{name, std::move(task)});
    stream->capture->entries.push_back(entry);
    if (stream->group != nullptr) stream->group->entries.push_back(entry);
  } else {
    stream->queue.push_back({name, std::move(task)});
    ++stream->submitted;
    stream->changed.notify_all();
  }
  return 0;
}

void wait_idle(Stream& stream) {
  std::unique_lock hold(stream.mutex);
  const uint64_t until = stream.submitted;
  stream.changed.wait(hold, [&] { return stream.done >= until; });
}

void drain_all() {
  if (getpid() != registry().owner) return;  // a fork has no workers
  for (Stream* stream : streams_of(-1)) wait_idle(*stream);
}

int take_error(int device) {
  Registry& r = registry();
  std::string text;
  int error = 0;
  {
    const std::lock_guard hold(r.mutex);
    std::swap(error, r.error[device]);
    std::swap(text, r.error_text[device]);
  }
  return error == 0 ? 0 : note(error, text);  // printed when it happened
}

void end_capture(const std::shared_ptr<Graph>& graph) {
  for (Stream* stream : streams_of(-1)) {
    const std::lock_guard hold(stream->mutex);
    if (stream->capture == graph) stream->capture.reset();
  }
}

}  // namespace vnpu

using namespace vnpu;

extern "C" {

VNPU_EXPORT aclError aclrtCreateStreamWithConfig(aclrtStream* out, uint32_t priority, uint32_t) {
  trace("aclrtCreateStreamWithConfig");
  const int device = current_device();
  if (device < 0) return fail(kNoContext, "aclrtCreateStream: no device is set on this thread");
  const std::lock_guard hold(registry().mutex);
  *out = create(device, priority);
  return 0;
}

VNPU_EXPORT aclError aclrtCreateStream(aclrtStream* out) {
  return aclrtCreateStreamWithConfig(out, 0, 0);
}

VNPU_EXPORT aclError aclrtDestroyStream(aclrtStream handle) {
  Stream* stream = resolve(handle);
  if (handle == nullptr || stream == nullptr) return fail(kInvalidParam, "no such stream");
  wait_idle(*stream);
  {
    const std::lock_guard hold(registry().mutex);
    registry().live.erase(stream);
  }
  const std::lock_guard hold(stream->mutex);
  stream->stop = true;
  stream->changed.notify_all();
  return 0;
}

VNPU_EXPORT aclError aclrtDestroyStreamForce(aclrtStream stream) {
  return aclrtDestroyStream(stream);
}

VNPU_EXPORT aclError aclrtSynchronizeStream(aclrtStream handle) {
  trace("aclrtSynchronizeStream");
  Stream* stream = resolve(handle);
  if (stream == nullptr) return fail(kInvalidParam, "aclrtSynchronizeStream: no such stream");
  if (stream->capture) return refuse_capture(*stream, "aclrtSynchronizeStream");
  ++g_counters.synchronise;
  wait_idle(*stream);
  return take_error(stream->device);
}

VNPU_EXPORT aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t) {
  return aclrtSynchronizeStream(stream);
}

VNPU_EXPORT aclError aclrtSynchronizeDevice() {
  trace("aclrtSynchronizeDevice");
  const int device = current_device();
  if (device < 0) return fail(kNoContext, "aclrtSynchronizeDevice: no device is set");
  ++g_counters.synchronise;
  for (Stream* stream : streams_of(device)) wait_idle(*stream);
  return take_error(device);
}

VNPU_EXPORT aclError aclrtSynchronizeDeviceWithTimeout(int32_t) { return aclrtSynchronizeDevice(); }

VNPU_EXPORT aclError aclrtStreamQuery(aclrtStream handle, aclrtStreamStatus* status) {
  Stream* stream = resolve(handle);
  if (stream == nullptr) return fail(kInvalidParam, "aclrtStreamQuery: no such stream");
  const std::lock_guard hold(stream->mutex);
  const bool idle = stream->done == stream->submitted;
  *status = idle ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  return 0;
}

VNPU_EXPORT aclError aclrtStreamGetId(aclrtStream handle, int32_t* id) {
  Stream* stream = resolve(handle);
  if (stream == nullptr) return fail(kInvalidParam, "aclrtStreamGetId: no such stream");
  *id = stream->id;
  return 0;
}

VNPU_EXPORT aclError aclrtStreamGetPriority(aclrtStream handle, uint32_t* priority) {
  Stream* stream = resolve(handle);
  if (stream == nullptr) return fail(kInvalidParam, "aclrtStreamGetPriority: no such stream");
  *priority = stream->priority;
  return 0;
}

VNPU_EXPORT aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc function, void* data) {
  return submit(stream, "aclrtLaunchHostFunc", [=] {
    function(data);
    return 0;
  });
}

VNPU_EXPORT aclError aclrtLaunchCallback(aclrtCallback function, void* data, aclrtCallbackBlockType,
                                         aclrtStream stream) {
  return aclrtLaunchHostFunc(stream, function, data);
}

VNPU_EXPORT aclError aclrtCreateEventExWithFlag(aclrtEvent* out, uint32_t flag) {
  auto* event = new Event;
  event->external = (flag & ACL_EVENT_EXTERNAL) != 0;
  *out = event;
  return 0;
}

VNPU_EXPORT aclError aclrtCreateEventWithFlag(aclrtEvent* out, uint32_t flag) {
  return aclrtCreateEventExWithFlag(out, flag);
}

VNPU_EXPORT aclError aclrtCreateEvent(aclrtEvent* out) {
  return aclrtCreateEventExWithFlag(out, 0);
}

// Tasks keep the marks that they need, so an event may go while one waits.
VNPU_EXPORT aclError aclrtDestroyEvent(aclrtEvent event) {
  delete static_cast<Event*>(event);
  return 0;
}

VNPU_EXPORT aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream_handle) {
  trace("aclrtRecordEvent");
  Stream* stream = resolve(stream_handle);
  if (stream == nullptr) return fail(kInvalidParam, "aclrtRecordEvent: no such stream");
  auto& event = *static_cast<Event*>(handle);
  auto mark = std::make_shared<Mark>();
  {
    const std::lock_guard hold(event.mutex);
    event.mark = mark;
    if (!event.external) event.capture = stream->capture;
    event.recorded.notify_all();
  }
  return submit(stream, "aclrtRecordEvent", [mark] {
    mark->reach(t_stream->model_us);
    return 0;
  });
}

// The stream waits for the latest record before this call; no record, no wait.
VNPU_EXPORT aclError aclrtStreamWaitEvent(aclrtStream stream_handle, aclrtEvent handle) {
  trace("aclrtStreamWaitEvent");
  Stream* stream = resolve(stream_handle);
  if (stream == nullptr) return fail(kInvalidParam, "aclrtStreamWaitEvent: no such stream");
  auto& event = *static_cast<Event*>(handle);
  const std::unique_lock hold(event.mutex);
  if (event.capture) {  // the stream joins the capture, in which order is dependency enough
    const std::lock_guard also(stream->mutex);
    stream->capture = event.capture;
    return 0;
  }
  if (event.external && stream->capture) {  // each replay waits for a record outside of the graph
    return submit(stream, "aclrtStreamWaitEvent", [&event] {
      std::unique_lock until(event.mutex);
      event.recorded.wait(until, [&] { return event.mark != nullptr; });
      const auto mark = event.mark;
      until.unlock();
      mark->wait();
      return 0;
    });
  }
  if (!event.mark) return 0;
  return submit(stream, "aclrtStreamWaitEvent", [mark = event.mark] {
    mark->wait();
    t_stream->model_us = std::max(t_stream->model_us, mark->model_us);
    return 0;
  });
}

// In the stream's turn: the graph resets an external event that it has waited for.
VNPU_EXPORT aclError aclrtResetEvent(aclrtEvent handle, aclrtStream stream) {
  auto& event = *static_cast<Event*>(handle);
  return submit(stream, "aclrtResetEvent", [&event] {
    const std::lock_guard hold(event.mutex);
    event.mark.reset();
    return 0;
  });
}

VNPU_EXPORT aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus* status) {
  auto& event = *static_cast<Event*>(handle);
  const std::lock_guard hold(event.mutex);
  const bool done = !event.mark || event.mark->is_reached();
  *status = done ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  return 0;
}

VNPU_EXPORT aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  trace("aclrtSynchronizeEvent");
  auto& event = *static_cast<Event*>(handle);
  std::shared_ptr<Mark> mark;
  {
    const std::lock_guard hold(event.mutex);
    if (event.capture) return fail(ACL_ERROR_RT_EVENT_CAPTURED, "aclrtSynchronizeEvent: captured");
    mark = event.mark;
  }
  ++g_counters.synchronise;
  if (mark) mark->wait();
  const int device = current_device();
  return device < 0 ? 0 : take_error(device);
}

// Modelled milliseconds.
VNPU_EXPORT aclError aclrtEventElapsedTime(float* ms, aclrtEvent begin, aclrtEvent end) {
  auto& first = *static_cast<Event*>(begin);
  auto& last = *static_cast<Event*>(end);
  if (!first.mark || !last.mark || !first.mark->is_reached() || !last.mark->is_reached()) {
    return fail(kInvalidParam, "aclrtEventElapsedTime: an event has not been reached");
  }
  *ms = static_cast<float>((last.mark->model_us - first.mark->model_us) / 1000);
  return 0;
}

// For tests: keeps a stream busy, so that whoever does not wait for it comes too early.
VNPU_EXPORT int vnpu_delay(void* stream, int64_t microseconds) {
  return submit(stream, "vnpu_delay", [=] {
    std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
    return 0;
  });
}

// For tests of the host's cost: launches and tasks do nothing. An event would never be reached.
VNPU_EXPORT void vnpu_drop_tasks(bool on) { g_dropping = on; }

// For tests: how often since the process began; see Counters. -1 for a name it does not know.
VNPU_EXPORT int64_t vnpu_counter(const char* name) {
  const std::string wanted = name;
  const auto value = [](const std::atomic<uint64_t>& counter) {
    return static_cast<int64_t>(counter.load());
  };
  if (wanted == "synchronise") return value(g_counters.synchronise);
  if (wanted == "device_to_host") return value(g_counters.device_to_host);
  if (wanted == "host_to_device") return value(g_counters.host_to_device);
  if (wanted == "malloc") return value(g_counters.malloc);
  if (wanted == "tasks") return value(g_counters.tasks);
  return -1;
}

}  // extern "C"
