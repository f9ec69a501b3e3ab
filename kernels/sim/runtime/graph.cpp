// Graph capture and replay: a graph is a list of tasks, run in the order of their capture.
#include "runtime.h"

using namespace vnpu;

namespace {

// A handle is the graph's address, the same from its capture's begin to Destroy; meanwhile the
// graph keeps itself.
Graph& graph_of(aclmdlRI handle) { return *static_cast<Graph*>(handle); }

}  // namespace

extern "C" {

VNPU_EXPORT aclError aclmdlRICaptureBegin(aclrtStream handle, aclmdlRICaptureMode) {
  trace("aclmdlRICaptureBegin");
  static std::atomic<uint32_t> next_id{1};
  Stream* stream = resolve(handle);
  if (handle == nullptr || stream == nullptr) {
    return fail(kInvalidParam, "aclmdlRICaptureBegin: expected a stream of its own");
  }
  const std::lock_guard hold(stream->mutex);
  if (stream->capture) {
    return fail(ACL_ERROR_RT_STREAM_CAPTURED, "aclmdlRICaptureBegin: already capturing");
  }
  stream->capture = std::make_shared<Graph>();
  stream->capture->id = next_id++;
  stream->capture->self = stream->capture;
  return 0;
}

VNPU_EXPORT aclError aclmdlRICaptureGetInfo(aclrtStream handle, aclmdlRICaptureStatus* status,
                                            aclmdlRI* out) {
  Stream* stream = resolve(handle);
  if (stream == nullptr) return fail(kInvalidParam, "aclmdlRICaptureGetInfo: no such stream");
  const std::lock_guard hold(stream->mutex);
  *status = ACL_MODEL_RI_CAPTURE_STATUS_NONE;
  if (out != nullptr) *out = nullptr;
  if (!stream->capture) return 0;
  *status = stream->capture->invalid ? ACL_MODEL_RI_CAPTURE_STATUS_INVALIDATED
                                     : ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE;
  if (out != nullptr) *out = stream->capture.get();
  return 0;
}

VNPU_EXPORT aclError aclmdlRICaptureEnd(aclrtStream handle, aclmdlRI* out) {
  trace("aclmdlRICaptureEnd");
  Stream* stream = resolve(handle);
  if (stream == nullptr || !stream->capture) {
    return fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "aclmdlRICaptureEnd: nothing is captured");
  }
  const std::shared_ptr<Graph> graph = stream->capture;
  end_capture(graph);
  *out = nullptr;
  if (graph->invalid) {
    graph->self.reset();
    return fail(ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, "the capture was invalidated");
  }
  *out = graph.get();
  return 0;
}

VNPU_EXPORT aclError aclmdlRIExecuteAsync(aclmdlRI handle, aclrtStream stream_handle) {
  trace("aclmdlRIExecuteAsync");
  Stream* stream = resolve(stream_handle);
  if (stream == nullptr) return fail(kInvalidParam, "aclmdlRIExecuteAsync: no such stream");
  const std::shared_ptr<Graph> graph = graph_of(handle).self;
  // Each task is looked up when its turn comes: an update may replace it until then, as on
  // hardware.
  return submit(stream, "aclmdlRIExecuteAsync", [stream, graph] {
    for (const auto& entry : graph->entries) {
      std::unique_lock hold(g_update);
      const Entry now = *entry;
      hold.unlock();
      run(*stream, now);  // errors are noted one by one
    }
    return 0;
  });
}

VNPU_EXPORT aclError aclmdlRIDestroy(aclmdlRI handle) {
  // Queued replays share the graph; this may be its end.
  const std::shared_ptr<Graph> graph = std::move(graph_of(handle).self);
  return 0;
}

VNPU_EXPORT aclError aclmdlRIGetId(aclmdlRI handle, uint32_t* id) {
  *id = graph_of(handle).id;
  return 0;
}

VNPU_EXPORT aclError aclmdlRIDebugPrint(aclmdlRI handle) {
  for (const auto& entry : graph_of(handle).entries) std::fprintf(stderr, "%s\n", entry->name);
  return 0;
}

VNPU_EXPORT aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
  thread_local aclmdlRICaptureMode current = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;
  std::swap(current, *mode);
  return 0;
}

VNPU_EXPORT aclError aclmdlRICaptureTaskGrpBegin(aclrtStream handle) {
  Stream* stream = resolve(handle);
  if (stream == nullptr || !stream->capture || stream->group != nullptr) {
    return fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "aclmdlRICaptureTaskGrpBegin: not capturing");
  }
  stream->group = new TaskGroup;  // kept: the caller has no function to free it
  return 0;
}

VNPU_EXPORT aclError aclmdlRICaptureTaskGrpEnd(aclrtStream handle, aclrtTaskGrp* out) {
  Stream* stream = resolve(handle);
  if (stream == nullptr || stream->group == nullptr) {
    return fail(kInvalidParam, "aclmdlRICaptureTaskGrpEnd: no group was begun");
  }
  *out = stream->group;
  stream->group = nullptr;
  return 0;
}

VNPU_EXPORT aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream handle, aclrtTaskGrp group) {
  Stream* stream = resolve(handle);
  if (stream == nullptr || group == nullptr || stream->update != nullptr) {
    return fail(kInvalidParam, "aclmdlRICaptureTaskUpdateBegin: no such stream or group");
  }
  stream->update = static_cast<TaskGroup*>(group);
  stream->updated = 0;
  return 0;
}

VNPU_EXPORT aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream handle) {
  Stream* stream = resolve(handle);
  if (stream == nullptr || stream->update == nullptr) {
    return fail(kInvalidParam, "aclmdlRICaptureTaskUpdateEnd: no update was begun");
  }
  stream->update = nullptr;
  return 0;
}

}  // extern "C"
