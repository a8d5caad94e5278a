"""SparseConv2d: a convolution that stores and computes only with its live weights."""

import operator
from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn.functional import pad

from sparse_ops.formats import Pattern
from sparse_ops.nn.base import SparseModule, autocast_dtype, dense_weight, described
from sparse_ops.ops.sparse_conv2d import sparse_conv2d

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class SparseConv2d(SparseModule):
    """torch.nn.Conv2d with the weight (out_channels, in_channels / groups, kh, kw) held sparse.

    Takes (N, C, H, W) or (C, H, W) in any floating dtype, contiguous, channels_last or batch-last (layouts.batch_last,
    the quickest), and answers in the same layout; under torch.autocast it computes in the autocast dtype, as nn.Conv2d
    does. pattern: where the matrix (out_channels, in_channels / groups * kh * kw) holds `values` (nnz,). bias:
    (out_channels,) or None; parameters given are shared, tensors become parameters. The other arguments mean what they
    mean for torch.nn.Conv2d, as pairs. The buffers of the pattern are trusted, as SparseLinear's.
    """

    def __init__(
        self,
        pattern: Pattern,
        values: Tensor | nn.Parameter | None = None,
        bias: Tensor | nn.Parameter | None = None,
        kernel_size: Sequence[int] | None = None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] | str = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
    ):
        super().__init__()
        pattern, values = self._checked(pattern, values, bias)
        if padding_mode not in get_args(PaddingMode):
            raise ValueError(f"SparseConv2d: padding_mode is {padding_mode!r}, expected one of {get_args(PaddingMode)}")
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride, self.dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
        self.padding = padding if isinstance(padding, str) else _pair("padding", padding, 0)
        if isinstance(groups, bool) or not isinstance(groups, int):
            raise TypeError(f"SparseConv2d: groups is {groups!r}, expected an integer")
        if groups < 1 or pattern.shape[0] % groups:
            raise ValueError(f"SparseConv2d: groups is {groups}, expected a divisor of {pattern.shape[0]} channels")
        self.groups, self.padding_mode = groups, padding_mode
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.out_channels, self.in_channels = pattern.shape[0], pattern.shape[1] // taps * groups
        self.weight_shape = (self.out_channels, self.in_channels // groups, *self.kernel_size)
        self._sides()  # refuses a padding that makes no sense
        self.set_weight(pattern, values)
        if bias is not None and bias.shape != (self.out_channels,):
            raise ValueError(f"SparseConv2d: the bias is {tuple(bias.shape)}, expected ({self.out_channels},)")
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)

    @classmethod
    def from_dense(cls, conv: nn.Conv2d) -> "SparseConv2d":
        """The layer with the nonzeros of conv.weight (masked, where torch.nn.utils.prune masks it) and the same bias.

        The bias stays the same parameter, the training flag and requires_grad are kept.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"SparseConv2d.from_dense: conv is {described(conv)}, expected a torch.nn.Conv2d")
        weight = dense_weight(conv)
        pattern, values = Pattern.from_dense(weight)
        layer = cls(
            pattern,
            nn.Parameter(values, weight.requires_grad),
            conv.bias,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.padding_mode,
        )
        return layer.train(conv.training)

    def to_dense(self) -> nn.Conv2d:
        """An nn.Conv2d with the same weights, zeros where the pattern has none; the bias stays the same parameter."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=False,
            padding_mode=self.padding_mode,
            device="meta",
        )
        conv.weight = nn.Parameter(self.weight.detach(), requires_grad=self.values.requires_grad)
        conv.register_parameter("bias", self.bias)
        return conv.train(self.training)

    def _sides(self) -> tuple[int, int, int, int]:
        """(left, right, top, bottom): how far each side is padded."""
        if self.padding == "valid":
            return 0, 0, 0, 0
        if self.padding == "same":
            if self.stride != (1, 1):
                raise ValueError(f"SparseConv2d: padding='same' needs stride (1, 1), got {self.stride}")
            (h, w) = (d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True))
            return w // 2, w - w // 2, h // 2, h - h // 2
        if isinstance(self.padding, str):
            raise ValueError(f"SparseConv2d: padding is {self.padding!r}, expected 'same', 'valid' or two integers")
        return self.padding[1], self.padding[1], self.padding[0], self.padding[0]

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ...), or both without N."""
        if not isinstance(x, Tensor):
            raise TypeError(f"SparseConv2d: x is {described(x)}, expected a Tensor (N, C, H, W) or (C, H, W)")
        if x.dim() not in (3, 4):
            raise ValueError(f"SparseConv2d: x is {tuple(x.shape)}, expected (N, C, H, W) or (C, H, W)")
        values: Tensor = self.values
        bias: Tensor | None = self.bias
        dtype = autocast_dtype(x)
        y = x if x.dim() == 4 else x.unsqueeze(0)
        left, right, top, bottom = sides = self._sides()
        if self.padding_mode != "zeros":
            y = pad(y, sides, self.padding_mode)
            left = top = 0
        elif left != right or top != bottom:
            y = pad(y, (0, right - left, 0, bottom - top))
        if dtype is not None:  # behind the padding, which autocast computes in float32
            y, values, bias = y.to(dtype), values.to(dtype), None if bias is None else bias.to(dtype)
        y = sparse_conv2d(
            y,
            values,
            *self.pattern_tensors(),
            bias,
            self.kernel_size,
            self.stride,
            (top, left),
            self.dilation,
            self.groups,
        )
        return y if x.dim() == 4 else y.squeeze(0)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        if self.padding not in ((0, 0), "valid"):
            parts.append(f"padding={self.padding!r}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode!r}")
        parts.append(f"nnz={self.nnz} ({self.pattern.density:.2%}), bias={self.bias is not None}")
        return ", ".join(parts)


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """Two integers; TypeError or ValueError that names the argument."""
    try:
        height, width = map(operator.index, value)
    except (TypeError, ValueError):
        raise TypeError(f"SparseConv2d: {name} is {value!r}, expected two integers") from None
    if min(height, width) < least:
        raise ValueError(f"SparseConv2d: {name} is {(height, width)}, expected at least {least}")
    return height, width
