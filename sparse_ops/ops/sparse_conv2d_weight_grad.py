"""The op sparse_ops::sparse_conv2d_weight_grad: the gradient in the values that a sparse weight holds."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import extension, launch
from sparse_ops.layouts import is_batch_last
from sparse_ops.ops import conv_operands as operands
from sparse_ops.ops import direct, to_layout, transforms
from sparse_ops.reference import sparse_conv2d_weight_grad as reference

NAME = "sparse_conv2d_weight_grad"
torch.library.define(
    "sparse_ops::sparse_conv2d_weight_grad",
    f"(Tensor x, Tensor dy, {operands.PATTERN}, {operands.WINDOW}) -> Tensor",
)


def _output(
    x: Tensor,
    dy: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Check the operands, allocate dvalues: the first half of the op and all of its fake."""
    pattern = (row_offsets, columns, t_row_offsets, t_columns, t_permutation)
    tensors = {"x": x, "dy": dy}
    n_in, n_out = operands.check_weight(NAME, pattern, tensors, kernel_size, groups)
    operands.check_image(NAME, "x", x, n_in)
    size = operands.output_size(NAME, x.shape[2:], kernel_size, stride, padding, dilation)
    operands.check_image(NAME, "dy", dy, n_out, size)
    if x.shape[0] != dy.shape[0]:
        raise ValueError(f"{NAME}: x has {x.shape[0]} images, dy has {dy.shape[0]}")
    return x.new_empty(columns.shape)


torch.library.register_fake("sparse_ops::sparse_conv2d_weight_grad", _output)


def _weight_grad(x: Tensor, dy: Tensor, *arguments: Any) -> Tensor:
    dvalues = _output(x, dy, *arguments)
    row_offsets, columns, _, _, _, *window = arguments
    x, dy = operands.dense_in_memory(x), operands.dense_in_memory(dy)
    match launch.backend(x.device):
        case "native":
            x, dy = _together(x, dy)
            layouts = operands.layout(x), operands.layout(dy)
            layouts = (2, 2) if 2 in layouts else layouts
            extension.native().sparse_conv2d_weight_grad(x, dy, row_offsets, columns, dvalues, *window, *layouts)
        case "triton":
            from sparse_ops.kernels import sparse_conv2d_weight_grad as kernel

            with launch.on(x.device):
                kernel.sparse_conv2d_weight_grad(x, dy, row_offsets, columns, dvalues, *window)
        case "reference":
            dvalues.copy_(reference.sparse_conv2d_weight_grad(x, dy, row_offsets, columns, *window))
    return dvalues


torch.library.impl("sparse_ops::sparse_conv2d_weight_grad", ("cpu", "cuda"), _weight_grad)


def _together(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Where one is batch-last only, the other is turned to it: the kernel takes both so, or neither."""
    if operands.layout(x) == 2 and not is_batch_last(dy):
        dy = to_layout.to_layout(dy, "batch_last")
    elif operands.layout(dy) == 2 and not is_batch_last(x):
        x = to_layout.to_layout(x, "batch_last")
    return x, dy


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, dy, *pattern, kernel_size, stride, padding, dilation, groups = inputs
    ctx.save_for_backward(x, dy, *pattern)
    ctx.window = (kernel_size, stride, padding, dilation, groups)


def _backward(ctx: Any, ddvalues: Tensor) -> tuple[Any, ...]:
    x, dy, *pattern = ctx.saved_tensors
    grad_x = grad_dy = None
    if ctx.needs_input_grad[0]:
        from sparse_ops.ops.sparse_conv2d_input_grad import sparse_conv2d_input_grad  # each is the other's gradient

        rest: list[Any] = [*pattern, x.shape[2:], *ctx.window]
        grad_x = sparse_conv2d_input_grad(dy, ddvalues, *rest)
    if ctx.needs_input_grad[1]:
        grad_dy = operands.convolution()(x, ddvalues, *pattern, None, *ctx.window)
    return grad_x, grad_dy, *(10 * [None])


torch.library.register_autograd("sparse_ops::sparse_conv2d_weight_grad", _backward, setup_context=_setup_context)
_differentiable = direct.function(_weight_grad, _setup_context, _backward)


def sparse_conv2d_weight_grad(
    x: Tensor,
    dy: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """The gradient in values of `sparse_conv2d` with output gradient dy, (nnz,); differentiable in x and dy.

    x: (N, C, H, W), dy: (N, out_channels, ...), the rest as in `sparse_conv2d`. Nothing is computed where the pattern
    holds no value. The bits do not depend on the number of threads.
    """
    pattern = (row_offsets, columns, t_row_offsets, t_columns, t_permutation)
    arguments = x, dy, *pattern, kernel_size, stride, padding, dilation, groups
    if launch.undispatched((x, dy)):
        return (_differentiable if direct.recorded((x, dy)) else _weight_grad)(*arguments)
    if launch.transformed():
        return transforms.apply(_RULE, *arguments)
    return torch.ops.sparse_ops.sparse_conv2d_weight_grad(*arguments)


def _plain(x: Tensor, dy: Tensor, row_offsets: Tensor, columns: Tensor, *rest: Any) -> Tensor:
    return reference.sparse_conv2d_weight_grad(x, dy, row_offsets, columns, *rest[3:])


_RULE = transforms.Rule(
    NAME,
    torch.ops.sparse_ops.sparse_conv2d_weight_grad,
    sparse_conv2d_weight_grad,
    _plain,
    _setup_context,
    _backward,
    (0, 1),
    transforms.no_fold,
)
