"""The differentiable op sparse_ops::csr_sddmm: a dense product, computed only where a pattern has values."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import checks, extension, formats, launch
from sparse_ops.ops import direct, transforms
from sparse_ops.ops.csr_operands import for_gradient, permuted, stored
from sparse_ops.reference import csr_sddmm as reference

torch.library.define(
    "sparse_ops::csr_sddmm",
    "(Tensor dy, Tensor b, Tensor row_offsets, Tensor columns, Tensor t_row_offsets, Tensor t_columns, "
    "Tensor t_permutation, bool transposed) -> Tensor",
)


@torch.library.register_fake("sparse_ops::csr_sddmm")
def _check(
    dy: Tensor,
    b: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    transposed: bool,
) -> Tensor:
    """Check the operands and allocate dvalues: the first half of the op and all of its fake."""
    M, K = checks.pattern("csr_sddmm", (row_offsets, columns, t_row_offsets, t_columns, t_permutation), b)
    checks.one_float_dtype("csr_sddmm", {"dy": dy, "b": b})
    for name, t, size in (("dy", dy, M), ("b", b, K)):
        if t.dim() != 2 or t.shape[1 if transposed else 0] != size:
            expected = f"(N, {size})" if transposed else f"({size}, N)"
            raise ValueError(f"csr_sddmm: {name} is {tuple(t.shape)}, expected {expected} for a ({M}, {K}) pattern")
    if dy.shape[0 if transposed else 1] != b.shape[0 if transposed else 1]:
        raise ValueError(f"csr_sddmm: dy is {tuple(dy.shape)} and b {tuple(b.shape)}, N differs")
    return b.new_empty(columns.shape)


def _csr_sddmm(
    dy: Tensor,
    b: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    transposed: bool,
) -> Tensor:
    dvalues = _check(dy, b, row_offsets, columns, t_row_offsets, t_columns, t_permutation, transposed)
    match launch.backend(b.device):
        case "native":
            (dy, dy_outermost), (b, b_outermost) = stored(dy, transposed), stored(b, transposed)
            places = row_offsets.contiguous(), columns.contiguous()
            extension.native().csr_sddmm(dy, b, *places, dy_outermost, b_outermost, dvalues)
        case "triton":
            from sparse_ops.kernels import csr_sddmm as kernel

            with launch.on(b.device):
                kernel.csr_sddmm(dy, b, row_offsets.contiguous(), columns.contiguous(), transposed, dvalues)
        case "reference":
            dvalues = reference.csr_sddmm(dy, b, row_offsets, columns, transposed)
    return dvalues


torch.library.impl("sparse_ops::csr_sddmm", ("cpu", "cuda"), _csr_sddmm)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.transposed = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: as in csr_spmm
    dy, b = saved[:2]
    pattern: formats.Tensors = saved[2:]
    from sparse_ops.ops.csr_spmm import csr_spmm  # which imports this file: each is the other's gradient

    ddy = csr_spmm(g, *pattern, b, ctx.transposed, None) if ctx.needs_input_grad[0] else None
    db = None
    if ctx.needs_input_grad[1]:
        db = csr_spmm(permuted(g, pattern[4]), *for_gradient(pattern), dy, ctx.transposed, None)
    return ddy, db, *[None] * 6


torch.library.register_autograd("sparse_ops::csr_sddmm", _backward, setup_context=_setup_context)
_differentiable = direct.function(_csr_sddmm, _setup_context, _backward)


def csr_sddmm(
    dy: Tensor,
    b: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    transposed: bool,
) -> Tensor:
    """dy @ b.T at the positions of an (M, K) pattern.

    dy: (M, N) and b: (K, N), or (N, M) and (N, K) if `transposed`; one floating dtype, float16 and bfloat16 are
    accumulated in float32. row_offsets to t_permutation: the tensors of a `formats.Pattern`, trusted to be consistent.
    Returns (nnz,). It is the gradient of `csr_spmm` by its values; differentiable in dy and b, twice.
    """
    arguments = dy, b, row_offsets, columns, t_row_offsets, t_columns, t_permutation, transposed
    if launch.undispatched((dy, b)):
        return (_differentiable if direct.recorded((dy, b)) else _csr_sddmm)(*arguments)
    if launch.transformed():
        return transforms.apply(_RULE, *arguments)
    return torch.ops.sparse_ops.csr_sddmm(*arguments)


def _plain(dy: Tensor, b: Tensor, row_offsets: Tensor, columns: Tensor, *rest: Any) -> Tensor:
    return reference.csr_sddmm(dy, b, row_offsets, columns, rest[3])


_RULE = transforms.Rule(
    "csr_sddmm",
    torch.ops.sparse_ops.csr_sddmm,
    csr_sddmm,
    _plain,
    _setup_context,
    _backward,
    (0, 1),
    transforms.no_fold,
)
