"""SparseModule: what sparse layers share, a pattern in buffers, its values as the parameter, and their state_dict."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_ops import formats
from sparse_ops.formats import Pattern


def dense_weight(module: nn.Module) -> Tensor:
    """The weight that a dense layer computes with, also when torch.nn.utils.prune holds it in two halves."""
    original, mask = module._parameters.get("weight_orig"), module._buffers.get("weight_mask")
    if original is not None and mask is not None:
        return original * mask  # `weight` itself is only refreshed by the next forward
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


class SparseModule(nn.Module):
    """A layer whose weight is `values`, a 1-D parameter, at the positions of a Pattern.

    Buffers: row_offsets and columns (in the state_dict); t_row_offsets, t_columns and t_permutation (derived).
    A subclass sets `weight_shape`, the dense weight's shape, before `set_weight`, and defines `forward`, `from_dense`
    and `to_dense`. A state_dict may hold the layer sparse, with any number of values, or as a dense `weight`.
    """

    weight_shape: tuple[int, ...]
    values: nn.Parameter
    bias: nn.Parameter | None
    row_offsets: Tensor
    columns: Tensor
    t_row_offsets: Tensor
    t_columns: Tensor
    t_permutation: Tensor

    @classmethod
    def from_dense(cls, layer: Any) -> "SparseModule":
        """The sparse form of a dense layer."""
        raise NotImplementedError

    def to_dense(self) -> nn.Module:
        """The dense form, with the same weights."""
        raise NotImplementedError

    @classmethod
    def _checked(cls, pattern: Any, values: Any, bias: Any) -> tuple[Pattern, Tensor]:
        """(pattern, values); TypeError for what is none, as for the sizes that a dense layer is made with."""
        for name, value, kind in (("pattern", pattern, Pattern), ("values", values, Tensor)):
            if not isinstance(value, kind):
                raise TypeError(
                    f"{cls.__name__}: {name} is {described(value)}, expected a {kind.__name__}; "
                    f"{cls.__name__}.from_dense makes the layer from a dense one"
                )
        for name, value in (("values", values), ("bias", bias)):
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{cls.__name__}: {name} is {described(value)}, expected a Tensor or None")
            if value is not None and not value.is_floating_point():
                raise TypeError(f"{cls.__name__}: {name} is {value.dtype}, expected a floating point tensor")
        return pattern, values

    def set_weight(self, pattern: Pattern, values: Tensor | nn.Parameter) -> None:
        """Hold `values` (nnz,) at the positions of `pattern` from now on; the parameter stays the same object."""
        rows, columns = pattern.shape
        if (rows, columns) != matrix_shape(self.weight_shape):
            raise ValueError(f"{type(self).__name__}: the pattern is {pattern.shape}, the weight {self.weight_shape}")
        if values.shape != (pattern.nnz,):
            raise ValueError(
                f"{type(self).__name__}: values are {tuple(values.shape)}, the pattern holds {pattern.nnz} values"
            )
        names = ("row_offsets", "columns", "t_row_offsets", "t_columns", "t_permutation")
        for name, tensor in zip(names, pattern.tensors(), strict=True):
            self.register_buffer(name, tensor, persistent=not name.startswith("t_"))
        if isinstance(values, nn.Parameter) or "values" not in self._parameters:
            self.values = values if isinstance(values, nn.Parameter) else nn.Parameter(values)
        else:
            self.values.grad = None
            self.values.data = values.detach()

    @property
    def pattern(self) -> Pattern:
        """Where the values stand in the (rows, columns) matrix of the weight."""
        return Pattern(matrix_shape(self.weight_shape), *self.pattern_tensors())

    def pattern_tensors(self) -> formats.Tensors:
        """(row_offsets, columns, t_row_offsets, t_columns, t_permutation): what ops take, in their order."""
        return self.row_offsets, self.columns, self.t_row_offsets, self.t_columns, self.t_permutation

    @property
    def nnz(self) -> int:
        """How many values the layer holds."""
        return self.columns.numel()

    @property
    def weight(self) -> Tensor:
        """The dense weight, computed from `values` at each access; read-only, differentiable."""
        return self.scatter(self.values)

    def scatter(self, values: Tensor) -> Tensor:
        """The dense tensor, of the weight's shape, with `values` (nnz,) at the pattern's positions; differentiable."""
        shape = matrix_shape(self.weight_shape)
        return formats.scatter(shape, self.row_offsets, self.columns, values).view(self.weight_shape)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__}.weight is read-only: set `values`, or make a new layer with from_dense"
            )
        super().__setattr__(name, value)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = dict(state_dict)
        try:
            found = self._weight_from(own, prefix)
        except ValueError as error:
            error_msgs.append(f"{prefix}: {error}")
            return
        if found is not None:
            pattern, values = found
            if not local_metadata.get("assign_to_params_buffers", False):
                pattern = pattern.to(self.columns.device)
                values = values.detach().to(self.values, copy=True)
            else:
                values = nn.Parameter(values, self.values.requires_grad)
            self.set_weight(pattern, values)
            own |= {prefix + name: getattr(self, name) for name in ("row_offsets", "columns", "values")}
        super()._load_from_state_dict(own, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _weight_from(self, own: dict[str, Any], prefix: str) -> tuple[Pattern, Tensor] | None:
        """(pattern, values) of a state_dict's entries for this layer; dense entries are taken out of `own`."""
        keys = [prefix + name for name in ("row_offsets", "columns", "values")]
        if all(key in own for key in keys):
            row_offsets, columns, values = (own[key] for key in keys)
            pattern = Pattern.from_csr(matrix_shape(self.weight_shape), row_offsets, columns)
            if values.shape != (pattern.nnz,):
                raise ValueError(f"values are {tuple(values.shape)}, the pattern holds {pattern.nnz} values")
            return pattern, values
        weight = own.pop(prefix + "weight", None)
        if prefix + "weight_orig" in own and prefix + "weight_mask" in own:
            weight = own.pop(prefix + "weight_orig") * own.pop(prefix + "weight_mask")
        if weight is None:
            return None
        if tuple(weight.shape) != self.weight_shape:
            raise ValueError(f"the dense weight is {tuple(weight.shape)}, expected {self.weight_shape}")
        return Pattern.from_dense(weight)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What a layer computes in where torch.autocast says so; it leaves float64 and integers alone."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    if x.dtype == torch.float64 or not x.is_floating_point():
        return None
    return torch.get_autocast_dtype(device)


def described(value: Any) -> str:
    """A wrong argument in a few words."""
    return repr(value) if value is None or isinstance(value, int | float | str) else f"a {type(value).__name__}"


def matrix_shape(weight_shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of the matrix of a weight flattened after its first dimension."""
    rows, *rest = weight_shape
    return rows, torch.Size(rest).numel()
