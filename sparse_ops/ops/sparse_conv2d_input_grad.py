"""The op sparse_ops::sparse_conv2d_input_grad: from the output's gradient to the input's."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import extension, launch
from sparse_ops.ops import conv_operands as operands
from sparse_ops.ops import direct, transforms
from sparse_ops.reference import sparse_conv2d_input_grad as reference

NAME = "sparse_conv2d_input_grad"
torch.library.define(
    "sparse_ops::sparse_conv2d_input_grad",
    f"(Tensor dy, Tensor values, {operands.PATTERN}, SymInt[2] input_size, {operands.WINDOW}) -> Tensor",
)


def _output(
    dy: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Check the operands, allocate dx: the first half of the op and all of its fake."""
    pattern = (row_offsets, columns, t_row_offsets, t_columns, t_permutation)
    tensors = {"dy": dy, "values": values}
    n_in, n_out = operands.check_weight(NAME, pattern, tensors, kernel_size, groups)
    size = operands.output_size(NAME, input_size, kernel_size, stride, padding, dilation)
    operands.check_image(NAME, "dy", dy, n_out, size)
    return operands.new_image(operands.dense_in_memory(dy), n_in, input_size)


torch.library.register_fake("sparse_ops::sparse_conv2d_input_grad", _output)


def _input_grad(dy: Tensor, values: Tensor, *arguments: Any) -> Tensor:
    dx = _output(dy, values, *arguments)
    row_offsets, columns, t_row_offsets, t_columns, t_permutation, input_size, *window = arguments
    dy, values = operands.dense_in_memory(dy), values.contiguous()
    transposed = t_row_offsets, t_columns, t_permutation
    match launch.backend(dy.device):
        case "native":
            layout = operands.layout(dy)
            extension.native().sparse_conv2d_input_grad(dy, values, *transposed, dx, *window, layout)
        case "triton":
            from sparse_ops.kernels import sparse_conv2d_input_grad as kernel

            with launch.on(dy.device):
                kernel.sparse_conv2d_input_grad(dy, values, *transposed, dx, *window)
        case "reference":
            inputs = (dy, values, row_offsets, columns, dx.shape[1], input_size)
            dx.copy_(reference.sparse_conv2d_input_grad(*inputs, *window))
    return dx


torch.library.impl("sparse_ops::sparse_conv2d_input_grad", ("cpu", "cuda"), _input_grad)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy, values, *pattern, _, kernel_size, stride, padding, dilation, groups = inputs
    ctx.save_for_backward(dy, values, *pattern)
    ctx.window = (kernel_size, stride, padding, dilation, groups)


def _backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
    dy, values, *pattern = ctx.saved_tensors
    grad_dy = grad_values = None
    if ctx.needs_input_grad[0]:
        grad_dy = operands.convolution()(ddx, values, *pattern, None, *ctx.window)
    if ctx.needs_input_grad[1]:
        from sparse_ops.ops.sparse_conv2d_weight_grad import sparse_conv2d_weight_grad  # each is the other's gradient

        grad_values = sparse_conv2d_weight_grad(ddx, dy, *pattern, *ctx.window)
    return grad_dy, grad_values, *(11 * [None])


torch.library.register_autograd("sparse_ops::sparse_conv2d_input_grad", _backward, setup_context=_setup_context)
_differentiable = direct.function(_input_grad, _setup_context, _backward)


def sparse_conv2d_input_grad(
    dy: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    input_size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """The gradient in x of `sparse_conv2d` with output gradient dy; differentiable in dy and values.

    dy: (N, out_channels, ...), input_size: x's (H, W), the rest as in `sparse_conv2d`. Returns (N, C, H, W) in dy's
    layout and dtype.
    """
    pattern = (row_offsets, columns, t_row_offsets, t_columns, t_permutation)
    arguments = dy, values, *pattern, input_size, kernel_size, stride, padding, dilation, groups
    if launch.undispatched((dy, values)):
        return (_differentiable if direct.recorded((dy, values)) else _input_grad)(*arguments)
    if launch.transformed():
        return transforms.apply(_RULE, *arguments)
    return torch.ops.sparse_ops.sparse_conv2d_input_grad(*arguments)


def _plain(dy: Tensor, values: Tensor, row_offsets: Tensor, columns: Tensor, *rest: Any) -> Tensor:
    t_row_offsets, _, _, input_size, kernel_size, stride, padding, dilation, groups = rest
    n_in = (t_row_offsets.numel() - 1) // (kernel_size[0] * kernel_size[1]) * groups
    inputs = dy, values, row_offsets, columns, n_in, input_size
    return reference.sparse_conv2d_input_grad(*inputs, kernel_size, stride, padding, dilation, groups)


_RULE = transforms.Rule(
    NAME,
    torch.ops.sparse_ops.sparse_conv2d_input_grad,
    sparse_conv2d_input_grad,
    _plain,
    _setup_context,
    _backward,
    (0, 1),
    transforms.fold_images,
)
