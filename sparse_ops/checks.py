"""Checks shared by ops and by the functions above them: errors that name the caller, the argument and the value."""

import math
import numbers
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def module(op: str, value: Any, name: str = "model") -> None:
    """TypeError for what is no module, as where arguments are swapped, or a class is given for one of it."""
    if not isinstance(value, nn.Module):
        given = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise TypeError(f"{op}: {name} is {given}, expected a torch.nn.Module")


def optimizer(op: str, value: Any) -> None:
    """TypeError for what is no optimiser of torch.optim's kind."""
    if not isinstance(value, torch.optim.Optimizer):
        raise TypeError(f"{op}: optimizer is of type {type(value).__name__}, expected a torch.optim.Optimizer")


def path(op: str, value: Any) -> None:
    """TypeError for what is no path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{op}: path is of type {type(value).__name__}, expected a path")


def at_least_0(op: str, name: str, value: Any) -> None:
    """TypeError for what is no number, ValueError for one that is not finite or below 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Tensor):
        raise TypeError(f"{op}: {name} is {value!r}, expected a number >= 0")
    if isinstance(value, Tensor) and value.numel() != 1:
        raise TypeError(f"{op}: {name} is a tensor of shape {tuple(value.shape)}, expected a number >= 0")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{op}: {name} is {float(value)}, expected a finite number >= 0")


def tensor_list(op: str, name: str, tensors: Iterable[Tensor]) -> list[Tensor]:
    """A non-empty list from any iterable of tensors; a lone tensor, whose rows iteration would yield, is refused."""
    if isinstance(tensors, Tensor):
        raise TypeError(f"{op}: {name} is one tensor of shape {tuple(tensors.shape)}, expected a list of tensors")
    if not isinstance(tensors, Iterable):
        raise TypeError(f"{op}: {name} is {tensors!r}, expected a list of tensors")
    tensors = list(tensors)
    for i, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name}[{i}] is {t!r}, expected a tensor")
    if not tensors:
        raise ValueError(f"{op}: {name} is an empty list")
    return tensors


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


def dense(t: Tensor) -> Tensor:
    """t, or a contiguous copy where t has gaps or overlaps."""
    return t if is_dense(t) else t.contiguous()


def storage_view(t: Tensor) -> Tensor:
    """The elements of a dense tensor as a 1-D view in the order in which they lie in memory."""
    return t.as_strided((t.numel(),), (1,))


def like_storage(t: Tensor, like: Tensor) -> Tensor:
    """t with the strides of `like`, so that both can be walked in storage order.

    Copied once where they differ, or where t is a negative view or has no memory, as zeros of forward-mode AD.
    """
    if not (t.is_neg() or t._is_zerotensor()):
        if t.stride() == like.stride() or t.numel() <= 1:
            return t
        if all(a == b or n == 1 for a, b, n in zip(t.stride(), like.stride(), t.shape, strict=True)):
            return t  # a dimension of one element may carry any stride: 1x1 convolutions in channels_last
    return torch.empty_strided(like.shape, like.stride(), dtype=t.dtype, device=t.device).copy_(t)


def one_float_dtype(op: str, tensors: dict[str, Tensor]) -> None:
    """The named tensors share one floating dtype and one device."""
    (first, reference), *others = tensors.items()
    floating(op, first, [reference])
    for name, t in others:
        if t.dtype != reference.dtype:
            raise TypeError(f"{op}: {first} is {reference.dtype}, {name} is {t.dtype}, expected one dtype")
        if t.device != reference.device:
            raise ValueError(f"{op}: {first} is on {reference.device}, {name} on {t.device}")


def pattern(op: str, tensors: Sequence[Tensor], like: Tensor) -> tuple[int, int]:
    """(rows, columns) of a `formats.Pattern`'s tensors; dtype, sizes and device are checked, the entries are not."""
    names = ("row_offsets", "columns", "t_row_offsets", "t_columns", "t_permutation")
    for name, t in zip(names, tensors, strict=True):
        if t.dtype != torch.int32 or t.dim() != 1:
            raise TypeError(f"{op}: {name} is {t.dtype} {tuple(t.shape)}, expected 1-D int32")
        if t.device != like.device:
            raise ValueError(f"{op}: {name} is on {t.device}, the operands on {like.device}")
        if name.endswith("offsets"):
            if t.numel() < 1:
                raise ValueError(f"{op}: {name} is empty, expected one entry more than rows")
        elif t.numel() != tensors[1].numel():
            raise ValueError(f"{op}: columns has {tensors[1].numel()} entries, {name} {t.numel()}")
    return tensors[0].numel() - 1, tensors[2].numel() - 1
