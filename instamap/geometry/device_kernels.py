"""Kernels for graphics cards, which Triton compiles: where there are any, and on which card they
run.
"""

import functools
import os
from contextlib import AbstractContextManager, nullcontext

import torch


def usable(device: torch.device) -> bool:
    """Whether Triton's kernels run on tensors of this device: a card of CUDA or ROCm, and a Triton
    that can be imported. torch for CUDA on Linux brings it.
    """
    return device.type == "cuda" and _importable()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: how they are tested without a card.

    TRITON_INTERPRET=1 must be set before Triton is imported.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_place(device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError for tensors that the kernels cannot take."""
    if dtype == torch.float32 and (device.type == "cuda" or interpreted()):
        return
    raise ValueError(
        f"tensors are {dtype} on {device}; the Triton kernels take torch.float32 on cuda"
    )


def launching_on(device: torch.device) -> AbstractContextManager[None]:
    """The block in which kernels are started on this card, and not on the one that torch uses."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    return nullcontext()


@functools.cache
def _importable() -> bool:
    """Whether there is a Triton, found out once."""
    try:
        import triton  # noqa: F401
    except Exception:  # one that does not fit this Python or driver fails in any way
        return False
    return True
