// Schemas and autograd behaviour of the op family. Backends register their kernels beside their
// code.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace pa_hp {
namespace {

using at::Tensor;
using Scale = std::optional<double>;

TORCH_LIBRARY(pa_hp, m) {
  // The fakes must come from this module; torch enforces it and names it in its error.
  m.set_python_module("pa_hp.ops.fake");
  m.def(
      "decode(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, "
      "Tensor seq_lens, *, float? scale=None) -> Tensor");
  // Not `decode.out`: an overload tagged `out` makes Inductor lower the functional op to it and
  // then fail on dynamic shapes (pytorch#185503); a mutable op that returns nothing has no such
  // trouble.
  m.def(
      "decode_out(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, "
      "Tensor seq_lens, *, float? scale=None, Tensor(a!) out) -> ()");
  m.def(
      "decode_lse(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, "
      "Tensor seq_lens, *, float? scale=None) -> (Tensor out, Tensor lse)");
}

std::string inference_only(const std::string& op) {
  return "pa_hp." + op +
         " is inference-only: it has no backward and no tangents; call it under torch.no_grad() "
         "or detach the inputs";
}

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// With nothing registered for Autograd, gradients would be None with hardly a word. Here the result
// carries a node whose backward raises, and the forward stays usable.
struct InferenceOnly : torch::autograd::Function<InferenceOnly> {
  template <class Forward>
  static std::vector<Tensor> forward(torch::autograd::AutogradContext* context, const Tensor&,
                                     const Tensor&, const Tensor&, const char* op,
                                     const Forward& run) {
    context->saved_data["op"] = std::string(op);
    return run();
  }
  static std::vector<Tensor> backward(torch::autograd::AutogradContext* context,
                                      const std::vector<Tensor>&) {
    TORCH_CHECK(false, inference_only(context->saved_data["op"].toStringRef()));
  }
};

// Forward mode would take the tangents of what comes without any for zeros.
void check_no_tangents(const char* op, const Tensor& query, const Tensor& key_cache,
                       const Tensor& value_cache) {
  for (const Tensor* tensor : {&query, &key_cache, &value_cache}) {
    TORCH_CHECK(!tensor->_fw_grad(/*level=*/0).defined(), inference_only(op));
  }
}

bool wants_grad(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache) {
  return at::GradMode::is_enabled() &&
         (query.requires_grad() || key_cache.requires_grad() || value_cache.requires_grad());
}

Tensor decode_autograd(c10::DispatchKeySet keys, const Tensor& query, const Tensor& key_cache,
                       const Tensor& value_cache, const Tensor& block_table, const Tensor& seq_lens,
                       Scale scale) {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        const Tensor&, Scale)>("pa_hp::decode");
  const auto run = [&] {
    return op.redispatch(keys & c10::after_autograd_keyset, query, key_cache, value_cache,
                         block_table, seq_lens, scale);
  };
  check_no_tangents("decode", query, key_cache, value_cache);
  if (!wants_grad(query, key_cache, value_cache)) return run();
  return InferenceOnly::apply(query, key_cache, value_cache, "decode",
                              [&] { return std::vector<Tensor>{run()}; })[0];
}

std::tuple<Tensor, Tensor> decode_lse_autograd(c10::DispatchKeySet keys, const Tensor& query,
                                               const Tensor& key_cache, const Tensor& value_cache,
                                               const Tensor& block_table, const Tensor& seq_lens,
                                               Scale scale) {
  static const auto op =
      find_op<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                         const Tensor&, Scale)>("pa_hp::decode_lse");
  const auto run = [&] {
    return op.redispatch(keys & c10::after_autograd_keyset, query, key_cache, value_cache,
                         block_table, seq_lens, scale);
  };
  check_no_tangents("decode_lse", query, key_cache, value_cache);
  if (!wants_grad(query, key_cache, value_cache)) return run();
  const auto results = InferenceOnly::apply(query, key_cache, value_cache, "decode_lse", [&] {
    auto [out, lse] = run();
    return std::vector<Tensor>{out, lse};
  });
  return {results[0], results[1]};
}

void decode_out_autograd(c10::DispatchKeySet keys, const Tensor& query, const Tensor& key_cache,
                         const Tensor& value_cache, const Tensor& block_table,
                         const Tensor& seq_lens, Scale scale, Tensor& out) {
  static const auto op = find_op<void(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                      const Tensor&, Scale, Tensor&)>("pa_hp::decode_out");
  check_no_tangents("decode_out", query, key_cache, value_cache);
  // A history cannot be hung on a caller's tensor safely, so the refusal comes at once, as torch's
  // own `out=` functions do it.
  TORCH_CHECK(!wants_grad(query, key_cache, value_cache) &&
                  !(at::GradMode::is_enabled() && out.requires_grad()),
              inference_only("decode_out"));
  op.redispatch(keys & c10::after_autograd_keyset, query, key_cache, value_cache, block_table,
                seq_lens, scale, out);
}

// Runs in inference mode too, as for torch's own in-place functions: what saved `out` before must
// notice.
void decode_out_inplace(c10::DispatchKeySet keys, const Tensor& query, const Tensor& key_cache,
                        const Tensor& value_cache, const Tensor& block_table,
                        const Tensor& seq_lens, Scale scale, Tensor& out) {
  static const auto op = find_op<void(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                      const Tensor&, Scale, Tensor&)>("pa_hp::decode_out");
  op.redispatch(keys & c10::after_ADInplaceOrView_keyset, query, key_cache, value_cache,
                block_table, seq_lens, scale, out);
  out.unsafeGetTensorImpl()->bump_version();
}

TORCH_LIBRARY_IMPL(pa_hp, Autograd, m) {
  m.impl("decode", TORCH_FN(decode_autograd));
  m.impl("decode_out", TORCH_FN(decode_out_autograd));
  m.impl("decode_lse", TORCH_FN(decode_lse_autograd));
}

TORCH_LIBRARY_IMPL(pa_hp, ADInplaceOrView, m) {
  m.impl("decode_out", TORCH_FN(decode_out_inplace));
}

}  // namespace
}  // namespace pa_hp
