"""The differentiable op sparse_ops::sparse_conv2d: images convolved with a sparse weight."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import extension, launch
from sparse_ops.ops import conv_operands as operands
from sparse_ops.ops import sparse_conv2d_input_grad, sparse_conv2d_weight_grad
from sparse_ops.reference import sparse_conv2d as reference

NAME = "sparse_conv2d"
torch.library.define(
    "sparse_ops::sparse_conv2d",
    f"(Tensor x, Tensor values, {operands.PATTERN}, Tensor? bias, {operands.WINDOW}) -> Tensor",
)


def _output(
    x: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Check the operands, allocate y: the first half of the op and all of its fake."""
    pattern = (row_offsets, columns, t_row_offsets, t_columns, t_permutation)
    tensors = {"x": x, "values": values} | ({} if bias is None else {"bias": bias})
    n_in, n_out = operands.check_weight(NAME, pattern, tensors, kernel_size, groups)
    operands.check_image(NAME, "x", x, n_in)
    if bias is not None and bias.shape != (n_out,):
        raise ValueError(f"{NAME}: bias is {tuple(bias.shape)}, expected ({n_out},)")
    size = operands.output_size(NAME, x.shape[2:], kernel_size, stride, padding, dilation)
    return operands.new_image(operands.dense_in_memory(x), n_out, size)


torch.library.register_fake("sparse_ops::sparse_conv2d", _output)


@torch.library.impl("sparse_ops::sparse_conv2d", ("cpu", "cuda"))
def _sparse_conv2d(x: Tensor, values: Tensor, *arguments: Any) -> Tensor:
    y = _output(x, values, *arguments)
    row_offsets, columns, _, _, _, bias, *window = arguments
    x, values = operands.dense_in_memory(x), values.contiguous()
    bias = None if bias is None else bias.contiguous()
    match launch.backend(x.device):
        case "native":
            last = operands.is_channels_last(x)
            extension.native().sparse_conv2d(x, values, row_offsets, columns, bias, y, *window, last)
        case "triton":
            from sparse_ops.kernels import sparse_conv2d as kernel

            with launch.on(x.device):
                kernel.sparse_conv2d(x, values, row_offsets, columns, bias, y, *window)
        case "reference":
            y.copy_(reference.sparse_conv2d(x, values, row_offsets, columns, bias, *window))
    return y


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, *pattern, bias, kernel_size, stride, padding, dilation, groups = inputs
    ctx.save_for_backward(x, values, *pattern)
    ctx.window = (kernel_size, stride, padding, dilation, groups)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, values, *pattern = ctx.saved_tensors
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = sparse_conv2d_input_grad.OP(dy, values, *pattern, x.shape[2:], *ctx.window)
    if ctx.needs_input_grad[1]:
        dvalues = sparse_conv2d_weight_grad.OP(x, dy, *pattern, *ctx.window)
    if ctx.has_bias and ctx.needs_input_grad[7]:
        dbias = dy.sum((0, 2, 3))
    return dx, dvalues, *(5 * [None]), dbias, *(5 * [None])


torch.library.register_autograd("sparse_ops::sparse_conv2d", _backward, setup_context=_setup_context)


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    t_row_offsets: Tensor,
    t_columns: Tensor,
    t_permutation: Tensor,
    bias: Tensor | None,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """torch.nn.functional.conv2d of x (N, C, H, W) with a sparse weight; differentiable in x, values and bias.

    values (nnz,) and the five int32 tensors of a `formats.Pattern` are the weight as a matrix (out_channels,
    C / groups * kh * kw), columns in the order (c, kh, kw). bias: (out_channels,) or None. y is (N, out_channels, ...)
    in x's memory format (contiguous or channels_last); any floating dtype, the same for all; float16 and bfloat16 are
    accumulated in float32. Raises TypeError or ValueError for what does not fit.
    """
    pattern = (row_offsets, columns, t_row_offsets, t_columns, t_permutation)
    return torch.ops.sparse_ops.sparse_conv2d(x, values, *pattern, bias, kernel_size, stride, padding, dilation, groups)
