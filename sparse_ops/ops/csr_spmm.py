"""The differentiable op sparse_ops::csr_spmm: a sparse matrix times a dense one."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sparse_ops import checks, extension, formats, launch, recycling
from sparse_ops.ops import direct, transforms
from sparse_ops.ops.csr_operands import check_epilogue, for_gradient, like_layout, permuted, stored
from sparse_ops.ops.csr_sddmm import csr_sddmm
from sparse_ops.reference import csr_spmm as reference

torch.library.define(
    "sparse_ops::csr_spmm",
    "(Tensor values, Tensor row_offsets, Tensor columns, Tensor t_row_offsets, Tensor t_columns, Tensor t_permutation, "
    "Tensor b, bool transposed, Tensor? bias, Tensor? addend=None, str activation='none') -> Tensor",
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
    addend: Tensor | None = None,
    activation: str = "none",
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
    y = like_layout(b, *((b.shape[0], M) if transposed else (M, b.shape[1])))
    check_epilogue("csr_spmm", y, addend, activation)
    return y


@functools.cache
def _one_call() -> Any:
    return extension.native().csr_spmm_plain.default.op  # 0.5 us less than through Python's layers over it


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
    addend: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    consistent = t_columns.shape == t_permutation.shape == columns.shape
    if b.dim() == 2 and consistent and launch.backend(b.device) == "native":
        found: Tensor | None = _one_call()(
            values, row_offsets, columns, b, bias, transposed, t_row_offsets.numel() - 1, addend, activation,
            recycling.own_bytes(),
        )  # fmt: skip
        if found is not None:  # 10 us less than with the checks of Python, 55 with an addend (Zen 3)
            return found
    pattern = (row_offsets, columns, t_row_offsets, t_columns, t_permutation)
    y = _check(values, *pattern, b, transposed, bias, addend, activation)
    b = b.clone() if b._is_zerotensor() else b  # which has no memory
    if addend is not None:
        addend = checks.like_storage(addend, y)
    matrix = values.contiguous(), row_offsets.contiguous(), columns.contiguous()
    bias = None if bias is None else bias.contiguous()
    match launch.backend(b.device):
        case "native":
            dense, outermost = stored(b, transposed)
            result = y if outermost == transposed else y.t()
            if addend is not None and outermost != transposed:
                addend = addend.t()
            extension.native().csr_spmm(*matrix, dense, bias, outermost, result, addend, activation)
        case "triton":
            from sparse_ops.kernels import csr_spmm as kernel

            with launch.on(b.device):
                kernel.csr_spmm(*matrix, b, bias, transposed, y, addend, activation)
        case "reference":
            y.copy_(reference.csr_spmm(values, row_offsets, columns, b, transposed, bias, addend, activation))
    return y


torch.library.impl("sparse_ops::csr_spmm", ("cpu", "cuda"), _csr_spmm)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.transposed, bias, addend, activation = inputs
    if activation == "gelu":
        raise ValueError(
            "csr_spmm: activation='gelu' has no gradient; under autograd take 'none' and apply gelu to the result"
        )
    ctx.save_for_backward(*operands, *([output] if activation == "relu" else []))
    # the dispatcher drops arguments that are their default, and needs_input_grad ends before them
    ctx.has_bias, ctx.has_addend, ctx.relu = bias is not None, addend is not None, activation == "relu"


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: torch.utils.checkpoint makes them anew at each access, and refuses a second
    values, b = saved[0], saved[6]
    pattern: formats.Tensors = saved[1:6]
    if ctx.relu:
        dy = torch.ops.aten.threshold_backward(dy, saved[7], 0)
    dvalues = csr_sddmm(dy, b, *pattern, ctx.transposed) if ctx.needs_input_grad[0] else None
    db = None
    if ctx.needs_input_grad[6]:
        db = csr_spmm(permuted(values, pattern[4]), *for_gradient(pattern), dy, ctx.transposed, None)
    dbias = dy.sum(0 if ctx.transposed else 1) if ctx.has_bias and ctx.needs_input_grad[8] else None
    daddend = dy if ctx.has_addend and ctx.needs_input_grad[9] else None
    return dvalues, *[None] * 5, db, None, dbias, daddend, None


torch.library.register_autograd("sparse_ops::csr_spmm", _backward, setup_context=_setup_context)
_differentiable = direct.function(_csr_spmm, _setup_context, _backward)


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
    addend: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(A @ b + bias[:, None] + addend) for a sparse A (M, K) and b (K, N), or, if `transposed`, for b (N, K)
    activation(b @ A.T + bias + addend).

    values: (nnz,). row_offsets to t_permutation: the tensors of A's `formats.Pattern`, trusted to be consistent.
    bias: (M,) or None. addend: like the result, or None. activation: "none", "relu" or "gelu" (exact, by erf).
    All share one floating dtype; float16 and bfloat16 are accumulated in float32.
    Returns (M, N), or (N, M) if transposed: contiguous, or with strides (1, rows) where b has them, which then is
    computed without a transposition. Differentiable in values, b, bias and addend, twice; with gelu not at all.
    """
    pattern = (row_offsets, columns, t_row_offsets, t_columns, t_permutation)
    operands = [t for t in (values, b, bias, addend) if t is not None]
    if launch.undispatched(operands):
        run = _differentiable if direct.recorded(operands) else _csr_spmm
        return run(values, *pattern, b, transposed, bias, addend, activation)
    if launch.transformed():
        y = transforms.apply(_RULE, values, *pattern, b, transposed, None, None, "none")
        return transforms.finish("csr_spmm", y, 1 if transposed else 0, bias, addend, activation)
    return torch.ops.sparse_ops.csr_spmm(values, *pattern, b, transposed, bias, addend, activation)


