"""SparseLinear: a linear layer that stores, and multiplies by, its live weights alone."""

import torch
from torch import Tensor, nn

from sparse_ops.formats import Pattern
from sparse_ops.nn.base import SparseModule, autocast_dtype, dense_weight, described
from sparse_ops.ops.csr_spmm import csr_spmm, plain_linear


class SparseLinear(SparseModule):
    """y = x @ W.T + bias for a sparse W of shape (out_features, in_features).

    x: (..., in_features) of the dtype of `values`, any number of leading dimensions, also none; under torch.autocast it
    computes in the autocast dtype, as nn.Linear does. pattern: where W holds `values` (nnz,). bias: (out_features,) or
    None; parameters given are shared, tensors become parameters.

    The buffers of the pattern are trusted at each call, which takes 5 us for a small layer: numbers written into them
    by hand (`layer.columns[0] = 99`) may read memory that is not the layer's, or crash. `set_weight`,
    `Pattern.from_csr` and `load_state_dict` are the ways to another pattern; the latter two check it.
    """

    def __init__(self, pattern: Pattern, values: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        pattern, values = self._checked(pattern, values, bias)
        self.out_features, self.in_features = self.weight_shape = pattern.shape
        self.set_weight(pattern, values)
        if bias is not None and bias.shape != (self.out_features,):
            raise ValueError(f"SparseLinear: the bias is {tuple(bias.shape)}, expected ({self.out_features},)")
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)

    @classmethod
    def from_dense(cls, linear: nn.Linear) -> "SparseLinear":
        """The layer with the nonzeros of linear.weight (masked, where torch.nn.utils.prune masks it) and the same bias.

        The bias stays the same parameter, the training flag and requires_grad are kept.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"SparseLinear.from_dense: linear is {described(linear)}, expected a torch.nn.Linear")
        weight = dense_weight(linear)
        pattern, values = Pattern.from_dense(weight)
        layer = cls(pattern, nn.Parameter(values, requires_grad=weight.requires_grad), linear.bias)
        return layer.train(linear.training)

    def to_dense(self) -> nn.Linear:
        """An nn.Linear with the same weights, zeros where the pattern has none; the bias stays the same parameter."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.weight.detach(), requires_grad=self.values.requires_grad)
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            held, places = self._parameters, self._buffers  # 0.5 us less for each than by attribute
            shift = held["bias"] if "bias" in held else self.bias  # noqa: SIM401  the attribute is not asked for in vain
            y = plain_linear(x, held.get("values"), places["row_offsets"], places["columns"], shift, self.in_features)
            if y is not None:
                return y
        if not isinstance(x, Tensor):
            raise TypeError(f"SparseLinear: x is {described(x)}, expected a Tensor (..., {self.in_features})")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            n = self.in_features
            raise ValueError(
                f"SparseLinear: x is {tuple(x.shape)}, expected (..., {n}): the layer's in_features is {n}"
            )
        values: Tensor = self.values
        bias: Tensor | None = self.bias
        if (dtype := autocast_dtype(x)) is not None:
            x, values, bias = x.to(dtype), values.to(dtype), None if bias is None else bias.to(dtype)
        if x.dtype != values.dtype:
            raise TypeError(f"SparseLinear: x is {x.dtype}, the layer's values are {values.dtype}")
        if x.dim() == 2:  # autograd takes 10 us to record two views (Zen 3)
            return csr_spmm(values, *self.pattern_tensors(), x, True, bias)
        y = csr_spmm(values, *self.pattern_tensors(), x.reshape(-1, self.in_features), True, bias)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        density = f"{self.nnz / max(1, self.in_features * self.out_features):.2%}"
        return f"{self.in_features}, {self.out_features}, nnz={self.nnz} ({density}), bias={self.bias is not None}"
