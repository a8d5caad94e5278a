"""The differentiable op sparse_ops::csr_spmm: a sparse matrix times a dense one."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import checks, extension, formats, launch
from sparse_ops.ops.csr_sddmm import csr_sddmm
from sparse_ops.reference import csr_spmm as reference

torch.library.define(
    "sparse_ops::csr_spmm",
    "(Tensor values, Tensor row_offsets, Tensor columns, Tensor t_row_offsets, Tensor t_columns, Tensor t_permutation, "
    "Tensor b, bool transposed, Tensor? bias) -> Tensor",
)


@torch.library.register_fake("sparse_ops::csr_spmm")
def _check(
    values: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    b: Tensor,
    transposed: bool,
    bias: Tensor | None,
) -> Tensor:
    """Check the operands and allocate y: the first half of the op and all of its fake."""
    pattern = (row_offsets, columns, t_row_offsets, t_columns, t_permutation)
    M, K = checks.pattern("csr_spmm", pattern, values)
    if values.shape != columns.shape:
        raise ValueError(f"csr_spmm: values are {tuple(values.shape)}, expected {tuple(columns.shape)}")
    operands = {"values": values, "b": b} | ({} if bias is None else {"bias": bias})
    checks.one_float_dtype("csr_spmm", operands)
    if b.dim() != 2 or b.shape[1 if transposed else 0] != K:
        expected = f"(N, {K})" if transposed else f"({K}, N)"
        raise ValueError(f"csr_spmm: b is {tuple(b.shape)}, expected {expected} for a sparse ({M}, {K}) matrix")
    if bias is not None and bias.shape != (M,):
        raise ValueError(f"csr_spmm: bias is {tuple(bias.shape)}, expected ({M},)")
    return b.new_empty((b.shape[0], M) if transposed else (M, b.shape[1]))


@torch.library.impl("sparse_ops::csr_spmm", ("cpu", "cuda"))
def _csr_spmm(
    values: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    b: Tensor,
    transposed: bool,
    bias: Tensor | None,
) -> Tensor:
    y = _check(values, row_offsets, columns, t_row_offsets, t_columns, t_permutation, b, transposed, bias)
    match launch.backend(b.device):
        case "native":
            args = values.contiguous(), row_offsets.contiguous(), columns.contiguous(), b.contiguous()
            extension.native().csr_spmm(*args, None if bias is None else bias.contiguous(), transposed, y)
        case "triton":
            from sparse_ops.kernels import csr_spmm as kernel

            with launch.on(b.device):
                kernel.csr_spmm(
                    values.contiguous(), row_offsets.contiguous(), columns.contiguous(), b,
                    None if bias is None else bias.contiguous(), transposed, y,
                )  # fmt: skip
        case "reference":
            y = reference.csr_spmm(values, row_offsets, columns, b, transposed, bias)
    return y


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.transposed, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    values, b = ctx.saved_tensors[0], ctx.saved_tensors[6]
    pattern: formats.Tensors = ctx.saved_tensors[1:6]
    dvalues = csr_sddmm(dy, b, *pattern, ctx.transposed) if ctx.needs_input_grad[0] else None
    db = None
    if ctx.needs_input_grad[6]:
        db = csr_spmm(values[pattern[4]], *formats.transposed(*pattern), dy, ctx.transposed)
    dbias = dy.sum(0 if ctx.transposed else 1) if ctx.needs_input_grad[8] else None
    return dvalues, *[None] * 5, db, None, dbias


torch.library.register_autograd("sparse_ops::csr_spmm", _backward, setup_context=_setup_context)


def csr_spmm(
    values: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    b: Tensor,
    transposed: bool,
    bias: Tensor | None = None,
) -> Tensor:
    """A @ b + bias[:, None] for a sparse A (M, K) and b (K, N), or b @ A.T + bias for b (N, K) if `transposed`.

    values: (nnz,). row_offsets to t_permutation: the tensors of A's `formats.Pattern`, trusted to be consistent.
    bias: (M,) or None. values, b and bias share one floating dtype; float16 and bfloat16 are accumulated in float32.
    Returns (M, N), or (N, M) if transposed, contiguous. Differentiable in values, b and bias, twice.
    """
    return torch.ops.sparse_ops.csr_spmm(
        values, row_offsets, columns, t_row_offsets, t_columns, t_permutation, b, transposed, bias
    )
