"""sparse_conv2d in plain PyTorch: a dense convolution with the weight filled up with zeros."""

import torch
from torch import Tensor


def densify(values: Tensor, row_offsets: Tensor, columns: Tensor, in_channels: int, kernel_size: list[int]) -> Tensor:
    """The weight (out_channels, in_channels, kh, kw) of a matrix in compressed rows; in_channels of one group."""
    n_out, width = row_offsets.numel() - 1, in_channels * kernel_size[0] * kernel_size[1]
    rows = torch.arange(n_out, device=columns.device).repeat_interleave(row_offsets.diff(), output_size=columns.numel())
    flat = values.new_zeros(n_out * width).index_put((rows * width + columns,), values)
    return flat.view(n_out, in_channels, *kernel_size)


def wide(t: Tensor) -> Tensor:
    """t in the dtype in which convolutions are accumulated: float64 stays, the others become float32."""
    return t if t.dtype == torch.float64 else t.float()


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    row_offsets: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    addend: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """y of x (N, C, H, W), in x's dtype."""
    weight = densify(wide(values), row_offsets, columns, x.shape[1] // groups, kernel_size)
    wide_bias = None if bias is None else wide(bias)
    y = torch.nn.functional.conv2d(wide(x), weight, wide_bias, stride, padding, dilation, groups)
    y = y if addend is None else y + wide(addend)
    match activation:
        case "relu":
            y = torch.relu(y)
        case "gelu":
            y = torch.nn.functional.gelu(y)
    return y.to(x.dtype)
