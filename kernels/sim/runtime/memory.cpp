// Device and pinned memory: host memory between two guard pages, counted against a limit.
//
// A block ends at a guard page (its begin is 512-byte aligned), so the first byte past it faults. A
// freed block loses its access rights and keeps its addresses for a while: a late access faults.
#include <sys/mman.h>

#include <cstring>
#include <map>

#include "runtime.h"

namespace vnpu {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kAlign = 512;
constexpr size_t kKeepFreed = 4096;  // blocks; each is an entry of the kernel's memory map

struct Allocation {
  uint64_t base, span;    // what mmap gave, guard pages included
  uint64_t begin, bytes;  // what the caller asked for
  int device;             // -1: pinned host memory
};

struct Heap {
  std::mutex mutex;
  std::map<uint64_t, Allocation> live, freed;  // by begin
  std::deque<uint64_t> freed_order;
  uint64_t used[kMaxDevices] = {};
};

// Never destroyed: threads may still be running when the process ends.
Heap& heap() {
  static Heap* const one = new Heap;
  return *one;
}

uint64_t up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

uint64_t limit() {
  static const auto bytes =
      static_cast<uint64_t>(std::stod(setting("PA_HP_VNPU_MEMORY_GIB", "8")) * (1 << 30));
  return bytes;
}

const Allocation* find(const std::map<uint64_t, Allocation>& in, uint64_t address) {
  auto next = in.upper_bound(address);
  if (next == in.begin()) return nullptr;
  const Allocation& block = std::prev(next)->second;
  return address < block.begin + std::max<uint64_t>(block.bytes, 1) ? &block : nullptr;
}

int allocate(void** out, uint64_t bytes, int device) {
  Heap& h = heap();
  const uint64_t padded = up(std::max<uint64_t>(bytes, 1), kAlign);
  {
    const std::lock_guard hold(h.mutex);
    if (device >= 0 && h.used[device] + padded > limit()) {
      *out = nullptr;
      // Not printed: an allocator that frees its cache and tries again is no failure.
      return kOutOfMemory;
    }
    if (device >= 0) h.used[device] += padded;
  }
  const uint64_t span = up(padded, kPage) + 2 * kPage;
  void* base = mmap(nullptr, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED ||
      mprotect(static_cast<char*>(base) + kPage, span - 2 * kPage, PROT_READ | PROT_WRITE) != 0) {
    return fail(kOutOfMemory, "this machine has no memory left for a virtual device's");
  }
  const uint64_t end = reinterpret_cast<uint64_t>(base) + span - kPage;
  const Allocation block{reinterpret_cast<uint64_t>(base), span, end - padded, bytes, device};
  // NaN in every float type: what nobody wrote shows.
  static const bool poison = setting("PA_HP_VNPU_POISON", "1") == "1";
  if (poison && device >= 0) std::memset(reinterpret_cast<void*>(block.begin), 0xFF, padded);
  const std::lock_guard hold(h.mutex);
  h.live[block.begin] = block;
  *out = reinterpret_cast<void*>(block.begin);
  return 0;
}

int release(void* address, bool pinned) {
  Heap& h = heap();
  const std::lock_guard hold(h.mutex);
  const auto found = h.live.find(reinterpret_cast<uint64_t>(address));
  if (found == h.live.end() || (found->second.device < 0) != pinned) {
    return fail(kInvalidParam, "free: no live block begins there");
  }
  const Allocation block = found->second;
  h.live.erase(found);
  if (block.device >= 0) h.used[block.device] -= up(std::max<uint64_t>(block.bytes, 1), kAlign);
  // Fresh pages without rights over the old ones: the memory is the machine's again.
  mmap(reinterpret_cast<void*>(block.base), block.span, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  h.freed[block.begin] = block;
  h.freed_order.push_back(block.begin);
  if (h.freed_order.size() > kKeepFreed) {
    const auto oldest = h.freed.find(h.freed_order.front());
    munmap(reinterpret_cast<void*>(oldest->second.base), oldest->second.span);
    h.freed.erase(oldest);
    h.freed_order.pop_front();
  }
  return 0;
}

const Allocation* live_block(const void* address) {
  return find(heap().live, reinterpret_cast<uint64_t>(address));
}

// A copy's end must lie in the block that it begins in; what is no block of ours is the caller's.
int check_span(const char* what, const void* address, uint64_t bytes) {
  const std::lock_guard hold(heap().mutex);
  const Allocation* block = live_block(address);
  if (block == nullptr) return 0;
  const uint64_t end = reinterpret_cast<uint64_t>(address) + bytes;
  if (end <= block->begin + block->bytes) return 0;
  return fail(kInvalidParam, std::string(what) + ": " + std::to_string(bytes) + " bytes reach " +
                                 std::to_string(end - block->begin - block->bytes) +
                                 " past the end of the block");
}

// Modelled, like everything that an event measures here: 1.2 TB/s in the device, 25 GB/s to it.
double copy_us(uint64_t bytes, aclrtMemcpyKind kind) {
  return 1.0 + static_cast<double>(bytes) / (kind == ACL_MEMCPY_DEVICE_TO_DEVICE ? 1.2e6 : 25e3);
}

void count(aclrtMemcpyKind kind) {
  if (kind == ACL_MEMCPY_DEVICE_TO_HOST) ++g_counters.device_to_host;
  if (kind == ACL_MEMCPY_HOST_TO_DEVICE) ++g_counters.host_to_device;
}

int check_copy(const void* dst, size_t capacity, const void* src, size_t bytes) {
  if (bytes > capacity) return fail(kInvalidParam, "memcpy: longer than its destination");
  if (const int error = check_span("memcpy to", dst, bytes); error != 0) return error;
  return check_span("memcpy from", src, bytes);
}

}  // namespace

Block block_of(const void* address) {
  const std::lock_guard hold(heap().mutex);
  const Allocation* block = live_block(address);
  if (block == nullptr || block->device < 0) return {};
  return {block->begin, block->bytes};
}

bool is_pinned(const void* address) {
  const std::lock_guard hold(heap().mutex);
  const Allocation* block = live_block(address);
  return block != nullptr && block->device < 0;
}

std::vector<Region> regions_of(int device) {
  const std::lock_guard hold(heap().mutex);
  std::vector<Region> found;
  for (const auto& [begin, block] : heap().live) {
    if (block.device != device || block.bytes == 0) continue;
    found.push_back({begin, begin + block.bytes, "block of " + std::to_string(block.bytes)});
  }
  return found;
}

bool is_device(const void* address) { return block_of(address).begin != 0; }

std::string describe(uint64_t address) {
  Heap& h = heap();
  // A fault can come while this very thread holds the lock: then nothing is said.
  const std::unique_lock hold(h.mutex, std::try_to_lock);
  if (!hold) return "";
  const auto name = [](const Allocation& block) {
    return "a block of " + std::to_string(block.bytes) + " bytes " +
           (block.device < 0 ? std::string("of pinned memory")
                             : "on device " + std::to_string(block.device));
  };
  for (const auto* blocks : {&h.live, &h.freed}) {
    for (const auto& [begin, block] : *blocks) {
      if (address < block.base || address >= block.base + block.span) continue;
      std::string where = std::to_string(address - begin) + " bytes into";
      if (address < begin) where = std::to_string(begin - address) + " bytes before";
      if (address >= begin + block.bytes) {
        where = std::to_string(address - begin - block.bytes) + " bytes past the end of";
      }
      return where + " " + name(block) + (blocks == &h.freed ? " that was freed" : "");
    }
  }
  return "";
}

}  // namespace vnpu

