// Devices, contexts, versions, options and the log.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "acl/acl_mdl.h"
#include "acl/acl_op_compiler.h"
#include "runtime.h"

namespace vnpu {
namespace {

thread_local int t_device = -1;
thread_local std::string t_message;
char g_contexts[kMaxDevices];  // a context is an address
std::atomic<bool> g_active[kMaxDevices];

int context_of(const void* context) {
  const auto* place = static_cast<const char*>(context);
  return place >= g_contexts && place < g_contexts + num_devices()
             ? static_cast<int>(place - g_contexts)
             : -1;
}

}  // namespace

std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != 0 ? value : otherwise;
}

int num_devices() {
  static const int count =
      std::min(kMaxDevices, std::max(1, std::stoi(setting("PA_HP_VNPU_DEVICES", "1"))));
  return count;
}

int current_device() { return t_device; }

int note(int code, const std::string& message) {
  t_message = "vnpu: " + message;
  return code;
}

int fail(int code, const std::string& message) {
  std::fprintf(stderr, "vnpu: %s (error %d)\n", message.c_str(), code);
  return note(code, message);
}

void trace(const char* name) {
  static const bool on = setting("PA_HP_VNPU_TRACE", "0") == "1";
  if (on) std::fprintf(stderr, "vnpu: %s\n", name);
}

}  // namespace vnpu

using namespace vnpu;

extern "C" {

VNPU_EXPORT aclError aclInit(const char*) {
  trace("aclInit");
  static std::once_flag once;
  std::call_once(once, [] {
    catch_faults();
    // Registered after torch's own statics: tasks end before what they use goes.
    std::atexit(drain_all);
  });
  return 0;
}

VNPU_EXPORT aclError aclFinalize() {
  drain_all();
  return 0;
}

VNPU_EXPORT const char* aclrtGetSocName() {
  static const std::string name = "Ascend" + setting("PA_HP_VNPU_SOC", "910B2");
  return name.c_str();
}

VNPU_EXPORT aclError aclrtGetDeviceCount(uint32_t* count) {
  *count = static_cast<uint32_t>(num_devices());
  return 0;
}

VNPU_EXPORT aclError aclrtGetDevice(int32_t* device) {
  if (t_device < 0) return kNoContext;  // torch_npu asks before it sets one: nothing to print
  *device = t_device;
  return 0;
}

VNPU_EXPORT aclError aclrtSetDevice(int32_t device) {
  if (device < 0 || device >= num_devices()) {
    return fail(kInvalidDevice, "aclrtSetDevice: expected a device below " +
                                    std::to_string(num_devices()) + ", got " +
                                    std::to_string(device));
  }
  t_device = device;
  g_active[device] = true;
  return 0;
}

VNPU_EXPORT aclError aclrtResetDevice(int32_t) {
  drain_all();
  return 0;
}

VNPU_EXPORT aclError aclrtResetDeviceForce(int32_t device) { return aclrtResetDevice(device); }

VNPU_EXPORT aclError aclrtGetCurrentContext(aclrtContext* context) {
  if (t_device < 0) return kNoContext;
  *context = g_contexts + t_device;
  return 0;
}

VNPU_EXPORT aclError aclrtSetCurrentContext(aclrtContext context) {
  const int device = context_of(context);
  if (device < 0) return fail(kInvalidParam, "aclrtSetCurrentContext: no such context");
  t_device = device;
  return 0;
}

VNPU_EXPORT aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* active) {
  if (device < 0 || device >= num_devices()) return kInvalidDevice;
  if (flags != nullptr) *flags = 0;
  *active = g_active[device] ? 1 : 0;
  return 0;
}

VNPU_EXPORT aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) {
  *can = 1;
  return 0;
}

VNPU_EXPORT aclError aclrtDeviceEnablePeerAccess(int32_t, uint32_t) { return 0; }

VNPU_EXPORT aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo info, int64_t* value) {
  const int64_t cubes = std::stoll(setting("PA_HP_VNPU_CUBE_CORES", "24"));
  if (info == ACL_DEVICE_INFO_L2_SIZE) {
    *value = int64_t{192} << 20;
  } else {
    *value = info == ACL_DEVICE_INFO_AI_CORE_NUM ? cubes : 2 * cubes;
  }
  return 0;
}

