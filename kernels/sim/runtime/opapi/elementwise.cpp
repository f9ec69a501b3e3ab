// Operators element by element, copies and fills.
#include "op.h"

using namespace vnpu;

#define UNARY(NAME, EXPR) \
  OP(NAME, (T, x), (T, out)) { out.copy_(EXPR); }
UNARY(Abs, at::abs(x))
UNARY(Acos, at::acos(x))
UNARY(Asin, at::asin(x))
UNARY(Atan, at::atan(x))
UNARY(BitwiseNot, at::bitwise_not(x))
UNARY(Ceil, at::ceil(x))
UNARY(Cos, at::cos(x))
UNARY(Cosh, at::cosh(x))
UNARY(Erf, at::erf(x))
UNARY(Exp, at::exp(x))
UNARY(Exp2, at::exp2(x))
UNARY(Expm1, at::expm1(x))
UNARY(Floor, at::floor(x))
UNARY(Gelu, at::gelu(x))
UNARY(IsFinite, at::isfinite(x))
UNARY(IsInf, at::isinf(x))
UNARY(Log, at::log(x))
UNARY(Log10, at::log10(x))
UNARY(Log1p, at::log1p(x))
UNARY(Log2, at::log2(x))
UNARY(LogicalNot, at::logical_not(x))
UNARY(Neg, at::neg(x))
UNARY(Reciprocal, at::reciprocal(x))
UNARY(Relu, at::relu(x))
UNARY(Round, at::round(x))
UNARY(Rsqrt, at::rsqrt(x))
UNARY(Sigmoid, at::sigmoid(x))
UNARY(Sign, at::sign(x))
UNARY(Silu, at::silu(x))
UNARY(Sin, at::sin(x))
UNARY(Sinh, at::sinh(x))
UNARY(Sqrt, at::sqrt(x))
UNARY(Tan, at::tan(x))
UNARY(Tanh, at::tanh(x))
UNARY(Trunc, at::trunc(x))
#undef UNARY