using namespace vnpu;

extern "C" {

VNPU_EXPORT aclError aclrtMalloc(void** out, size_t bytes, aclrtMemMallocPolicy) {
  trace("aclrtMalloc");
  const int device = current_device();
  if (device < 0) return fail(kNoContext, "aclrtMalloc: no device is set on this thread");
  ++g_counters.malloc;
  return allocate(out, bytes, device);
}

VNPU_EXPORT aclError aclrtMallocAlign32(void** out, size_t bytes, aclrtMemMallocPolicy policy) {
  return aclrtMalloc(out, bytes, policy);
}

VNPU_EXPORT aclError aclrtFree(void* address) {
  trace("aclrtFree");
  return release(address, false);
}

VNPU_EXPORT aclError aclrtMallocHost(void** out, size_t bytes) { return allocate(out, bytes, -1); }

VNPU_EXPORT aclError aclrtFreeHost(void* address) { return release(address, true); }

VNPU_EXPORT aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  const int device = current_device();
  if (device < 0) return fail(kNoContext, "aclrtGetMemInfo: no device is set on this thread");
  const std::lock_guard hold(heap().mutex);
  *total = limit();
  *free = limit() - heap().used[device];
  return 0;
}

// On the calling thread, ordered with no stream, as on hardware.
VNPU_EXPORT aclError aclrtMemcpy(void* dst, size_t capacity, const void* src, size_t bytes,
                                 aclrtMemcpyKind kind) {
  trace("aclrtMemcpy");
  if (const int error = check_copy(dst, capacity, src, bytes); error != 0) return error;
  count(kind);
  ++g_counters.synchronise;
  std::memmove(dst, src, bytes);
  return 0;
}

