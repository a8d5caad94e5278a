"""Checks shared by the ops of the sweep: each raises an error that names the op, the argument and the value."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_ops import checks

PENALTIES = ("none", "l1", "l2", "growing_l2", "hypersparse")
STATE = ("Tensor[] masks, Tensor[] groups, int[] scopes, Tensor coefficients, Tensor brackets, "
         "Tensor(y!) statistics, Tensor(z!) candidates")  # fmt: skip


def check_strided(op: str, name: str, tensors: Sequence[Tensor]) -> None:
    """No tensor is sparse."""
    for i, t in enumerate(tensors):
        if t.layout is not torch.strided:
            raise ValueError(f"{op}: {name}[{i}] is {t.layout}, expected a strided tensor")


def check_memory(op: str, name: str, tensors: Sequence[Tensor]) -> None:
    """What lies in memory is what the tensor holds: kernels, which go by addresses, write into it."""
    for i, t in enumerate(tensors):
        if t.is_neg() or t._is_zerotensor():
            kind = "a negative view of its memory" if t.is_neg() else "a tensor of zeros without memory"
            raise ValueError(f"{op}: {name}[{i}] is {kind}, shape {tuple(t.shape)}; clone() makes it a plain one")


def check_dense(op: str, name: str, tensors: Sequence[Tensor]) -> None:
    """Every tensor is floating point and fills one block of memory."""
    checks.floating(op, name, tensors)
    check_strided(op, name, tensors)
    for i, t in enumerate(tensors):
        if not checks.is_dense(t):
            raise ValueError(f"{op}: {name}[{i}] has gaps or overlaps, strides {t.stride()} for {tuple(t.shape)}")


def check_like(op: str, name: str, tensors: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """One floating point tensor per weight, of its shape, on its device."""
    checks.floating(op, name, tensors)
    check_strided(op, name, tensors)
    if len(tensors) != len(weights):
        raise ValueError(f"{op}: {len(weights)} weights but {len(tensors)} {name}")
    for i, (t, w) in enumerate(zip(tensors, weights, strict=True)):
        if t.shape != w.shape:
            raise ValueError(f"{op}: {name}[{i}] has shape {tuple(t.shape)}, weights[{i}] has {tuple(w.shape)}")
        if t.device != w.device:
            raise ValueError(f"{op}: {name}[{i}] is on {t.device}, weights[{i}] on {w.device}")


def check_packed(op: str, name: str, packed: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """No entries at all, or one per weight: a byte for eight weights, or empty."""
    if not packed:
        return
    if len(packed) != len(weights):
        raise ValueError(f"{op}: {len(weights)} weights but {len(packed)} {name}; it may also be an empty list")
    for i, (bits, w) in enumerate(zip(packed, weights, strict=True)):
        expected = (w.numel() + 7) // 8
        if bits.dtype != torch.uint8 or bits.dim() != 1 or bits.shape[0] not in (0, expected):
            raise ValueError(
                f"{op}: {name}[{i}] is {bits.dtype} {tuple(bits.shape)}, expected uint8 ({expected},) or (0,)"
            )
        if not bits.is_contiguous() or bits.device != w.device:
            raise ValueError(f"{op}: {name}[{i}] must be contiguous and on {w.device}, it is on {bits.device}")


def check_scopes(op: str, scopes: Sequence[int], weights: Sequence[Tensor], rows: int) -> None:
    """One scope per weight, -1 or a row of the coefficients."""
    if len(scopes) != len(weights):
        raise ValueError(f"{op}: {len(weights)} weights but {len(scopes)} scopes")
    for i, scope in enumerate(scopes):
        if not -1 <= scope < rows:
            raise ValueError(f"{op}: scopes[{i}] is {scope}, expected -1 (none) or a row below {rows}")


def check_table(op: str, name: str, table: Tensor, rows: int, columns: int, weights: Sequence[Tensor]) -> None:
    """A contiguous float64 tensor (rows, columns) on the weights' device."""
    if table.dtype != torch.float64 or table.shape != (rows, columns):
        raise ValueError(f"{op}: {name} is {table.dtype} {tuple(table.shape)}, expected float64 {(rows, columns)}")
    if not table.is_contiguous() or (weights and table.device != weights[0].device):
        device = weights[0].device if weights else table.device
        raise ValueError(f"{op}: {name} must be contiguous and on {device}, it is on {table.device}")


