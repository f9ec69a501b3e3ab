// An aclnn operator in one line over ATen's CPU kernels:
//
//   OP(Add, (T, self), (T, other), (S, alpha), (T, out)) { out.copy_(at::add(self, other, alpha));
//   }
//
// exports aclnnAddGetWorkspaceSize, which keeps copies of the arguments, and aclnnAdd, which
// submits the body to the stream.
#pragma once
#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../vnpu.h"

// What torch_npu holds pointers to.
struct aclTensor {
  at::Tensor tensor;  // over device memory, which is the host's
};
struct aclScalar {
  at::Scalar value;
};
struct aclIntArray {
  std::vector<int64_t> values;
};
struct aclFloatArray {
  std::vector<float> values;
};
struct aclBoolArray {
  std::vector<bool> values;
};
struct aclTensorList {
  std::vector<aclTensor*> tensors;
};
struct aclScalarList {
  std::vector<aclScalar*> scalars;
};
struct aclOpExecutor {
  const char* name;
  vnpu::Task task;
};

namespace vnpu {

// Parameters as the bodies see them. An absent tensor is undefined, an absent scalar is empty.
using T = at::Tensor;
using S = at::Scalar;
using MaybeS = std::optional<at::Scalar>;
using I = std::vector<int64_t>;
using L = std::vector<at::Tensor>;
using B = bool;
using N = int64_t;
using D = double;
using F = float;
using U = uint64_t;
using Text = std::string;
struct Type {  // an aclDataType
  at::ScalarType value;
};
using Mode = int32_t;  // how Div rounds: 0 true, 1 toward zero, 2 down
struct Math {};        // cubeMathType: how exact the cube may be, which the CPU is anyway
struct Sized {  // an output whose size the operator decides: the caller asks for it afterwards
  aclTensor* handle;
  void set(const at::Tensor& result) const {
    at::Tensor& whole = handle->tensor;
    const int64_t count = result.numel();
    auto flat = whole.as_strided({count}, {1});
    flat.copy_(result.reshape({-1}));
    whole = flat.view(result.sizes());
  }
};

at::ScalarType scalar_type(int acl);

// From the C parameter to what a closure can keep.
template <class Kept>
struct Wire {  // plain numbers
  using C = Kept;
  static Kept keep(C value) { return value; }
};
template <>
struct Wire<T> {
  using C = const aclTensor*;
  static T keep(C value) { return value == nullptr ? T() : value->tensor; }
};
template <>
struct Wire<S> {
  using C = const aclScalar*;
  static S keep(C value) { return value == nullptr ? S(1) : value->value; }
};
template <>
struct Wire<MaybeS> {
  using C = const aclScalar*;
  static MaybeS keep(C value) { return value == nullptr ? MaybeS() : MaybeS(value->value); }
};
template <>
struct Wire<I> {
  using C = const aclIntArray*;
  static I keep(C value) { return value == nullptr ? I() : value->values; }
};
template <>
struct Wire<L> {
  using C = const aclTensorList*;
  static L keep(C value) {
    L kept;
    if (value == nullptr) return kept;
    for (const aclTensor* tensor : value->tensors) kept.push_back(Wire<T>::keep(tensor));
    return kept;
  }
};
template <>
struct Wire<Text> {
  using C = const char*;
  static Text keep(C value) { return value == nullptr ? "" : value; }
};
template <>
struct Wire<Type> {
  using C = int;
  static Type keep(C value) { return {scalar_type(value)}; }
};
template <>
struct Wire<Math> {
  using C = int8_t;
  static Math keep(C) { return {}; }
};
template <>
struct Wire<Sized> {
  using C = aclTensor*;
  static Sized keep(C value) { return {value}; }
};

int run_body(const std::function<void()>& body);

// The body of every aclnnXGetWorkspaceSize.
template <class... Kept>
int prepare(const char* name, uint64_t* workspace, aclOpExecutor** executor,
            void (*body)(const Kept&...), typename Wire<Kept>::C... args) {
  *workspace = 0;
  auto kept = std::make_tuple(Wire<Kept>::keep(args)...);
  *executor = new aclOpExecutor{
      name, [body, kept = std::move(kept)] { return run_body([&] { std::apply(body, kept); }); }};
  return 0;
}

// The body of every aclnnX.
int enqueue(aclOpExecutor* executor, void* stream);

}  // namespace vnpu

// FOR_EACH(M, (a, b), (c, d)) is M(a, b), M(c, d): at most 64 of them.
#define VNPU_PARENS ()
#define VNPU_EXPAND(...) VNPU_EXPAND3(VNPU_EXPAND3(VNPU_EXPAND3(VNPU_EXPAND3(__VA_ARGS__))))
#define VNPU_EXPAND3(...) VNPU_EXPAND2(VNPU_EXPAND2(VNPU_EXPAND2(VNPU_EXPAND2(__VA_ARGS__))))
#define VNPU_EXPAND2(...) VNPU_EXPAND1(VNPU_EXPAND1(VNPU_EXPAND1(VNPU_EXPAND1(__VA_ARGS__))))
#define VNPU_EXPAND1(...) __VA_ARGS__
#define VNPU_FOR_EACH(M, ...) __VA_OPT__(VNPU_EXPAND(VNPU_STEP(M, __VA_ARGS__)))
#define VNPU_STEP(M, PAIR, ...) M PAIR __VA_OPT__(, VNPU_AGAIN VNPU_PARENS(M, __VA_ARGS__))
#define VNPU_AGAIN() VNPU_STEP

#define VNPU_C(TYPE, NAME) typename vnpu::Wire<vnpu::TYPE>::C NAME
#define VNPU_KEPT(TYPE, NAME) [[maybe_unused]] const vnpu::TYPE& NAME
#define VNPU_NAME(TYPE, NAME) NAME

#define OP(NAME, ...)                                                                              \
  static void run_##NAME(VNPU_FOR_EACH(VNPU_KEPT, __VA_ARGS__));                                   \
  extern "C" VNPU_EXPORT int aclnn##NAME##GetWorkspaceSize(                                        \
      VNPU_FOR_EACH(VNPU_C, __VA_ARGS__), uint64_t* workspace_, aclOpExecutor** executor_) {       \
    return vnpu::prepare("aclnn" #NAME, workspace_, executor_, &run_##NAME,                        \
                         VNPU_FOR_EACH(VNPU_NAME, __VA_ARGS__));                                   \
  }                                                                                                \
  extern "C" VNPU_EXPORT int aclnn##NAME(void*, uint64_t, aclOpExecutor* executor, void* stream) { \
    return vnpu::enqueue(executor, stream);                                                        \
  }                                                                                                \
  static void run_##NAME(VNPU_FOR_EACH(VNPU_KEPT, __VA_ARGS__))
