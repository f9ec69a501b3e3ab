"""The NPU kernel on the modelled chip: ``pa_hp.simulate``."""

from __future__ import annotations

import functools
import numbers
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import sim
from ..kernels.sim.report import chip_parameters
from ..tiling.plan import DecodeDesc, finite, plan, workspace_bytes
from .fake import NPU_LIMITS, _Checker

_OPTIONS = {"blind", "check", "drop", "latest", "schedule_seed", "strict_visibility", "warm"}
_SOURCE = Path(__file__).resolve().parent.parent / "kernels" / "npu" / "decode.cce"


@functools.lru_cache
def kernel() -> sim.Kernel:
    """The NPU kernel, built for the simulator."""
    return sim.Kernel(_SOURCE, "pa_hp_decode", include_dirs=[_SOURCE.parent])


def describe(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    out: Tensor,
    scale: float | None,
    clusters: int,
) -> DecodeDesc:
    """What the plan of a decode depends on, taken from its tensors."""
    batch, heads, head_dim = query.shape
    num_blocks, block_size, kv_heads, head_dim_v = value_cache.shape
    return DecodeDesc(
        dtype=str(query.dtype).removeprefix("torch."),
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        num_blocks=num_blocks,
        block_size=block_size,
        max_blocks=block_table.shape[1],
        scale=head_dim**-0.5 if scale is None else scale,
        clusters=clusters,
        query_strides=query.stride()[:2],
        key_strides=key_cache.stride()[:3],
        value_strides=value_cache.stride()[:3],
        block_table_stride=block_table.stride(0),
        out_strides=out.stride()[:2],
    )


def simulate(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    scale: float | None = None,
    soc: str = "910B2",
    lse: Tensor | None = None,
    workspace: Tensor | None = None,
    timed: bool = True,
    **options: Any,
) -> tuple[Tensor, sim.Report]:
    """Run the NPU kernel of :func:`pa_hp.decode` on a model of the chip.

    Parameters
    ----------
    query, key_cache, value_cache, block_table, seq_lens, scale
        As for :func:`pa_hp.decode`, on the CPU, with the NPU kernel's limits: float16 or bfloat16,
        head_dim and head_dim_v multiples of 16 up to 256, block_size a multiple of 16 up to 512,
        up to 64 query heads a kv head. A row whose length or block id is out of range comes back
        as NaN, as on the chip.
    soc : str
        Chip: 910B1, 910B2, 910B3 or 910B4. Its cube cores are the clusters that share the work.
    lse : Tensor, float32, shape ``[batch, heads]``, contiguous, optional
        Takes the log-sum-exp.
    workspace : Tensor, uint8, contiguous, optional
        Scratch memory, whatever it holds, of ``pa_hp.tiling.workspace_bytes(head_dim_v, clusters)``
        bytes or more; fresh if absent.
    timed : bool
        Model the time; without it the report has none.
    **options
        Of :meth:`pa_hp.sim.Kernel.launch`: check, strict_visibility, schedule_seed, latest, warm,
        drop, blind.

    Returns
    -------
    out : Tensor
        As of :func:`pa_hp.decode`.
    report : Report
        Hazards found and the **modelled** time; nothing is measured. `balance` is of the cube
        cores: the last one's end over the mean of all, before the vector cores merge.

    Raises
    ------
    TypeError, ValueError
        Tensors or a scale other than the ones above, an unknown `soc` or option.
    pa_hp.BuildError
        The simulator or the kernel cannot be built.
    """
    inputs = {
        "query": query,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "block_table": block_table,
        "seq_lens": seq_lens,
    }
    if lse is not None:
        inputs["lse"] = lse
    if workspace is not None:
        inputs["workspace"] = workspace
    for name, tensor in inputs.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"pa_hp.simulate: expected {name} to be a Tensor, got {type(tensor).__name__}"
            )
    if not isinstance(scale, numbers.Real | None):
        raise TypeError(
            f"pa_hp.simulate: expected scale to be a number or None, got {type(scale).__name__}"
        )
    unknown = set(options) - _OPTIONS
    if unknown:
        raise TypeError(
            f"pa_hp.simulate: expected an option to be one of {', '.join(sorted(_OPTIONS))}, got "
            f"{', '.join(sorted(unknown))}"
        )
    checker = _Checker("simulate", query, NPU_LIMITS)
    checker.inputs(query, key_cache, value_cache, block_table, seq_lens)
    for name, tensor in inputs.items():
        on_cpu = tensor.device.type == "cpu"
        checker.expect(torch._check_value, on_cpu, name, "on the CPU", tensor.device)
    # A view that is to be read with another sign is read as torch reads it.
    query, key_cache, value_cache, block_table, seq_lens = (
        tensor.resolve_neg() for tensor in (query, key_cache, value_cache, block_table, seq_lens)
    )
    batch, heads, _ = query.shape
    head_dim_v = value_cache.size(3)
    (clusters,) = (int(n) for n in chip_parameters(soc, ["cube_cores"]))
    out = query.new_empty(batch, heads, head_dim_v)
    good = scale is None or finite(scale)
    checker.expect(torch._check_value, good, "scale", "finite in float32 times log2(e)", scale)
    the_plan = plan(describe(query, key_cache, value_cache, block_table, out, scale, clusters))
    size = workspace_bytes(head_dim_v, clusters)
    if workspace is None:
        workspace = torch.empty(size, dtype=torch.uint8)
    for name, scratch, dtype in (
        ("workspace", workspace, torch.uint8),
        ("lse", lse, torch.float32),
    ):
        if scratch is None:
            continue
        good = scratch.dtype == dtype and scratch.is_contiguous()
        got = f"{scratch.dtype}, strides {list(scratch.stride())}"
        checker.expect(torch._check_value, good, name, f"{dtype}, contiguous", got)
    checker.expect(torch._check_value, workspace.numel() >= size, "workspace.numel()",
                   f"at least {size}", workspace.numel())  # fmt: skip
    if lse is not None:
        checker.expect(torch._check_value, not lse.is_neg(), "lse",
                       "a tensor of its own", "a negated view")  # fmt: skip
        checker.expect(torch._check_value, lse.shape == (batch, heads), "lse",
                       f"of shape {[batch, heads]}", list(lse.shape))  # fmt: skip
    report = kernel().launch(
        clusters, 0, query, key_cache, value_cache, block_table, seq_lens, out, lse, workspace,
        the_plan.pack(), soc=soc if timed else None, **options,
    )  # fmt: skip
    if report.timeline is not None:
        ends = report.timeline.core_ends()
        cubes = [end for name, end in ends.items() if name.startswith("AIC")]
        report.balance = float(max(cubes) / np.mean(cubes))
    return out, report
