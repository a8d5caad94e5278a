"""The ops sparse_ops::fused_linear and fused_conv2d: a layer for inference, its weight dense or sparse."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ops.ops.csr_spmm import csr_spmm, fused_rows
from sparse_ops.ops.sparse_conv2d import sparse_conv2d

WEIGHT = (
    "Tensor? weight, Tensor? values, Tensor? row_offsets, Tensor? columns, Tensor? t_row_offsets, int[] weight_shape, "
    "Tensor? bias"
)
torch.library.define(
    "sparse_ops::fused_linear", f"(Tensor x, {WEIGHT}, Tensor? addend=None, str activation='none') -> Tensor"
)
torch.library.define(
    "sparse_ops::fused_conv2d",
    f"(Tensor x, {WEIGHT}, int[2] stride, int[4] padding, int[2] dilation, int groups, Tensor? addend=None, "
    "str activation='none') -> Tensor",
)


def _finish(y: Tensor, addend: Tensor | None, activation: str) -> Tensor:
    """activation(y + addend), in y itself where that is possible."""
    if addend is not None:
        y = y.add_(addend)
    return y.relu_() if activation == "relu" else torch.ops.aten.gelu_(y) if activation == "gelu" else y


def fused_linear(
    x: Tensor,
    weight: Tensor | None,
    values: Tensor | None,
    row_offsets: Tensor | None,
    columns: Tensor | None,
    t_row_offsets: Tensor | None,
    weight_shape: Sequence[int],
    bias: Tensor | None,
    addend: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(x @ W.T + bias + addend) for x (..., in_features); no gradient.

    W, of weight_shape (out_features, in_features), is `weight`, or `values` at row_offsets and columns, with
    t_row_offsets (in_features + 1,) of the transpose. x is converted to W's dtype. activation: "none", "relu", "gelu".
    A matrix that is batch last (`layouts`) gives one.
    """
    held = values if weight is None else weight
    assert held is not None
    x = x if x.dtype == held.dtype else x.to(held.dtype)
    if weight is not None:
        return _finish(F.linear(x, weight, bias), addend, activation)
    assert values is not None and row_offsets is not None and columns is not None and t_row_offsets is not None
    y = fused_rows(x, values, row_offsets, columns, bias, weight_shape[1], addend, activation)
    if y is not None:
        return y
    rows = x if x.dim() == 2 else x.reshape(-1, weight_shape[1])
    # The forward pass reads no permutation: columns stand in for the two tensors of that size.
    pattern = row_offsets, columns, t_row_offsets, columns, columns
    if addend is not None and x.dim() != 2:
        addend = addend.reshape(-1, weight_shape[0])
    y = csr_spmm(values, *pattern, rows, True, bias, addend, activation)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], weight_shape[0])


def fused_conv2d(
    x: Tensor,
    weight: Tensor | None,
    values: Tensor | None,
    row_offsets: Tensor | None,
    columns: Tensor | None,
    t_row_offsets: Tensor | None,
    weight_shape: Sequence[int],
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    addend: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """activation(conv2d(x, W, bias) + addend) for x (N, C, H, W); no gradient.

    W as in `fused_linear`, its matrix (out_channels, C / groups * kh * kw). padding: zeros (top, bottom, left, right).
    Images that are batch last (`layouts`) give such images where W is sparse.
    """
    held = values if weight is None else weight
    assert held is not None
    x = x if x.dtype == held.dtype else x.to(held.dtype)
    top, bottom, left, right = padding
    if top != bottom or left != right:
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    if weight is not None:
        return _finish(torch.conv2d(x, weight, bias, stride, (top, left), dilation, groups), addend, activation)
    assert values is not None and row_offsets is not None and columns is not None and t_row_offsets is not None
    pattern = row_offsets, columns, t_row_offsets, columns, columns
    kernel = (weight_shape[2], weight_shape[3])
    window = kernel, (stride[0], stride[1]), (top, left), (dilation[0], dilation[1]), groups
    return sparse_conv2d(x, values, *pattern, bias, *window, addend, activation)


for _name, _op in (("fused_linear", fused_linear), ("fused_conv2d", fused_conv2d)):
    torch.library.impl(f"sparse_ops::{_name}", "CompositeExplicitAutograd")(_op)
    torch.library.register_fake(f"sparse_ops::{_name}", _op)