#define IN_PLACE(NAME, EXPR) \
  OP(Inplace##NAME, (T, x)) { x.copy_(EXPR); }
IN_PLACE(Abs, at::abs(x))
IN_PLACE(BitwiseNot, at::bitwise_not(x))
IN_PLACE(Ceil, at::ceil(x))
IN_PLACE(Cos, at::cos(x))
IN_PLACE(Exp, at::exp(x))
IN_PLACE(Floor, at::floor(x))
IN_PLACE(Log, at::log(x))
IN_PLACE(LogicalNot, at::logical_not(x))
IN_PLACE(Neg, at::neg(x))
IN_PLACE(One, at::ones_like(x))
IN_PLACE(Reciprocal, at::reciprocal(x))
IN_PLACE(Relu, at::relu(x))
IN_PLACE(Round, at::round(x))
IN_PLACE(Rsqrt, at::rsqrt(x))
IN_PLACE(Sigmoid, at::sigmoid(x))
IN_PLACE(Sin, at::sin(x))
IN_PLACE(Sqrt, at::sqrt(x))
IN_PLACE(Tanh, at::tanh(x))
IN_PLACE(Zero, at::zeros_like(x))
#undef IN_PLACE

// Two tensors, or a tensor and a scalar; a new tensor, or the first one.
#define BINARY(TENSOR, SCALAR, EXPR)                                        \
  OP(TENSOR, (T, x), (T, y), (T, out)) { out.copy_(EXPR); }                 \
  OP(SCALAR, (T, x), (S, scalar), (T, out)) {                               \
    const T y = at::scalar_tensor(scalar, x.options().dtype(kind(scalar))); \
    out.copy_(EXPR);                                                        \
  }                                                                         \
  OP(Inplace##TENSOR, (T, x), (T, y)) { x.copy_(EXPR); }                    \
  OP(Inplace##SCALAR, (T, x), (S, scalar)) {                                \
    const T y = at::scalar_tensor(scalar, x.options().dtype(kind(scalar))); \
    x.copy_(EXPR);                                                          \
  }

// A number without dimensions takes part in type promotion as a Python number does.
static at::ScalarType kind(const S& scalar) {
  if (scalar.isBoolean()) return at::kBool;
  if (scalar.isIntegral(false)) return at::kLong;
  return scalar.isComplex() ? at::kComplexDouble : at::kDouble;
}

BINARY(Mul, Muls, at::mul(x, y))
BINARY(Div, Divs, at::div(x, y))
BINARY(FloorDivide, FloorDivides, at::floor_divide(x, y))
BINARY(RemainderTensorTensor, RemainderTensorScalar, at::remainder(x, y))
BINARY(FmodTensor, FmodScalar, at::fmod(x, y))
BINARY(PowTensorTensor, PowTensorScalar, at::pow(x, y))
BINARY(EqTensor, EqScalar, at::eq(x, y))
BINARY(NeTensor, NeScalar, at::ne(x, y))
BINARY(LtTensor, LtScalar, at::lt(x, y))
BINARY(LeTensor, LeScalar, at::le(x, y))
BINARY(GtTensor, GtScalar, at::gt(x, y))
BINARY(GeTensor, GeScalar, at::ge(x, y))
BINARY(BitwiseAndTensor, BitwiseAndScalar, at::bitwise_and(x, y))
BINARY(BitwiseOrTensor, BitwiseOrScalar, at::bitwise_or(x, y))
BINARY(BitwiseXorTensor, BitwiseXorScalar, at::bitwise_xor(x, y))
#undef BINARY

OP(PowScalarTensor, (S, x), (T, y), (T, out)) { out.copy_(at::pow(x, y)); }
OP(RemainderScalarTensor, (S, x), (T, y), (T, out)) { out.copy_(at::remainder(x, y)); }

#define PAIR(NAME, EXPR) \
  OP(NAME, (T, x), (T, y), (T, out)) { out.copy_(EXPR); }
PAIR(Maximum, at::maximum(x, y))
PAIR(Minimum, at::minimum(x, y))
PAIR(LogicalAnd, at::logical_and(x, y))
PAIR(LogicalOr, at::logical_or(x, y))
PAIR(LogicalXor, at::logical_xor(x, y))
PAIR(Atan2, at::atan2(x, y))
#undef PAIR

static std::optional<c10::string_view> rounding(N mode) {
  if (mode == 0) return std::nullopt;
  return mode == 1 ? "trunc" : "floor";
}
OP(DivMod, (T, x), (T, y), (Mode, mode), (T, out)) { out.copy_(at::div(x, y, rounding(mode))); }
OP(DivMods, (T, x), (S, y), (Mode, mode), (T, out)) { out.copy_(at::div(x, y, rounding(mode))); }
OP(InplaceDivMod, (T, x), (T, y), (Mode, mode)) { x.copy_(at::div(x, y, rounding(mode))); }
OP(InplaceDivMods, (T, x), (S, y), (Mode, mode)) { x.copy_(at::div(x, y, rounding(mode))); }

OP(Add, (T, x), (T, y), (S, alpha), (T, out)) { out.copy_(at::add(x, y, alpha)); }
OP(Adds, (T, x), (S, y), (S, alpha), (T, out)) { out.copy_(at::add(x, y, alpha)); }
OP(InplaceAdd, (T, x), (T, y), (S, alpha)) { x.copy_(at::add(x, y, alpha)); }
OP(InplaceAdds, (T, x), (S, y), (S, alpha)) { x.copy_(at::add(x, y, alpha)); }
OP(Sub, (T, x), (T, y), (S, alpha), (T, out)) { out.copy_(at::sub(x, y, alpha)); }
OP(Subs, (T, x), (S, y), (S, alpha), (T, out)) { out.copy_(at::sub(x, y, alpha)); }
OP(InplaceSub, (T, x), (T, y), (S, alpha)) { x.copy_(at::sub(x, y, alpha)); }
OP(InplaceSubs, (T, x), (S, y), (S, alpha)) { x.copy_(at::sub(x, y, alpha)); }
OP(Rsub, (T, x), (T, y), (S, alpha), (T, out)) { out.copy_(at::rsub(x, y, alpha)); }
OP(Rsubs, (T, x), (S, y), (S, alpha), (T, out)) { out.copy_(at::rsub(x, y, alpha)); }
OP(Addcmul, (T, x), (T, a), (T, b), (S, value), (T, out)) {
  out.copy_(at::addcmul(x, a, b, value));
}
OP(Addcdiv, (T, x), (T, a), (T, b), (S, value), (T, out)) {
  out.copy_(at::addcdiv(x, a, b, value));
}
OP(Lerps, (T, x), (T, end), (S, weight), (T, out)) { out.copy_(at::lerp(x, end, weight)); }
OP(Lerp, (T, x), (T, end), (T, weight), (T, out)) { out.copy_(at::lerp(x, end, weight)); }

OP(Clamp, (T, x), (MaybeS, low), (MaybeS, high), (T, out)) { out.copy_(at::clamp(x, low, high)); }
OP(ClampMin, (T, x), (S, low), (T, out)) { out.copy_(at::clamp_min(x, low)); }
OP(ClampMax, (T, x), (S, high), (T, out)) { out.copy_(at::clamp_max(x, high)); }
OP(ClampTensor, (T, x), (T, low), (T, high), (T, out)) {
  out.copy_(at::clamp(x, low.defined() ? std::optional<T>(low) : std::nullopt,
                      high.defined() ? std::optional<T>(high) : std::nullopt));
}
OP(GeluV2, (T, x), (N, approximate), (T, out)) {
  out.copy_(at::gelu(x, approximate == 1 ? "tanh" : "none"));
}
OP(LeakyRelu, (T, x), (S, slope), (T, out)) { out.copy_(at::leaky_relu(x, slope)); }
OP(Softplus, (T, x), (S, beta), (S, threshold), (T, out)) {
  out.copy_(at::softplus(x, beta, threshold));
}
OP(NanToNum, (T, x), (F, nan), (F, high), (F, low), (T, out)) {
  out.copy_(at::nan_to_num(x, nan, high, low));
}
OP(SWhere, (T, condition), (T, x), (T, y), (T, out)) { out.copy_(at::where(condition, x, y)); }
OP(IsClose, (T, x), (T, y), (D, rtol), (D, atol), (B, equal_nan), (T, out)) {
  out.copy_(at::isclose(x, y, rtol, atol, equal_nan));
}

OP(Cast, (T, x), (Type, type), (T, out)) { out.copy_(x.to(type.value)); }
OP(InplaceCopy, (T, to), (T, from)) { to.copy_(from); }
OP(InplaceFillScalar, (T, x), (S, value)) { x.fill_(value); }
OP(InplaceFillTensor, (T, x), (T, value)) { x.copy_(value.expand_as(x)); }
OP(InplaceMaskedFillScalar, (T, x), (T, mask), (S, value)) { x.masked_fill_(mask, value); }
OP(InplaceMaskedFillTensor, (T, x), (T, mask), (T, value)) {
  x.masked_fill_(mask, value.reshape({}));
}
