// aclnn's own objects: tensors, scalars, arrays, lists, executors.
#include <ATen/core/LegacyTypeDispatch.h>

#include <cstring>
#include <stdexcept>

#include "op.h"

namespace vnpu {

at::ScalarType scalar_type(int acl) {
  switch (acl) {
    case 0:
      return at::kFloat;
    case 1:
      return at::kHalf;
    case 2:
      return at::kChar;
    case 3:
      return at::kInt;
    case 4:
      return at::kByte;
    case 6:
      return at::kShort;
    case 7:
      return at::kUInt16;
    case 8:
      return at::kUInt32;
    case 9:
      return at::kLong;
    case 10:
      return at::kUInt64;
    case 11:
      return at::kDouble;
    case 12:
      return at::kBool;
    case 16:
      return at::kComplexFloat;
    case 17:
      return at::kComplexDouble;
    case 27:
      return at::kBFloat16;
    case 33:
      return at::kComplexHalf;
    case 35:
      return at::kFloat8_e5m2;
    case 36:
      return at::kFloat8_e4m3fn;
    default:
      return at::kByte;  // never null to torch_npu, which would crash
  }
}

int run_body(const std::function<void()>& body) {
  // The operators are the device's: no autograd, no modes of whoever called.
  const at::AutoDispatchBelowADInplaceOrView below;
  try {
    body();
  } catch (const c10::Error& error) {
    throw std::runtime_error(error.what_without_backtrace());
  }
  advance(2.0);  // what a small kernel's launch costs; the operator itself is not modelled
  return 0;
}

int enqueue(aclOpExecutor* executor, void* stream) {
  const int error = submit(stream, executor->name, std::move(executor->task));
  delete executor;
  return error;
}

namespace {

template <class Number>
at::Scalar read(const void* value) {
  Number number;
  std::memcpy(&number, value, sizeof(number));
  return number;
}

}  // namespace
}  // namespace vnpu

using namespace vnpu;

extern "C" {

VNPU_EXPORT aclTensor* aclCreateTensor(const int64_t* sizes, uint64_t dims, int type,
                                       const int64_t* strides, int64_t offset, int, const int64_t*,
                                       uint64_t, void* data) {
  const at::ScalarType scalar = scalar_type(type);
  auto* begin = static_cast<char*>(data) + offset * static_cast<int64_t>(at::elementSize(scalar));
  const at::IntArrayRef shape(sizes, dims);
  return new aclTensor{at::from_blob(begin, shape, at::IntArrayRef(strides, dims),
                                     at::TensorOptions().dtype(scalar))};
}

VNPU_EXPORT aclScalar* aclCreateScalar(void* value, int type) {
  switch (scalar_type(type)) {
    case at::kFloat:
      return new aclScalar{read<float>(value)};
    case at::kDouble:
      return new aclScalar{read<double>(value)};
    case at::kHalf:
      return new aclScalar{read<at::Half>(value)};
    case at::kBFloat16:
      return new aclScalar{read<at::BFloat16>(value)};
    case at::kLong:
      return new aclScalar{read<int64_t>(value)};
    case at::kInt:
      return new aclScalar{read<int32_t>(value)};
    case at::kShort:
      return new aclScalar{read<int16_t>(value)};
    case at::kChar:
      return new aclScalar{read<int8_t>(value)};
    case at::kBool:
      return new aclScalar{read<bool>(value)};
    case at::kComplexFloat:
      return new aclScalar{read<c10::complex<float>>(value)};
    case at::kComplexDouble:
      return new aclScalar{read<c10::complex<double>>(value)};
    default:
      return new aclScalar{read<uint8_t>(value)};
  }
}

VNPU_EXPORT aclIntArray* aclCreateIntArray(const int64_t* values, uint64_t count) {
  return new aclIntArray{std::vector<int64_t>(values, values + count)};
}

VNPU_EXPORT aclFloatArray* aclCreateFloatArray(const float* values, uint64_t count) {
  return new aclFloatArray{std::vector<float>(values, values + count)};
}

VNPU_EXPORT aclBoolArray* aclCreateBoolArray(const bool* values, uint64_t count) {
  return new aclBoolArray{std::vector<bool>(values, values + count)};
}

VNPU_EXPORT aclTensorList* aclCreateTensorList(const aclTensor* const* tensors, uint64_t count) {
  auto* list = new aclTensorList;
  for (uint64_t i = 0; i < count; ++i) list->tensors.push_back(const_cast<aclTensor*>(tensors[i]));
  return list;
}

VNPU_EXPORT aclScalarList* aclCreateScalarList(const aclScalar* const* scalars, uint64_t count) {
  auto* list = new aclScalarList;
  for (uint64_t i = 0; i < count; ++i) list->scalars.push_back(const_cast<aclScalar*>(scalars[i]));
  return list;
}

#define DESTROY(NAME)                                        \
  VNPU_EXPORT int aclDestroy##NAME(const acl##NAME* value) { \
    delete value;                                            \
    return 0;                                                \
  }
DESTROY(Tensor)
DESTROY(Scalar)
DESTROY(IntArray)
DESTROY(FloatArray)
DESTROY(BoolArray)

// A list owns what is in it.
VNPU_EXPORT int aclDestroyTensorList(const aclTensorList* list) {
  if (list == nullptr) return 0;
  for (const aclTensor* tensor : list->tensors) delete tensor;
  delete list;
  return 0;
}

VNPU_EXPORT int aclDestroyScalarList(const aclScalarList* list) {
  if (list == nullptr) return 0;
  for (const aclScalar* scalar : list->scalars) delete scalar;
  delete list;
  return 0;
}

VNPU_EXPORT int aclDestroyAclOpExecutor(aclOpExecutor* executor) {
  delete executor;
  return 0;
}

// For outputs whose size the operator decided; the caller frees the array with delete[].
VNPU_EXPORT int aclGetViewShape(const aclTensor* tensor, int64_t** sizes, uint64_t* dims) {
  const at::IntArrayRef shape = tensor->tensor.sizes();
  *dims = shape.size();
  *sizes = new int64_t[shape.size()];
  std::copy(shape.begin(), shape.end(), *sizes);
  return 0;
}

}  // extern "C"