def _plain(values: Tensor, row_offsets: Tensor, columns: Tensor, *rest: Any) -> Tensor:
    return reference.csr_spmm(values, row_offsets, columns, *rest[3:])


def _fold(arguments: list[Any], dims: list[int | None]) -> Any:
    """One product for a batch of b."""
    (*head, b, transposed), tail, dim = arguments[:8], arguments[8:], dims[6]
    if dim is None or any(d is not None for i, d in enumerate(dims) if i != 6):
        return None
    place = 0 if transposed else 1
    b = b.movedim(dim, place)
    folded = [*head, b.flatten(place, place + 1), transposed, *tail]
    return folded, lambda y: (y.unflatten(place, b.shape[place : place + 2]), place)


_RULE = transforms.Rule(
    "csr_spmm", torch.ops.sparse_ops.csr_spmm, csr_spmm, _plain, _setup_context, _backward, (0, 6), _fold
)


def plain_linear(x: Tensor, values: Any, row_offsets: Any, columns: Any, bias: Any, in_features: int) -> Tensor | None:
    """`csr_spmm` for a layer without autograd: x (..., in_features) times A.T, plus bias, by one call of C++.

    None where it is not that simple: other backends, modes, autocast, operands that Python has to look at. A layer of
    512 x 512 without a nonzero takes 8 us for 8 samples so, 21 through `csr_spmm` with its views and attributes.
    """
    if (
        type(values) is not Parameter
        or (bias is not None and type(bias) is not Parameter)
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    return fused_rows(x, values, row_offsets, columns, bias, in_features, None, "none")


def fused_rows(
    x: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    in_features: int,
    addend: Tensor | None,
    activation: str,
) -> Tensor | None:
    """The same with an addend like the result and an activation."""
    if type(x) is not Tensor or torch.is_grad_enabled() or not launch.direct():
        return None
    y: Tensor | None = _one_call()(
        values, row_offsets, columns, x, bias, True, in_features, addend, activation, recycling.own_bytes()
    )
    return y
