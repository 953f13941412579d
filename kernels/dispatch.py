"""Which backend runs where: decided here, in one place, and said once in the log."""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch

__all__ = ["BACKENDS", "HEAD_SIZES", "choose_backend"]

BACKENDS = ("triton", "triton_ptr", "flex", "sdpa", "dense")
"""triton: Hopper and later; triton_ptr: Ampere and Ada; flex: FlexAttention; sdpa: anywhere; dense: small checks."""

HEAD_SIZES = (32, 64, 128, 256)
"""What the Triton kernels are written for."""

log = logging.getLogger("treewright.kernels")


def choose_backend(
    backend: str, device: torch.device, dtype: torch.dtype, width: int, value_width: int | None = None
) -> str:
    """The backend for tensors of this device, dtype and head sizes: `backend` itself unless it is "auto".

    Raises ValueError for a name that does not exist.
    """
    if backend == "auto":
        return _automatic(device.type, device.index, dtype, width, width if value_width is None else value_width)
    if backend not in BACKENDS:
        raise ValueError(f"no attention backend is called {backend!r}; choose auto or one of {', '.join(BACKENDS)}")
    return backend


@functools.cache
def _automatic(kind: str, index: int | None, dtype: torch.dtype, width: int, value_width: int) -> str:
    chosen, why = _reasoned(kind, index, dtype, width, value_width)
    name = str(dtype).removeprefix("torch.")
    size = str(width) if value_width == width else f"{width} (values {value_width})"
    log.info("tree attention on %s in %s, head size %s: backend %s (%s)", kind, name, size, chosen, why)
    return chosen


def _reasoned(
    kind: str, index: int | None, dtype: torch.dtype, width: int, value_width: int | None = None
) -> tuple[str, str]:
    if kind != "cuda":
        return "sdpa", "per run over its root path"
    if dtype == torch.float64:
        return "sdpa", "no GPU kernel takes float64"
    capability = torch.cuda.get_device_capability(index)
    if importlib.util.find_spec("triton") is None:
        return "sdpa", "Triton is not installed"
    known = {width, width if value_width is None else value_width} <= {*HEAD_SIZES}
    if known and capability >= (9, 0):
        return "triton", "tensor descriptors"
    if known and capability >= (8, 0):
        return "triton_ptr", f"compute capability {capability[0]}.{capability[1]} has no tensor descriptors"
    return "flex", f"no Triton kernel for head size {width} on compute capability {capability[0]}.{capability[1]}"
