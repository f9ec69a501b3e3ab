"""The drop-ins in the place of torch_npu's own functions, so that an engine need not be changed."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .compat import npu_incre_flash_attention, npu_paged_attention

_log = logging.getLogger("pa_hp")
_lock = threading.Lock()
_originals: dict[str, Callable[..., Any]] = {}  # of the functions that are replaced, by name
_users = 0  # patched() blocks that are open, and patch()
_patch_called = False
_graph_has_host_lengths = False
_said: set[tuple[str, str]] = set()


def patch() -> None:
    """Let torch_npu's decode attention run on pa_hp, until :func:`unpatch`.

    Replaces the attributes ``torch_npu.npu_incre_flash_attention`` and
    ``torch_npu._npu_paged_attention`` by :func:`pa_hp.npu_incre_flash_attention` and
    :func:`pa_hp.npu_paged_attention`. A call that these refuse goes to the original, which answers
    or raises as ever; each reason is logged once, as a warning of the logger "pa_hp". Calling it
    again changes nothing.

    Raises
    ------
    ImportError
        torch_npu cannot be imported.

    Notes
    -----
    Reaches callers that look the function up in the module. ``from torch_npu import`` done before,
    and ``torch.ops.npu.npu_incre_flash_attention``, stay what they are.

    ``torch.ops.atb._npu_paged_attention`` gets the fake kernel that it lacks, and keeps it.

    Lengths on the host are constants of a captured graph, and engines that capture them update the
    graph with torch_npu's task groups. So such a capture, and every later call with lengths on the
    host, goes to the original: patch before the first capture, and give lengths on the device.
    """
    global _patch_called
    with _lock:
        if not _patch_called:
            _enter("pa_hp.patch")
            _patch_called = True


def unpatch() -> None:
    """Undo :func:`patch`; without one it changes nothing. :func:`patched` blocks keep theirs."""
    global _patch_called
    with _lock:
        if _patch_called:
            _patch_called = False
            _leave()


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Context in which :func:`patch` is in force; blocks may nest, and overlap in threads.

    The functions are replaced for the whole process. The last to leave restores what the first
    found.
    """
    with _lock:
        _enter("pa_hp.patched")
    try:
        yield
    finally:
        with _lock:
            _leave()


def _enter(where: str) -> None:
    global _users
    if _users == 0:
        try:
            import torch_npu
        except ImportError as error:
            raise ImportError(
                f"{where}: expected torch_npu to be importable, got: {error}; install it"
            ) from error
        # The first call of any ATB function puts all of them into torch_npu, which would undo the
        # patch: let it be now. Without the ATB library it never is.
        with contextlib.suppress(Exception):
            torch_npu._npu_paged_attention()
        _register_fake()
        for name, (ours, lengths) in _DROP_INS.items():
            _originals[name] = getattr(torch_npu, name)
            setattr(torch_npu, name, _replacement(name, ours, lengths, _originals[name]))
    _users += 1


def _leave() -> None:
    global _users
    _users -= 1
    if _users == 0:
        import torch_npu

        for name, original in _originals.items():
            setattr(torch_npu, name, original)
        _originals.clear()


# Of each function: the drop-in, and the lengths in a call of it.
_DROP_INS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "npu_incre_flash_attention": (
        npu_incre_flash_attention,
        lambda *args, actual_seq_lengths=None, **kwargs: actual_seq_lengths,
    ),
    "_npu_paged_attention": (
        npu_paged_attention,
        lambda *args, context_lens=None, **kwargs: args[7] if len(args) > 7 else context_lens,
    ),
}


def _replacement(
    name: str,
    ours: Callable[..., Any],
    lengths: Callable[..., Any],
    original: Callable[..., Any],
) -> Callable[..., Any]:
    @functools.wraps(ours)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            if _for_a_graph(lengths(*args, **kwargs)):
                raise NotImplementedError(
                    "lengths on the host are constants of a captured graph; pass a tensor on the "
                    "NPU"
                )
            return ours(*args, **kwargs)
        # What is not supported, and what is wrong: the original has its own words for that.
        except (NotImplementedError, TypeError, ValueError, IndexError, AttributeError) as error:
            _say(name, str(error))
        return original(*args, **kwargs)

    return call


def _for_a_graph(lengths: Any) -> bool:
    """True for lengths on the host in a graph that is being captured, or once that has been."""
    global _graph_has_host_lengths
    if lengths is None or (isinstance(lengths, Tensor) and lengths.device.type != "cpu"):
        return False
    npu = torch.npu  # type: ignore[attr-defined]
    if not torch.compiler.is_compiling() and npu.is_current_stream_capturing():
        _graph_has_host_lengths = True
    return _graph_has_host_lengths


def _say(name: str, reason: str) -> None:
    """Log a new reason; one that differs in the value alone is none. No more than 256 are new."""
    key = (name, reason.partition(", got")[0])
    if key not in _said and len(_said) < 256:
        _said.add(key)
        _log.warning("torch_npu.%s is left to torch_npu: %s", name, reason)


# As for build.load: torch.compile runs it when it traces.
_say._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _register_fake() -> None:
    """For meta tensors, and for torch.compile of a PyTorch that cannot tell from the schema."""
    name = "atb::_npu_paged_attention"
    if hasattr(torch.ops.atb, "_npu_paged_attention") and not (
        torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta")
    ):
        torch.library.register_fake(name, lambda *args, **kwargs: None)
