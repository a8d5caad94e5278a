"""Layers of a network for inference: a dense or sparse weight, the bias, an addend and an activation in one call."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_ops.formats import Pattern, scatter
from sparse_ops.inference.layout import is_batch_last
from sparse_ops.ops.csr_spmm import csr_spmm
from sparse_ops.ops.sparse_conv2d import sparse_conv2d

ACTIVATIONS = ("none", "relu", "gelu")


class Fused(nn.Module):
    """y = activation(W x + bias + addend); W is `weight`, or `values` at a pattern of which the forward pass is kept.

    Tensors are buffers. A subclass computes the product in `dense` and `sparse`. choice: one line that says why the
    layer is dense or sparse.
    """

    weight: Any  # a tensor, or None where the weight is held sparse
    values: Any
    bias: Tensor | None
    row_offsets: Tensor
    columns: Tensor
    t_row_offsets: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight_shape = tuple(weight.shape)
        self.activation = "none"
        self.choice = ""
        self.register_buffer("bias", bias)
        self.register_buffer("values", None)
        self.set_dense(weight)

    @property
    def sparse_form(self) -> bool:
        """Whether the weight is held sparse."""
        return self.values is not None

    def set_dense(self, weight: Tensor) -> None:
        """Hold the weight dense from now on."""
        self.register_buffer("weight", weight)
        self.register_buffer("values", None)
        for name in ("row_offsets", "columns", "t_row_offsets"):
            self.register_buffer(name, None)

    def to_sparse(self) -> "Fused":
        """The same layer with its weight held sparse; itself where it is."""
        if self.weight is None:
            return self
        pattern, values = Pattern.from_dense(self.weight)
        return self._like(None, (values, pattern.row_offsets, pattern.columns, pattern.t_row_offsets))

    def to_dense(self) -> "Fused":
        """The same layer with its weight held dense; itself where it is."""
        return self if self.weight is not None else self._like(self.dense_weight(), (None, None, None, None))

    def _like(self, weight: Tensor | None, parts: tuple[Tensor | None, ...]) -> "Fused":
        layer = type(self).__new__(type(self))
        nn.Module.__init__(layer)
        layer.__dict__.update({k: v for k, v in self.__dict__.items() if not k.startswith("_") and k != "training"})
        layer.train(False)
        names = ("weight", "values", "row_offsets", "columns", "t_row_offsets", "bias")
        for name, tensor in zip(names, (weight, *parts, self.bias), strict=True):
            layer.register_buffer(name, tensor)
        return layer

    def dense_weight(self) -> Tensor:
        """The weight, made dense where it is held sparse."""
        if self.weight is not None:
            return self.weight
        rows, columns = self.weight_shape[0], math.prod(self.weight_shape[1:])
        return scatter((rows, columns), self.row_offsets, self.columns, self.values).view(self.weight_shape)

    def nonzeros(self) -> int:
        """How many weights are not zero."""
        return self.values.numel() if self.values is not None else int(self.weight.count_nonzero())

    def bytes(self) -> int:
        """What the layer's tensors take."""
        return sum(t.nbytes for t in self.buffers())

    def pattern_tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What sparse ops take; forward passes do not read the last two, which only have to be of columns' size."""
        return self.row_offsets, self.columns, self.t_row_offsets, self.columns, self.columns

    def dense(self, x: Tensor) -> Tensor:
        """The dense product and the bias; a new tensor."""
        raise NotImplementedError

    def sparse(self, x: Tensor, addend: Tensor | None) -> Tensor:
        """All of the layer by a sparse op."""
        raise NotImplementedError

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """x as the dense layer takes it; addend in the shape of y."""
        if self.values is not None:
            return self.sparse(x, addend)
        return finish(self.dense(x), addend, self.activation)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        held = f"sparse, nnz={self.nonzeros()}" if self.sparse_form else "dense"
        fused = "" if self.activation == "none" else f", {self.activation}"
        return f"{' x '.join(map(str, self.weight_shape))}, {held}{fused}, bias={self.bias is not None}; {self.choice}"


def finish(y: Tensor, addend: Tensor | None, activation: str) -> Tensor:
    """activation(y + addend), in y itself where that is possible."""
    if addend is not None:
        y = y.add_(addend)
    return y.relu_() if activation == "relu" else F.gelu(y) if activation == "gelu" else y


class FusedLinear(Fused):
    """x @ W.T + bias for x (..., in_features)."""

    def dense(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def sparse(self, x: Tensor, addend: Tensor | None) -> Tensor:
        out, columns = self.weight_shape
        rows = x if x.dim() == 2 else x.reshape(-1, columns)
        if is_batch_last(rows) and not rows.is_contiguous():
            y = csr_spmm(self.values, *self.pattern_tensors(), rows.t(), False, self.bias).t()
        else:
            y = csr_spmm(self.values, *self.pattern_tensors(), rows, True, self.bias)
        y = y if x.dim() == 2 else y.view(*x.shape[:-1], out)
        return finish(y, addend, self.activation)


class FusedConv2d(Fused):
    """torch.conv2d of x (N, C, H, W); padding is (top, bottom, left, right)."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        self.stride, self.dilation = (stride[0], stride[1]), (dilation[0], dilation[1])
        self.padding, self.groups = tuple(padding), groups
        super().__init__(weight, bias)

    def set_dense(self, weight: Tensor) -> None:
        super().set_dense(weight.contiguous(memory_format=torch.channels_last))

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """x, padded where its sides differ, and the padding (height, width) that is left to do."""
        top, bottom, left, right = self.padding
        if top == bottom and left == right:
            return x, (top, left)
        return F.pad(x, (left, right, top, bottom)), (0, 0)

    def dense(self, x: Tensor) -> Tensor:
        x, padding = self._padded(x)
        return torch.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def sparse(self, x: Tensor, addend: Tensor | None) -> Tensor:
        x, padding = self._padded(x)
        kernel = (self.weight_shape[2], self.weight_shape[3])
        values, pattern = self.values, self.pattern_tensors()
        if kernel == (1, 1) == self.stride and padding == (0, 0) and self.groups == 1 and is_batch_last(x):
            n, c, h, w = x.shape
            y = csr_spmm(values, *pattern, x.permute(1, 2, 3, 0).reshape(c, h * w * n), False, self.bias)
            y = y.view(-1, h, w, n).permute(3, 0, 1, 2)
        else:
            y = sparse_conv2d(x, values, *pattern, self.bias, kernel, self.stride, padding, self.dilation, self.groups)
        return finish(y, addend, self.activation)
