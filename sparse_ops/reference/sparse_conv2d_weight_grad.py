"""sparse_conv2d_weight_grad in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from sparse_ops.reference.sparse_conv2d import wide


def sparse_conv2d_weight_grad(
    x: Tensor,
    dy: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The dense weight gradient at the pattern's positions, (nnz,), in x's dtype."""
    shape = (dy.shape[1], x.shape[1] // groups, *kernel_size)
    dense = conv2d_weight(wide(x), shape, wide(dy), stride, padding, dilation, groups)
    rows = torch.arange(shape[0], device=columns.device).repeat_interleave(
        row_offsets.diff(), output_size=columns.numel()
    )
    return dense.flatten(1)[rows, columns.long()].to(x.dtype)
