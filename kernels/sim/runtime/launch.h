// The launch syntax of kernels/npu/launch.cpp on the virtual NPU; included before it.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

// Runs the kernel registered under a name, its arguments in 64-bit words.
extern "C" int vnpu_launch(const char* name, uint32_t blocks, void* stream, const uint64_t* words,
                           uint32_t num_words);

template <class... Args>
int vnpu_launch_words(const char* name, uint32_t blocks, void* stream, Args... args) {
  std::vector<uint64_t> words;
  words.reserve(((sizeof(args) / sizeof(uint64_t) + 1) + ...));
  const auto add = [&words](const auto& argument) {
    const size_t at = words.size();
    words.resize(at + (sizeof(argument) + sizeof(uint64_t) - 1) / sizeof(uint64_t));
    std::memcpy(&words[at], &argument, sizeof(argument));
  };
  (add(args), ...);
  return vnpu_launch(name, blocks, stream, words.data(), uint32_t(words.size()));
}

#define PA_HP_LAUNCH(kernel, clusters, stream, ...) \
  vnpu_launch_words(#kernel, clusters, stream, __VA_ARGS__)
