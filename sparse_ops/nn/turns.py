"""Turns: layers of a model in training that are dense and sparse by turns, with their optimiser's state."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparse_ops.formats import Pattern
from sparse_ops.masks import PackedMask
from sparse_ops.nn.base import SparseModule
from sparse_ops.nn.swap import (
    SPARSE_TYPES,
    Conversions,
    empty_sparse,
    obstacle,
    owners_of,
    parameter_of,
    rekey,
    replace,
)


class Turns:
    """Swaps layers in place, any number of times, between their dense module and one sparse module each.

    weights: name -> dense parameter. In a turn a layer's weight is `values` of a SparseLinear or SparseConv2d, also in
    the optimiser's parameter groups, and its state (momentum and the like) is taken over position by position. Both
    modules, both parameters and the bias stay the same objects throughout, so that nothing but the dense weight is out
    of date in a sparse turn. Layers that `sparsify` would leave dense for what they are (subclasses, tied weights,
    hooks) stay dense.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> None:
        self.model, self.optimizer, self.weights = model, optimizer, dict(weights)
        self.sparse: dict[str, SparseModule] = {}  # the layers that are sparse now, by the name of their weight
        self._made: dict[str, SparseModule] = {}
        self._layers: dict[str, tuple[str, nn.Module]] = {}
        names = {id(w): name for name, w in weights.items()}
        for path, layer in model.named_modules():
            if type(layer) in SPARSE_TYPES and layer is not model and id(parameter_of(layer)) in names:
                self._layers[names[id(parameter_of(layer))]] = path, layer

    def to_sparse(self, masks: Mapping[str, PackedMask]) -> dict[str, nn.Parameter]:
        """Make layers sparse at the positions that their masks keep; name -> the values that took a weight's place.

        Weights and optimiser state are zero elsewhere. All layers are dense before.
        """
        owners = owners_of(self.model)
        swaps: dict[nn.Module, nn.Module] = {}
        converted: Conversions = {}
        for name, mask in masks.items():
            path, layer = self._layers.get(name, ("", None))
            weight = self.weights[name]
            if layer is None or obstacle(path, layer, weight, mask.zeros / max(1, mask.numel), owners) is not None:
                continue
            if (sparse := self._sparse(name, layer)) is None:
                continue
            pattern = Pattern.from_mask(mask.to_dense())
            sparse.set_weight(pattern, pattern.gather(weight.detach()))
            sparse.values.requires_grad_(weight.requires_grad)
            sparse.train(layer.training)
            self.sparse[name] = swaps[layer] = sparse
            converted[weight] = sparse.values, pattern.gather
        self._swap(swaps, converted)
        return {name: layer.values for name, layer in self.sparse.items()}

    def to_dense(self) -> dict[str, nn.Parameter]:
        """Make all layers dense again; name -> the dense weight, of those that were sparse."""
        swaps: dict[nn.Module, nn.Module] = {}
        converted: Conversions = {}
        self.write_back()
        for name, sparse in self.sparse.items():
            layer, weight = self._layers[name][1], self.weights[name]
            weight.requires_grad_(sparse.values.requires_grad)
            swaps[sparse] = layer.train(sparse.training)
            converted[sparse.values] = weight, _Scatter(sparse, weight)
        back = {name: self.weights[name] for name in self.sparse}
        self.sparse = {}
        self._swap(swaps, converted)
        return back

    @torch.no_grad()
    def write_back(self) -> None:
        """Bring the dense weights of sparse layers up to date."""
        for name, sparse in self.sparse.items():
            weight = self.weights[name]
            dense = _Scatter(sparse, weight)(sparse.values.detach())
            if (dense.dtype, dense.device) == (weight.dtype, weight.device):
                weight.copy_(dense)
            else:  # the model was moved meanwhile
                weight.data = dense

    def _sparse(self, name: str, layer: nn.Module) -> SparseModule | None:
        if name not in self._made:
            try:
                self._made[name] = empty_sparse(layer)
            except ValueError:  # a convolution that has no sparse form
                return None
        return self._made[name]

    def _swap(self, swaps: Mapping[nn.Module, nn.Module], converted: Conversions) -> None:
        replace(self.model, swaps)
        rekey(self.optimizer, {}, converted)
        for old in converted:
            old.grad = None


class _Scatter:
    """A tensor of a sparse layer's values as a dense one with the strides of the layer's weight."""

    def __init__(self, sparse: SparseModule, weight: Tensor) -> None:
        self.sparse, self.weight = sparse, weight

    def __call__(self, values: Tensor) -> Tensor:
        dense = torch.empty_like(self.weight, dtype=values.dtype, device=values.device, requires_grad=False)
        return dense.copy_(self.sparse.scatter(values))
