"""How the dense operands of csr_spmm and csr_sddmm lie in memory, and what is done to a result before it is stored."""

import torch
from torch import Tensor

from sparse_ops import checks, extension, formats, launch, recycling
from sparse_ops.ops import direct

ACTIVATIONS = ("none", "relu", "gelu")


def stored(t: Tensor, transposed: bool) -> tuple[Tensor, bool]:
    """(matrix, transposed) of the same numbers with a contiguous matrix: t or its transpose as it lies, else a copy."""
    t = t.clone() if t._is_zerotensor() else t  # which has no memory
    if not t.is_contiguous() and t.t().is_contiguous():
        return t.t(), not transposed
    return t.contiguous(), transposed


def like_layout(t: Tensor, rows: int, columns: int) -> Tensor:
    """An empty (rows, columns) matrix that lies like t: dimension 0 innermost where t has it so, else contiguous."""
    if not t.is_contiguous() and t.t().is_contiguous():
        return recycling.empty((columns, rows), t).t()
    return recycling.empty((rows, columns), t)


def for_gradient(pattern: formats.Tensors) -> formats.Tensors:
    """The transposed pattern for a product in a backward pass.

    Its own permutation, a pass over all nonzeros that only a further gradient reads, is made where one may be asked
    for; elsewhere the given one stands in its place.
    """
    if torch.is_grad_enabled():
        return formats.transposed(*pattern)
    row_offsets, columns, t_row_offsets, t_columns, t_permutation = pattern
    return t_row_offsets, t_columns, row_offsets, columns, t_permutation


def permuted(values: Tensor, t_permutation: Tensor) -> Tensor:
    """values[t_permutation], those of the transposed matrix: over all threads where autograd does not record it."""
    if (
        launch.undispatched((values,))
        and not direct.recorded((values,))
        and launch.backend(values.device) == "native"
        and values.is_contiguous()
        and t_permutation.is_contiguous()
    ):
        found = torch.empty_like(values)
        extension.native().csr_pattern_permute(values, t_permutation, found)
        return found
    return values.index_select(0, t_permutation)


def check_epilogue(op: str, y: Tensor, addend: Tensor | None, activation: str) -> None:
    """The addend is like y, and the activation is one of ACTIVATIONS."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation is {activation!r}; it may be one of {', '.join(ACTIVATIONS)}")
    if addend is None:
        return
    checks.one_float_dtype(op, {"b": y, "addend": addend})
    if addend.shape != y.shape:
        raise ValueError(f"{op}: addend is {tuple(addend.shape)}, expected {tuple(y.shape)} as y")
