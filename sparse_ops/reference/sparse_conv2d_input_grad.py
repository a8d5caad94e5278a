"""sparse_conv2d_input_grad in plain PyTorch."""

from torch import Tensor
from torch.nn.grad import conv2d_input

from sparse_ops.reference.sparse_conv2d import densify, wide


def sparse_conv2d_input_grad(
    dy: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    in_channels: int,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """dx of dy (N, out_channels, ...), in dy's dtype; in_channels of all groups."""
    weight = densify(wide(values), row_offsets, columns, in_channels // groups, kernel_size)
    shape = (dy.shape[0], in_channels, *input_size)
    dx = conv2d_input(shape, weight, wide(dy), stride, padding, dilation, groups)
    return dx.to(dy.dtype)
