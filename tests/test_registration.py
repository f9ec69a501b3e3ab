"""What the dispatcher knows of the ops: schemas, keys, fakes, autograd, and what a call costs."""

import inspect
import re
import statistics
import time
from functools import partial

import pa_hp
import pytest
import torch
from pa_hp.bench.cases import make, named
from pa_hp.ops import fake
from torch.autograd import forward_ad

pa_hp.load()
OPS = {name: getattr(torch.ops.pa_hp, name) for name in ("decode", "decode_out", "decode_lse")}

# One of every class: plain, GQA, MHA, MQA, strided, one row, empty rows, no rows, unequal dims.
CLASSES = [
    named("block_edges"),
    named("group_1", torch.bfloat16),
    named("group_8", torch.float16),
    named("group_5"),
    named("query_heads_first"),
    named("everything_strided", torch.bfloat16),
    named("one_token"),
    named("only_empty_rows"),
    named("no_rows"),
    named("head_dim_64_v_8"),
    named("scale_given"),
]


OPCHECK_UTILS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def keyword(op: str, case, inputs) -> dict:
    """Keyword arguments of a call, with an `out` where the op wants one."""
    extra = {"scale": case.scale}
    if op == "decode_out":
        query, _, value_cache = inputs[:3]
        extra["out"] = query.new_empty(query.size(0), query.size(1), value_cache.size(3))
    return extra


@pytest.mark.parametrize("case", CLASSES, ids=lambda case: case.id)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, case):
    inputs = make(case)
    torch.library.opcheck(
        OPS[op],
        tuple(inputs),
        keyword(op, case, inputs),
        test_utils=OPCHECK_UTILS,
    )


@pytest.mark.parametrize("op", OPS)
def test_registered_keys(op):
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for key in ("CPU", "Autograd", "Meta"):
        assert has(f"pa_hp::{op}", key), key
    computed = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    for key in ("AutogradCPU", "AutogradPrivateUse1", "AutogradMeta"):
        assert computed(f"pa_hp::{op}", key), key
    for key in ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CUDA"):
        assert not has(f"pa_hp::{op}", key), key


@pytest.mark.parametrize("op", OPS)
def test_one_schema_everywhere(op):
    """Schema, Python signature, fake signature and docstring: same names, same order."""
    schema = OPS[op].default._schema
    names = [argument.name for argument in schema.arguments]
    public = inspect.signature(getattr(pa_hp, op))
    assert list(public.parameters) == names
    assert list(inspect.signature(getattr(fake, f"_{op}")).parameters) == names
    for argument in schema.arguments:
        expected = (
            inspect.Parameter.KEYWORD_ONLY
            if argument.kwarg_only
            else inspect.Parameter.POSITIONAL_OR_KEYWORD
        )
        parameter = public.parameters[argument.name]
        assert parameter.kind is expected
        assert (parameter.default is not inspect.Parameter.empty) == argument.has_default_value()
        if argument.has_default_value():
            assert parameter.default == argument.default_value
    assert documented_parameters(getattr(pa_hp, op)) == names
    assert documented_parameters(pa_hp.reference) == [name for name in names if name != "out"]


def documented_parameters(function) -> list[str]:
    section = inspect.getdoc(function).split("Parameters\n----------\n")[1]
    section = re.split(r"\n\n\w+\n-+\n", section)[0]
    heads = re.findall(r"^(\S.*?)(?: : .*)?$", section, flags=re.MULTILINE)
    return [name for head in heads for name in head.split(", ")]


def test_schema_text():
    names = ("query", "key_cache", "value_cache", "block_table", "seq_lens")
    inputs = ", ".join(f"Tensor {name}" for name in names) + ", *, float? scale=None"
    expected = {
        "decode": f"pa_hp::decode({inputs}) -> Tensor",
        "decode_out": f"pa_hp::decode_out({inputs}, Tensor(a!) out) -> ()",
        "decode_lse": f"pa_hp::decode_lse({inputs}) -> (Tensor out, Tensor lse)",
    }
    assert {op: str(OPS[op].default._schema) for op in OPS} == expected


@pytest.mark.parametrize("case", CLASSES, ids=lambda case: case.id)
def test_fake_output_is_like_the_real_one(case):
    inputs = make(case)
    on_meta = [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in inputs
    ]
    real = (OPS["decode"](*inputs), *OPS["decode_lse"](*inputs))
    dry = (OPS["decode"](*on_meta), *OPS["decode_lse"](*on_meta))
    assert len(real) == len(dry) == 3
    for want, got in zip(real, dry, strict=True):
        assert got.device.type == "meta"
        assert (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype)
    into = torch.empty_like(dry[0])
    assert OPS["decode_out"](*on_meta, out=into) is None


