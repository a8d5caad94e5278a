"""The differentiable op sparse_ops::sparse_conv2d: images convolved with a sparse weight."""

from typing import Any

import torch
from torch import Tensor

from sparse_ops import extension, launch, recycling
from sparse_ops.ops import conv_operands as operands
from sparse_ops.ops import direct, sparse_conv2d_input_grad, sparse_conv2d_weight_grad, transforms
from sparse_ops.reference import sparse_conv2d as reference

NAME = "sparse_conv2d"
ACTIVATIONS = ("none", "relu", "gelu")
torch.library.define(
    "sparse_ops::sparse_conv2d",
    f"(Tensor x, Tensor values, {operands.PATTERN}, Tensor? bias, {operands.WINDOW}, "
    "Tensor? addend=None, str activation='none') -> Tensor",
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
    addend: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Check the operands, allocate y: the first half of the op and all of its fake."""
    pattern = (row_offsets, columns, t_row_offsets, t_columns, t_permutation)
    tensors = {"x": x, "values": values} | ({} if bias is None else {"bias": bias})
    tensors |= {} if addend is None else {"addend": addend}
    n_in, n_out = operands.check_weight(NAME, pattern, tensors, kernel_size, groups)
    operands.check_image(NAME, "x", x, n_in)
    if bias is not None and bias.shape != (n_out,):
        raise ValueError(f"{NAME}: bias is {tuple(bias.shape)}, expected ({n_out},)")
    size = operands.output_size(NAME, x.shape[2:], kernel_size, stride, padding, dilation)
    if addend is not None and addend.shape != (x.shape[0], n_out, *size):
        raise ValueError(f"{NAME}: addend is {tuple(addend.shape)}, expected {(x.shape[0], n_out, *size)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{NAME}: activation is {activation!r}, expected one of {ACTIVATIONS}")
    return operands.new_image(operands.dense_in_memory(x), n_out, size)


torch.library.register_fake("sparse_ops::sparse_conv2d", _output)


def _sparse_conv2d(x: Tensor, values: Tensor, *arguments: Any) -> Tensor:
    y = _output(x, values, *arguments)
    row_offsets, columns, _, _, _, bias, *window = arguments
    activation = window.pop(6) if len(window) > 6 else "none"  # the dispatcher leaves out defaults
    addend = window.pop(5) if len(window) > 5 else None
    x, values = operands.dense_in_memory(x), values.contiguous()
    bias = None if bias is None else bias.contiguous()
    if addend is not None:
        addend = operands.like_in_memory(addend, y)
    window += [addend, activation]
    match launch.backend(x.device):
        case "native":
            layout = operands.layout(x)
            extension.native().sparse_conv2d(x, values, row_offsets, columns, bias, y, *window, layout)
        case "triton":
            from sparse_ops.kernels import sparse_conv2d as kernel

            with launch.on(x.device):
                kernel.sparse_conv2d(x, values, row_offsets, columns, bias, y, *window)
        case "reference":
            y.copy_(reference.sparse_conv2d(x, values, row_offsets, columns, bias, *window))
    return y


torch.library.impl("sparse_ops::sparse_conv2d", ("cpu", "cuda"), _sparse_conv2d)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, *pattern, bias, kernel_size, stride, padding, dilation, groups, addend, activation = inputs
    if activation == "gelu":
        raise ValueError(f"{NAME}: activation='gelu' has no gradient; under autograd take 'none' and apply gelu to y")
    ctx.save_for_backward(x, values, *pattern, *([output] if activation == "relu" else []))
    ctx.window = (kernel_size, stride, padding, dilation, groups)
    ctx.has_bias, ctx.has_addend, ctx.relu = bias is not None, addend is not None, activation == "relu"


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, values, *pattern = ctx.saved_tensors
    if ctx.relu:
        dy = torch.ops.aten.threshold_backward(dy, pattern.pop(), 0)
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        rest: list[Any] = [*pattern, x.shape[2:], *ctx.window]
        dx = sparse_conv2d_input_grad.sparse_conv2d_input_grad(dy, values, *rest)
    if ctx.needs_input_grad[1]:
        dvalues = sparse_conv2d_weight_grad.sparse_conv2d_weight_grad(x, dy, *pattern, *ctx.window)
    if ctx.has_bias and ctx.needs_input_grad[7]:
        dbias = dy.sum((0, 2, 3))
    daddend = dy if ctx.has_addend and ctx.needs_input_grad[13] else None
    return dx, dvalues, *(5 * [None]), dbias, *(5 * [None]), daddend, None


torch.library.register_autograd("sparse_ops::sparse_conv2d", _backward, setup_context=_setup_context)
_differentiable = direct.function(_sparse_conv2d, _setup_context, _backward)


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
    addend: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(conv2d(x, weight, bias) + addend) with a sparse weight; differentiable in x, values, bias and addend.

    values (nnz,) and the five int32 tensors of a `formats.Pattern` are the weight as a matrix (out_channels,
    C / groups * kh * kw), columns in the order (c, kh, kw). bias: (out_channels,) or None. y is (N, out_channels, ...)
    in x's layout (contiguous, channels_last or batch-last, `layouts.is_batch_last`); any floating dtype, the same for
    all; float16 and bfloat16 are accumulated in float32. addend: like y, or None; activation: "none", "relu" or "gelu"
    (by the error function; without gradients). Both take their turn before the sum is rounded and stored. Raises
    TypeError or ValueError for what does not fit.
    """
    pattern = (row_offsets, columns, t_row_offsets, t_columns, t_permutation)
    window = (kernel_size, stride, padding, dilation, groups)
    operands = [t for t in (x, values, bias, addend) if t is not None]
    if launch.undispatched(operands):
        if torch.is_grad_enabled():
            return (_differentiable if direct.recorded(operands) else _sparse_conv2d)(
                x, values, *pattern, bias, *window, addend, activation
            )
        if launch.backend(x.device) == "native":
            y: Tensor | None = extension.native().sparse_conv2d_plain(
                x, values, row_offsets, columns, bias, t_row_offsets.numel() - 1, *window, addend, activation,
                recycling.own_bytes(),
            )  # fmt: skip
            if y is not None:  # 20 us less than with the checks of Python
                return y
        return _sparse_conv2d(x, values, *pattern, bias, *window, addend, activation)
    if launch.transformed():
        y = transforms.apply(_RULE, x, values, *pattern, None, *window, None, "none")
        return transforms.finish(NAME, y, 1, bias, addend, activation)
    return torch.ops.sparse_ops.sparse_conv2d(x, values, *pattern, bias, *window, addend, activation)


def _plain(x: Tensor, values: Tensor, row_offsets: Tensor, columns: Tensor, *rest: Any) -> Tensor:
    return reference.sparse_conv2d(x, values, row_offsets, columns, *rest[3:])


_RULE = transforms.Rule(
    NAME,
    torch.ops.sparse_ops.sparse_conv2d,
    sparse_conv2d,
    _plain,
    _setup_context,
    _backward,
    (0, 1),
    transforms.fold_images,
)