def check_penalty(op: str, penalty: str) -> None:
    if penalty not in PENALTIES:
        raise ValueError(f"{op}: penalty is {penalty!r}; it may be one of {', '.join(PENALTIES)}")


def check_scalar(op: str, name: str, value: Tensor | None) -> None:
    if value is not None and (value.numel() != 1 or value.dtype not in checks.FLOATS):
        raise ValueError(f"{op}: {name} is {value.dtype} {tuple(value.shape)}, expected one floating point number")


def split_rate(lr: float | Tensor) -> tuple[float, Tensor | None]:
    """The learning rate as an op takes it: a number, or a tensor that takes the number's place."""
    return (0.0, lr) if isinstance(lr, Tensor) else (lr, None)


def check_rate(op: str, lr: Tensor | None, weights: Sequence[Tensor]) -> None:
    """One floating point number beside the weights, since it is read in the same pass."""
    check_scalar(op, "lr", lr)
    if lr is not None and weights and lr.device != weights[0].device:
        raise ValueError(f"{op}: lr is on {lr.device}, weights[0] on {weights[0].device}")


def check_tensors(
    op: str,
    weights: Sequence[Tensor],
    scopes: Sequence[int],
    rows: int,
    likes: Mapping[str, Sequence[Tensor]],
    packed: Mapping[str, Sequence[Tensor]],
) -> None:
    """Dense weights on one device, and the lists that go with them, one entry per weight; grads are only read.

    The C++ sweeps see at a glance that this holds and answer False where not: only then is it checked here, which
    took a quarter of a millisecond for ResNet-50's 161 tensors.
    """
    check_dense(op, "weights", weights)
    checks.same_device(op, "weights", weights)
    for name, tensors in likes.items():
        check_like(op, name, tensors, weights)
    for name, tensors in {"weights": weights, **likes}.items():
        if name != "grads":
            check_memory(op, name, tensors)
    for name, tensors in packed.items():
        check_packed(op, name, tensors, weights)
    check_scopes(op, scopes, weights, rows)


def swept(kernel: Callable[..., bool], check: Callable[..., None], *arguments: Any) -> bool:
    """The C++ sweep's answer. Where torch's dispatcher refuses the call, the checks name the tensor that it means."""
    try:
        return kernel(*arguments)
    except RuntimeError:
        check(*arguments)
        raise


def accepted(op: str, answer: bool) -> None:
    """The C++ sweep's answer to operands that have passed all checks here."""
    if not answer:
        raise RuntimeError(f"{op}: the C++ kernel refuses tensors that have passed the checks; please report this")


def check_state(
    op: str,
    weights: Sequence[Tensor],
    scopes: Sequence[int],
    coefficients: Tensor,
    brackets: Tensor,
    statistics: Tensor,
    candidates: Tensor,
) -> None:
    """The tensors of all scopes, as docs/architecture.md lists them."""
    rows = coefficients.shape[0]
    check_table(op, "coefficients", coefficients, rows, 4, weights)
    check_table(op, "brackets", brackets, rows, 2, weights)
    check_table(op, "statistics", statistics, rows, 7, weights)
    if candidates.dim() != 2 or candidates.shape[0] != rows or not candidates.is_contiguous():
        raise ValueError(f"{op}: candidates has shape {tuple(candidates.shape)}, expected a contiguous ({rows}, C)")
    if candidates.dtype not in (torch.float32, torch.float64) or candidates.device != coefficients.device:
        raise ValueError(
            f"{op}: candidates is {candidates.dtype} on {candidates.device}, expected float32 or float64 on "
            f"{coefficients.device}"
        )
    if candidates.dtype == torch.float32 and rows:
        for i, (w, scope) in enumerate(zip(weights, scopes, strict=True)):
            if scope >= 0 and w.dtype == torch.float64:
                raise ValueError(f"{op}: weights[{i}] is torch.float64, so candidates must be, not torch.float32")


def check_apart(op: str, name: str, tensors: Sequence[Tensor]) -> None:
    """No two tensors share memory: each would be updated by two entries at once."""
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes, i) for i, t in enumerate(tensors) if t.numel())
    for (_, end, i), (begin, _, j) in itertools.pairwise(spans):
        if begin < end:
            first, second = sorted((i, j))
            raise ValueError(f"{op}: {name}[{first}] and {name}[{second}] share memory")


def flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    """1-D views in storage order."""
    return [checks.storage_view(t) for t in tensors]