def no_derivative(op: str) -> str:
    return re.escape(
        f"pa_hp.{op} is inference-only: it has no backward and no tangents; call it under "
        f"torch.no_grad() or detach the inputs"
    )


@pytest.mark.parametrize("argument", [0, 1, 2], ids=["query", "key_cache", "value_cache"])
@pytest.mark.parametrize("op", ["decode", "decode_lse", "decode_out"])
def test_forward_mode_raises(op, argument):
    """Also under no_grad, which torch's forward mode does not mind."""
    inputs = list(make(named("block_edges")))
    out = {"out": torch.empty_like(OPS["decode"](*inputs))} if op == "decode_out" else {}
    with forward_ad.dual_level(), torch.no_grad():
        inputs[argument] = forward_ad.make_dual(inputs[argument], inputs[argument])
        with pytest.raises(RuntimeError, match=no_derivative(op)):
            OPS[op](*inputs, **out)

    def call(x):
        return OPS[op](*inputs[:argument], x, *inputs[argument + 1 :], **out)

    plain = forward_ad.unpack_dual(inputs[argument]).primal
    with pytest.raises(RuntimeError, match=no_derivative(op)):
        torch.func.jvp(call, (plain,), (plain,))


@pytest.mark.parametrize("argument", [0, 1, 2], ids=["query", "key_cache", "value_cache"])
@pytest.mark.parametrize("op", ["decode", "decode_lse"])
def test_backward_raises(op, argument):
    inputs = make(named("block_edges"))
    want = OPS[op](*inputs)
    inputs[argument].requires_grad_()
    got = OPS[op](*inputs)  # the forward is unharmed
    for index, (a, b) in enumerate(zip(as_tuple(got), as_tuple(want), strict=True)):
        assert a.requires_grad and torch.equal(a, b)
        with pytest.raises(RuntimeError, match=no_derivative(op)):
            as_tuple(OPS[op](*inputs))[index].sum().backward()
    assert inputs[argument].grad is None


def as_tuple(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("argument", [0, 1, 2, "out"])
def test_decode_out_refuses_gradients(argument):
    inputs = make(named("block_edges"))
    out = torch.full_like(inputs.query, 5.0)
    (out if argument == "out" else inputs[argument]).requires_grad_()
    with pytest.raises(RuntimeError, match=no_derivative("decode_out")):
        OPS["decode_out"](*inputs, out=out)
    assert (out == 5.0).all()
    with torch.no_grad():
        OPS["decode_out"](*inputs, out=out)
    assert not (out == 5.0).any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    inputs = make(named("block_edges"))
    want = OPS["decode_lse"](*inputs)
    inputs.query.requires_grad_()
    with mode():
        out = OPS["decode"](*inputs)
        both = OPS["decode_lse"](*inputs)
        into = torch.empty_like(out)
        OPS["decode_out"](*inputs, out=into)
    assert not out.requires_grad and not both[0].requires_grad
    for got in (out, both[0], into):
        assert torch.equal(got, want[0])
    assert torch.equal(both[1], want[1])


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_version_counter_of_out(mode):
    """Autograd must see that a tensor which it saved has been overwritten."""
    inputs = make(named("block_edges"))
    out = torch.zeros_like(inputs.query)
    versions = [tensor._version for tensor in inputs]
    before = out._version
    with mode():
        OPS["decode_out"](*inputs, out=out)
    assert out._version == before + 1
    assert [tensor._version for tensor in inputs] == versions


def test_torch_ops_works_after_the_import_alone(python):
    result = python(
        "-c",
        "import torch, pa_hp\n"
        "cache = torch.ones(1, 16, 1, 8)\n"
        "table = torch.zeros(1, 1, dtype=torch.int32)\n"
        "length = torch.full((1,), 3, dtype=torch.int32)\n"
        "print(torch.ops.pa_hp.decode(cache[:, 0], cache, cache, table, length).tolist())\n",
    )
    assert result.stdout.strip() == str([[[1.0] * 8]])


@pytest.mark.alone
def test_call_overhead(record_property, set_threads):
    """A call costs at most three two-tensor additions; the figure goes into the test report."""
    set_threads(1)
    inputs = make(named("one_token"))
    a, b = torch.randn(64), torch.randn(64)
    decode = partial(torch.ops.pa_hp.decode, *inputs)
    add = partial(torch.ops.aten.add, a, b)

    def microseconds(function) -> float:
        start = time.perf_counter()
        for _ in range(200):
            function()
        return (time.perf_counter() - start) / 200 * 1e6

    pairs = [(microseconds(decode), microseconds(add)) for _ in range(125)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(own / other for own, other in pairs)
    record_property("decode_us", round(ours, 3))
    record_property("add_us", round(theirs, 3))
    print(f"decode {ours:.2f} us, add {theirs:.2f} us, ratio {ratio:.2f}")
    assert ratio <= 3.0
