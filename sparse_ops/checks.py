"""Checks shared by ops: each raises an error that names the op, the argument and the value."""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def floating(op: str, name: str, tensors: Sequence[Tensor]) -> None:
    """Every tensor is float16, bfloat16, float32 or float64."""
    for i, t in enumerate(tensors):
        if t.dtype not in FLOATS:
            raise TypeError(f"{op}: {name}[{i}] is {t.dtype}, expected a floating point tensor")


def same_device(op: str, name: str, tensors: Sequence[Tensor]) -> None:
    """All tensors live on one device."""
    for i, t in enumerate(tensors):
        if t.device != tensors[0].device:
            raise ValueError(f"{op}: {name}[0] is on {tensors[0].device}, {name}[{i}] on {t.device}")


def is_dense(t: Tensor) -> bool:
    """True where the elements fill one block of memory without gaps or overlap, in any order of dimensions."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((st, sz) for st, sz in zip(t.stride(), t.shape, strict=True) if sz != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def storage_view(t: Tensor) -> Tensor:
    """The elements of a dense tensor as a 1-D view in the order in which they lie in memory."""
    return t.as_strided((t.numel(),), (1,))


def like_storage(t: Tensor, like: Tensor) -> Tensor:
    """t with the strides of `like` (copied once where they differ), so that both can be walked in storage order."""
    if t.stride() == like.stride() or t.numel() <= 1:
        return t
    if all(a == b or n == 1 for a, b, n in zip(t.stride(), like.stride(), t.shape, strict=True)):
        return t  # a dimension of one element may carry any stride: 1x1 convolutions in channels_last
    return torch.empty_strided(like.shape, like.stride(), dtype=t.dtype, device=t.device).copy_(t)
