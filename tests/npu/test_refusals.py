"""What pa_hp.simulate refuses, and how it says so."""

import pa_hp
import pytest
import torch

SHAPE = {"query": (2, 4, 32), "key_cache": (6, 16, 2, 32), "value_cache": (6, 16, 2, 32)}


def tensors(**changes):
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(shape, generator=generator).half() for name, shape in SHAPE.items()}
    inputs["block_table"] = torch.arange(6, dtype=torch.int32).view(2, 3)
    inputs["seq_lens"] = torch.tensor([40, 7], dtype=torch.int32)
    return inputs | changes


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (TypeError, {"query": [1.0]}, "expected query to be a Tensor, got list"),
        (TypeError, {"seq_lens": None}, "expected seq_lens to be a Tensor, got NoneType"),
        (TypeError, {"lse": True}, "expected lse to be a Tensor, got bool"),
        (TypeError, {"workspace": 7}, "expected workspace to be a Tensor, got int"),
        (TypeError, {"checks": False}, "expected an option to be one of blind, check, drop"),
        (TypeError, {"query": torch.zeros(2, 4, 32)}, "expected query to be float16 or bfloat16"),
        (TypeError, {"scale": "0.5"}, "expected scale to be a number or None, got str"),
        (ValueError, {"scale": float("inf")}, "expected scale to be finite in float32"),
        (ValueError, {"scale": 3e38}, "expected scale to be finite in float32"),
        (
            ValueError,
            {"query": torch.zeros(2, 4, 24).half(), "key_cache": torch.zeros(6, 16, 2, 24).half()},
            "expected query.size(2) to be a multiple of 16 up to 256, got 24",
        ),
        (
            ValueError,
            {name: torch.zeros(shape, device="meta").half() for name, shape in SHAPE.items()}
            | {
                "block_table": torch.zeros(2, 3, dtype=torch.int32, device="meta"),
                "seq_lens": torch.zeros(2, dtype=torch.int32, device="meta"),
            },
            "expected query to be on the CPU, got meta",
        ),
        (ValueError, {"lse": torch.zeros(2, 4, device="meta")}, "expected lse to be on the CPU"),
        (ValueError, {"lse": torch.zeros(4, 2).t()}, "expected lse to be torch.float32, contig"),
        (
            ValueError,
            {"lse": torch._neg_view(torch.zeros(2, 4))},
            "expected lse to be a tensor of its own, got a negated view",
        ),
        (ValueError, {"lse": torch.zeros(2, 3)}, "expected lse to be of shape [2, 4], got [2, 3]"),
        (
            ValueError,
            {"workspace": torch.zeros(1000, dtype=torch.uint8)},
            "expected workspace.numel() to be at least",
        ),
    ],
)
def test_refused(kind, changes, message):
    with pytest.raises(kind) as error:
        pa_hp.simulate(**tensors(**changes))
    assert str(error.value).startswith(f"pa_hp.simulate: {message}"), str(error.value)


def test_a_workspace_of_just_the_size_will_do():
    size = pa_hp.tiling.workspace_bytes(32, 24)
    pa_hp.simulate(**tensors(workspace=torch.zeros(size, dtype=torch.uint8)), timed=False)


@pytest.mark.parametrize("name", [*SHAPE, "block_table", "seq_lens"])
def test_a_negated_view_is_read_as_torch_reads_it(name):
    inputs = tensors()
    negated = torch._neg_view(inputs[name].neg())
    assert negated.is_neg() and torch.equal(negated, inputs[name])
    want, _ = pa_hp.simulate(**inputs, timed=False)
    got, _ = pa_hp.simulate(**inputs | {name: negated}, timed=False)
    assert torch.equal(got, want)


def test_the_report_says_what_was_not_done():
    _, report = pa_hp.simulate(**tensors(), check=False, timed=False)
    assert "hazards: none (checker off: only what" in str(report)
    assert "operations" not in str(report)
    assert str(report).endswith("no time was modelled")
    _, report = pa_hp.simulate(**tensors())
    assert "hazards: none; " in str(report)