VNPU_EXPORT const char* aclGetRecentErrMsg() {
  // The caller keeps the pointer for a while, and then asks no more.
  thread_local std::string given;
  given.swap(t_message);
  t_message.clear();
  return given.c_str();
}

VNPU_EXPORT aclError aclsysGetCANNVersion(aclCANNPackageName, aclCANNPackageVersion* out) {
  *out = {};
  std::snprintf(out->version, sizeof(out->version), "%s",
                setting("PA_HP_VNPU_CANN", "8.5.0").c_str());
  return 0;
}

VNPU_EXPORT aclError aclsysGetVersionStr(char*, char* out) {
  std::strcpy(out, setting("PA_HP_VNPU_CANN", "8.5.0").c_str());
  return 0;
}

VNPU_EXPORT size_t aclGetCompileoptSize(aclCompileOpt) { return sizeof("disable"); }

VNPU_EXPORT aclError aclGetCompileopt(aclCompileOpt, char* value, size_t length) {
  std::snprintf(value, length, "disable");
  return 0;
}

VNPU_EXPORT aclError aclSetCompileopt(aclCompileOpt, const char*) { return 0; }

VNPU_EXPORT void aclAppLog(aclLogLevel level, const char* function, const char*, uint32_t line,
                           const char* format, ...) {
  static const int threshold = std::stoi(setting("PA_HP_VNPU_LOG", "4"));  // 3 shows errors
  if (level < threshold) return;
  char text[2048];
  va_list rest;
  va_start(rest, format);
  std::vsnprintf(text, sizeof(text), format, rest);
  va_end(rest);
  std::fprintf(stderr, "vnpu: log %d %s:%u %s\n", level, function, line, text);
}

// Options of a device that mean nothing here; torch_npu sets them when it starts.
VNPU_EXPORT aclError aclrtCtxSetSysParamOpt(aclSysParamOpt, int64_t) { return 0; }
VNPU_EXPORT aclError aclrtGetSysParamOpt(aclSysParamOpt, int64_t* value) {
  *value = 0;
  return 0;
}
VNPU_EXPORT aclError aclrtSetSysParamOpt(aclSysParamOpt, int64_t) { return 0; }
VNPU_EXPORT aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) { return 0; }
VNPU_EXPORT aclError aclrtSetOpExecuteTimeOut(uint32_t) { return 0; }
VNPU_EXPORT aclError aclrtSetStreamFailureMode(aclrtStream, uint64_t) { return 0; }
VNPU_EXPORT aclError aclrtSetStreamAttribute(aclrtStream, aclrtStreamAttr, aclrtStreamAttrValue*) {
  return 0;
}
// libhccl has nothing of its own; torch_npu finds this through it.
VNPU_EXPORT int HcclSetConfig(int, int64_t) { return 0; }
VNPU_EXPORT aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return 0; }

// Operators that only CANN's compiler has. Success without a result would be silent garbage.
VNPU_EXPORT aclError aclopCompileAndExecute(const char* type, int, const aclTensorDesc* const[],
                                            const aclDataBuffer* const[], int,
                                            const aclTensorDesc* const[], aclDataBuffer* const[],
                                            const aclopAttr*, aclopEngineType, aclopCompileType,
                                            const char*, aclrtStream) {
  return fail(500001, std::string("the virtual NPU has no operator ") + type);
}

VNPU_EXPORT aclError aclopCompileAndExecuteV2(const char* type, int, aclTensorDesc*[],
                                              aclDataBuffer*[], int, aclTensorDesc*[],
                                              aclDataBuffer*[], aclopAttr*, aclopEngineType,
                                              aclopCompileType, const char*, aclrtStream) {
  return fail(500001, std::string("the virtual NPU has no operator ") + type);
}

// What the generated stubs call.
VNPU_EXPORT int vnpu_missing(const char* name) {
  return fail(500001, std::string(name) + " is not provided by the virtual NPU");
}

}  // extern "C"
