"""Layers of a network for inference: a dense or sparse weight, the bias, an addend and an activation in one call."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_ops.formats import Pattern, scatter
from sparse_ops.ops import fused_layers

ACTIVATIONS = ("none", "relu", "gelu")


class Fused(nn.Module):
    """y = activation(W x + bias + addend); W is `weight`, or `values` at a pattern of which the forward pass is kept.

    Tensors are buffers; a subclass defines `forward`. choice: one line that says why the
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
        return self._like(None, (values, pattern.row_offsets, pattern.columns, pattern.t_row_offsets, self.bias))

    def to_dense(self) -> "Fused":
        """The same layer with its weight held dense; itself where it is."""
        return self if self.weight is not None else self._like(self.dense_weight(), (None, None, None, None, self.bias))

    def with_weight_of(self, other: "Fused") -> "Fused":
        """This layer with the sparse weight of another."""
        return self._like(None, (other.values, other.row_offsets, other.columns, other.t_row_offsets, self.bias))

    def _like(self, weight: Tensor | None, parts: tuple[Tensor | None, ...]) -> "Fused":
        """This layer with other tensors: the dense weight, or the parts of a sparse one, and the bias."""
        layer = type(self).__new__(type(self))
        nn.Module.__init__(layer)
        layer.__dict__.update({k: v for k, v in self.__dict__.items() if not k.startswith("_") and k != "training"})
        layer.train(False)
        names = ("weight", "values", "row_offsets", "columns", "t_row_offsets", "bias")
        for name, tensor in zip(names, (weight, *parts), strict=True):
            layer.register_buffer(name, tensor)
        if weight is not None:
            layer.set_dense(weight)
        return layer

    @classmethod
    def from_parts(cls, given: Mapping[str, Any], tensors: Sequence[Tensor | None]) -> "Fused":
        """The layer of a call of its op, from the arguments by name and the tensors that the op is given."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.weight_shape, layer.activation, layer.choice = tuple(given["weight_shape"]), given["activation"], ""
        if "stride" in given:
            pairs = (tuple(given[name]) for name in ("stride", "padding", "dilation"))
            layer.window = (*pairs, given["groups"])  # type: ignore[assignment]
        return layer._like(tensors[0], (*tensors[1:5], tensors[5]))

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

    def held(self) -> tuple[Any, ...]:
        """The weight and the bias as the ops take them."""
        own = self._buffers  # 3 us less than seven attributes of a module
        parts = own["weight"], own["values"], own["row_offsets"], own["columns"], own["t_row_offsets"]
        return *parts, self.weight_shape, own["bias"]

    def extra_repr(self) -> str:
        """What print(model) shows."""
        held = f"sparse, nnz={self.nonzeros()}" if self.sparse_form else "dense"
        fused = "" if self.activation == "none" else f", {self.activation}"
        return f"{' x '.join(map(str, self.weight_shape))}, {held}{fused}, bias={self.bias is not None}; {self.choice}"


class FusedLinear(Fused):
    """x @ W.T + bias for x (..., in_features)."""

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """As the op `fused_linear`, which a graph that is being captured sees."""
        op: Any = torch.ops.sparse_ops.fused_linear if torch.compiler.is_compiling() else fused_layers.fused_linear
        return op(x, *self.held(), addend, self.activation)


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
        self.window = (tuple(stride), tuple(padding), tuple(dilation), groups)
        super().__init__(weight, bias)

    @property
    def groups(self) -> int:
        """How many groups of channels."""
        return self.window[3]

    def set_dense(self, weight: Tensor) -> None:
        """Hold the weight dense, in channels_last, which is the quicker format of dense convolutions."""
        super().set_dense(weight.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """As the op `fused_conv2d`, which a graph that is being captured sees."""
        op: Any = torch.ops.sparse_ops.fused_conv2d if torch.compiler.is_compiling() else fused_layers.fused_conv2d
        return op(x, *self.held(), *self.window, addend, self.activation)