VNPU_EXPORT aclError aclrtMemcpyAsync(void* dst, size_t capacity, const void* src, size_t bytes,
                                      aclrtMemcpyKind kind, aclrtStream stream) {
  if (const int error = check_copy(dst, capacity, src, bytes); error != 0) return error;
  count(kind);
  const bool staged = !is_device(src) && !is_pinned(src);
  if (staged) {  // pageable memory is the caller's again when this returns
    const auto* begin = static_cast<const char*>(src);
    auto copy = std::make_shared<std::vector<char>>(begin, begin + bytes);
    return submit(stream, "aclrtMemcpyAsync", [=] {
      advance(copy_us(bytes, kind));
      std::memcpy(dst, copy->data(), bytes);
      return 0;
    });
  }
  const int error = submit(stream, "aclrtMemcpyAsync", [=] {
    advance(copy_us(bytes, kind));
    std::memmove(dst, src, bytes);
    return 0;
  });
  const bool pageable = !is_device(dst) && !is_pinned(dst);
  return error != 0 || !pageable ? error : aclrtSynchronizeStream(stream);
}

VNPU_EXPORT aclError aclrtMemset(void* dst, size_t capacity, int32_t value, size_t bytes) {
  if (bytes > capacity) return fail(kInvalidParam, "memset: longer than its destination");
  if (const int error = check_span("memset", dst, bytes); error != 0) return error;
  std::memset(dst, value, bytes);
  return 0;
}

VNPU_EXPORT aclError aclrtMemsetAsync(void* dst, size_t capacity, int32_t value, size_t bytes,
                                      aclrtStream stream) {
  if (bytes > capacity) return fail(kInvalidParam, "memset: longer than its destination");
  if (const int error = check_span("memset", dst, bytes); error != 0) return error;
  return submit(stream, "aclrtMemsetAsync", [=] {
    std::memset(dst, value, bytes);
    return 0;
  });
}

VNPU_EXPORT aclError aclrtPointerGetAttributes(const void* address, aclrtPtrAttributes* out) {
  *out = {};
  const std::lock_guard hold(heap().mutex);
  const Allocation* block = live_block(address);
  out->location.type = ACL_MEM_LOCATION_TYPE_UNREGISTERED;
  if (block == nullptr) return 0;
  out->location.type =
      block->device < 0 ? ACL_MEM_LOCATION_TYPE_HOST : ACL_MEM_LOCATION_TYPE_DEVICE;
  out->location.id = block->device < 0 ? 0 : static_cast<uint32_t>(block->device);
  out->pageSize = kPage;
  return 0;
}

}  // extern "C"
