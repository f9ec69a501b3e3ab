// A decode on the NPU: a plan for every shape, kept here; workspace, stream and task queue of
// torch_npu. Nothing waits for the device, and nothing reads what lies on it.
#include <acl/acl_base.h>
#include <acl/acl_rt.h>
#include <torch_npu/csrc/core/NPUStorageImpl.h>
#include <torch_npu/csrc/core/npu/NPUStream.h>
#include <torch_npu/csrc/framework/OpCommand.h>

#include <atomic>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <string_view>
#include <unordered_map>

#include "../proxy.h"
#include "plan.h"

extern "C" {
int pa_hp_npu_launch(const pa_hp::DecodeParams* params, const pa_hp::npu::DecodePlan* plan,
                     void* workspace, uint32_t clusters, void* stream);

// Fills in the plan of a decode, whose pointers are null; for a shape that it refuses, returns
// false and says why in `message`. ops/npu.py has it.
using Planner = bool (*)(const pa_hp::DecodeParams* shape, int64_t clusters,
                         pa_hp::npu::DecodePlan* plan, char* message, int64_t message_bytes);
}

namespace pa_hp::npu {
namespace {

Planner planner = nullptr;

// Compared and hashed as bytes: there are none between the fields.
struct Shape {
  DecodeParams params;  // pointers are null
  int64_t device;
  std::string_view bytes() const { return {reinterpret_cast<const char*>(this), sizeof(*this)}; }
  bool operator==(const Shape& other) const { return bytes() == other.bytes(); }
};
static_assert(offsetof(DecodeParams, dtype) + sizeof(DType) == sizeof(DecodeParams));

struct ShapeHash {
  size_t operator()(const Shape& shape) const {
    return std::hash<std::string_view>()(shape.bytes());
  }
};

struct Planned {
  DecodePlan plan;
  uint32_t clusters;
};

constexpr size_t kMaxPlans = 4096;  // as many as tiling/plan.py keeps
struct Plans {
  std::shared_mutex mutex;
  std::unordered_map<Shape, Planned, ShapeHash> of;
  std::atomic<int64_t> forgotten{0};  // how often all were
};
Plans& plans() {
  static auto* const one = new Plans;  // threads may still call when the process ends
  return *one;
}

Planned make_plan(const Shape& shape) {
  int64_t clusters = 0;
  const aclError error = aclGetDeviceCapability(static_cast<uint32_t>(shape.device),
                                                ACL_DEVICE_INFO_AI_CORE_NUM, &clusters);
  TORCH_CHECK(error == ACL_SUCCESS, "pa_hp: expected the number of AI cores of npu:", shape.device,
              ", got error ", error, " of aclGetDeviceCapability");
  Planned planned{{}, static_cast<uint32_t>(clusters)};
  char message[1024] = "";
  TORCH_CHECK_VALUE(planner(&shape.params, clusters, &planned.plan, message, sizeof(message)),
                    message);
  return planned;
}

Planned find_plan(const Shape& shape) {
  Plans& all = plans();
  {
    const std::shared_lock hold(all.mutex);
    if (const auto found = all.of.find(shape); found != all.of.end()) return found->second;
  }
  // Without the lock: the planner takes Python's, and who holds that may be waiting for ours.
  const Planned planned = make_plan(shape);
  const std::unique_lock hold(all.mutex);
  if (all.of.size() >= kMaxPlans) all.of.clear();
  all.of.emplace(shape, planned);
  return planned;
}

// A thread's last one at hand: all layers of a model have the same shape.
const Planned& plan_of(const Shape& shape) {
  thread_local Shape last{};  // no decode has its sizes of 0
  thread_local Planned planned;
  thread_local int64_t forgotten = 0;
  const int64_t now = plans().forgotten.load(std::memory_order_acquire);
  if (now != forgotten || !(last == shape)) {
    planned = find_plan(shape);
    last = shape;
    forgotten = now;
  }
  return planned;
}

void accept(const check::Checker& check, const char* name, const at::Tensor& tensor) {
  // As get_npu_format does, which takes 2 % of a call for its five tensors.
  const auto* const storage =
      static_cast<const torch_npu::NPUStorageImpl*>(tensor.storage().unsafeGetStorageImpl());
  const aclFormat format = storage->npu_desc_.npu_format_;
  const bool plain = format == ACL_FORMAT_ND || format == ACL_FORMAT_NCHW ||
                     format == ACL_FORMAT_NHWC || format == ACL_FORMAT_NCDHW;
  TORCH_CHECK_VALUE(plain, "pa_hp.", check.op, ": expected ", name,
                    " to be in a plain format, got internal format ", format,
                    "; call torch_npu.npu_format_cast(tensor, 2)");
}

void run(const DecodeParams& params, const at::Tensor& query) {
  Shape shape{params, query.device().index()};
  std::memset(static_cast<void*>(&shape), 0, offsetof(DecodeParams, batch));
  const Planned& planned = plan_of(shape);
  // Given back when this function ends: whatever has the memory next is behind the kernel on the
  // same stream.
  const size_t bytes = size_t{planned.clusters} * planned.plan.ws_bytes;
  const c10::DataPtr workspace = c10::GetAllocator(c10::DeviceType::PrivateUse1)->allocate(bytes);
  void* const stream = c10_npu::getCurrentNPUStream().stream(false);  // does not empty the queue
  at_npu::native::OpCommand::RunOpApiV2(
      "pa_hp_decode", [params, planned, at = workspace.get(), stream] {
        return pa_hp_npu_launch(&params, &planned.plan, at, planned.clusters, stream);
      });
}

}  // namespace
}  // namespace pa_hp::npu

extern "C" __attribute__((visibility("default"))) const pa_hp::npu::Backend* pa_hp_npu_backend(
    Planner planner) {
  static const pa_hp::npu::Backend backend{pa_hp::npu::accept, pa_hp::npu::run};
  pa_hp::npu::planner = planner;
  return &backend;
}

// What aclrtGetSocName calls the chip.
extern "C" __attribute__((visibility("default"))) const char* pa_hp_npu_soc() {
  const char* const name = aclrtGetSocName();
  return name == nullptr ? "none" : name;
}

// The next call of every shape plans anew.
extern "C" __attribute__((visibility("default"))) void pa_hp_npu_forget_plans() {
  pa_hp::npu::Plans& all = pa_hp::npu::plans();
  const std::unique_lock hold(all.mutex);
  all.of.clear();
  ++all.forgotten;
}
