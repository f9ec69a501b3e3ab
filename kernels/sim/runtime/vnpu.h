// What the virtual NPU's libraries share: everything that touches device memory goes through
// `submit`, so that streams, graphs and errors have one owner (libascendcl.so).
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#define VNPU_EXPORT __attribute__((visibility("default")))

namespace vnpu {

// One task of a stream. Returns 0 or an aclError; what it throws is an error, too.
using Task = std::function<int()>;

// Appends a task to a stream (null: the device's default stream), or to the graph that the stream
// captures. `name` is what errors and the trace call it.
VNPU_EXPORT int submit(void* stream, const char* name, Task task);

// Keeps the message for this thread's aclGetRecentErrMsg; returns `code`. `fail` prints it, too.
int note(int code, const std::string& message);
VNPU_EXPORT int fail(int code, const std::string& message);

// Prints "vnpu: ..." to stderr if PA_HP_VNPU_TRACE=1.
VNPU_EXPORT void trace(const char* name);

// Adds to the modelled clock of the stream whose task is running.
VNPU_EXPORT void advance(double microseconds);

// The live block of device memory that holds an address: begin, bytes; {0, 0} if none.
struct Block {
  uint64_t begin = 0;
  uint64_t bytes = 0;
};
VNPU_EXPORT Block block_of(const void* address);

// An environment variable, or what stands for it.
VNPU_EXPORT std::string setting(const char* name, const char* otherwise);

}  // namespace vnpu
