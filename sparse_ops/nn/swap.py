"""sparsify and densify: replace the layers of a model by sparse ones where those are faster, and the way back."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from sparse_ops import checks
from sparse_ops.nn import choice, encoders, parametrized, whole
from sparse_ops.nn.base import SparseModule, dense_weight
from sparse_ops.nn.choice import LayerChoice, LayerInput, SparsifyTable
from sparse_ops.nn.conv import SparseConv2d
from sparse_ops.nn.linear import SparseLinear

# Dense layers of exactly these types have a sparse form.
SPARSE_TYPES: dict[type[nn.Module], type[SparseModule]] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}

# What a parameter becomes, and how a tensor of its shape does.
Conversions = dict[nn.Parameter, tuple[nn.Parameter, Callable[[Tensor], Tensor]]]


def sparsify(
    model: nn.Module,
    example: Any = None,
    *,
    policy: str = "measured",
    inplace: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    verbose: bool = True,
) -> nn.Module:
    """The model with its layers sparse where they are measured faster so, on this machine, with torch's threads of now.

    model: any model whose nn.Linear and nn.Conv2d weights hold zeros (subclasses stay dense), also where
    torch.nn.utils.prune masks them. example: what the model is called with: a tensor, a tuple of arguments, a dict of
    keyword arguments, or a list of such examples; it decides the shapes to measure, without gradients. Under autograd
    a call of a sparse layer takes 50 to 80 us, so that small ones may be slower in training, or where a model is called
    without torch.no_grad(). Small layers are also timed together, in the model.
    policy: "measured" (without an example: by the sparsity from which a gain is expected), "threshold:0.9" (every layer
    with at least that share of zeros), or "all" (every layer with zeros).
    inplace: change `model` itself, not a copy. optimizer: its parameter groups and state go over to the new parameters,
    momentum and the like taken where the weight has values. verbose: print the table that the choice was made from; it
    is kept as `sparsify_table` on the model that is returned.

    A converted layer keeps no dense copy of its weight. `densify` is the inverse. Raises ValueError for a policy that
    is none of these, for an empty list of examples, and for a model whose weights a method still computes from
    thresholds (`finalize` or `sparse_ops.methods.bake` ends that); ValueError or TypeError for an example that the
    model refuses.
    """
    checks.module("sparsify", model)
    threshold = _threshold(policy)
    if isinstance(example, list) and not example:
        raise ValueError("sparsify: example is an empty list, expected at least one example to measure with, or None")
    if optimizer is not None:
        checks.optimizer("sparsify", optimizer)
    parametrized.refuse("sparsify", model)
    result, moved = (model, {}) if inplace else copied(model)
    owners = owners_of(result)
    kinds = tuple(SPARSE_TYPES)
    layers: list[tuple[str, nn.Module]] = [(name, m) for name, m in result.named_modules() if isinstance(m, kinds)]
    inputs: list[set[LayerInput]] | None = None
    if policy == "measured" and example is not None:
        examples = example if isinstance(example, list) else [example]
        inputs = choice.record_inputs(result, [m for _, m in layers], examples)
    rows: list[LayerChoice] = []
    swaps: dict[nn.Module, SparseModule] = {}
    for i, (name, layer) in enumerate(layers):
        row, sparse = _choose(name, layer, owners, threshold, None if inputs is None else inputs[i])
        rows.append(row)
        if sparse is not None:
            swaps[layer] = sparse
    if inputs is not None:
        kept = encoders.faster_fused(result, swaps, examples)
        rows = [dataclasses.replace(row, sparse=False, reason=kept[m]) if m in kept else row
                for row, (_, m) in zip(rows, layers, strict=True)]  # fmt: skip
        swaps = {dense: sparse for dense, sparse in swaps.items() if dense not in kept}
        rows, swaps = _together(result, layers, rows, swaps, examples)
    result = replace(result, swaps)
    table = SparsifyTable(tuple(rows))
    result.sparsify_table = table  # type: ignore[assignment]
    if verbose:
        print(table)
    if optimizer is not None:
        converted: Conversions = {parameter_of(d): (s.values, s.pattern.gather) for d, s in swaps.items()}
        rekey(optimizer, moved, converted)
    return result


def densify(model: nn.Module, *, inplace: bool = False, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """The model with every sparse layer dense again, with the same weights bit for bit; the inverse of `sparsify`.

    inplace: change `model` itself, not a copy. optimizer: its parameter groups and state go over to the dense weights.
    """
    checks.module("densify", model)
    if optimizer is not None:
        checks.optimizer("densify", optimizer)
    result, moved = (model, {}) if inplace else copied(model)
    swaps: dict[nn.Module, nn.Module] = {}
    converted: Conversions = {}
    for _, sparse in sparse_layers(result):
        dense = sparse.to_dense()
        swaps[sparse] = dense
        converted[sparse.values] = parameter_of(dense), sparse.scatter
    result = replace(result, swaps)
    result.__dict__.pop("sparsify_table", None)
    if optimizer is not None:
        rekey(optimizer, moved, converted)
    return result


def _threshold(policy: str) -> float | None:
    """The sparsity that a policy asks for; None for the measured one."""
    if policy == "measured":
        return None
    if policy == "all":
        return 0.0
    name, _, number = str(policy).partition(":")
    try:
        threshold = float(number)
    except ValueError:
        threshold = -1.0
    if name != "threshold" or not 0 <= threshold <= 1:
        raise ValueError(f"sparsify: policy is {policy!r}, expected 'measured', 'all' or 'threshold:<0 to 1>'")
    return threshold


def _choose(
    name: str, layer: nn.Module, owners: dict[int, list[str]], threshold: float | None, inputs: set[LayerInput] | None
) -> tuple[LayerChoice, SparseModule | None]:
    """The row of the table, and the sparse layer if that is the choice."""
    weight = dense_weight(layer).detach()
    sparsity = 1 - int(weight.count_nonzero()) / max(1, weight.numel())
    times: tuple[float | None, float | None] = (None, None)

    def row(sparse: bool, reason: str) -> LayerChoice:
        return LayerChoice(name, type(layer).__name__, tuple(weight.shape), sparsity, *times, sparse, reason)

    if (reason := obstacle(name, layer, weight, sparsity, owners)) is not None:
        return row(False, reason), None
    kind = type(layer)
    if threshold is None and inputs is not None:
        if not inputs:
            return row(False, "the example does not reach it"), None
        if sparsity < choice.LEAST_SPARSITY:
            return row(False, f"below {choice.LEAST_SPARSITY:.0%} zeros it takes more memory sparse"), None
    else:
        least = choice.EXPECTED_SPARSITY[kind] if threshold is None else threshold
        if sparsity < least:
            return row(False, f"below {least:.2%} zeros"), None
    try:
        sparse = SPARSE_TYPES[kind].from_dense(layer)
    except ValueError as error:
        return row(False, str(error)), None
    if threshold is not None or inputs is None:
        return row(True, f"at least {least:.2%} zeros"), sparse
    measured = choice.measure(_plain(layer, weight), sparse, inputs)
    times = measured.ms[0], measured.ms[1]
    faster, reason = choice.judge(measured)
    return row(faster, reason), sparse if faster else None


def _together(
    model: nn.Module,
    layers: Sequence[tuple[str, nn.Module]],
    rows: Sequence[LayerChoice],
    swaps: dict[nn.Module, SparseModule],
    examples: Sequence[Any],
) -> tuple[list[LayerChoice], dict[nn.Module, SparseModule]]:
    """Rows and swaps without those that are faster alone but not in the model."""
    ms = {layer: (row.dense_ms or 0.0, row.sparse_ms or 0.0) for row, (_, layer) in zip(rows, layers, strict=True)}
    try:
        kept = whole.faster_together(model, lambda chosen: _shadow(model, chosen), swaps, ms, examples)
    except (copy.Error, TypeError):  # of a model that cannot be copied, changed in place
        return list(rows), swaps
    found = []
    for row, (_, layer) in zip(rows, layers, strict=True):
        lost = layer in swaps and layer not in kept
        found.append(
            dataclasses.replace(row, sparse=False, reason=f"{row.reason} alone, not in the model") if lost else row
        )
    return found, dict(kept)


def _shadow(model: nn.Module, swaps: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The model with some layers replaced, to be called and thrown away; it shares all tensors with the model."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    memo |= {id(module): module for module in swaps.values()}
    for module in model.modules():  # as in copied
        weight = module.__dict__.get("weight")
        if isinstance(weight, Tensor):
            memo[id(weight)] = weight
    shadow = copy.deepcopy(model, memo)
    return replace(shadow, {memo[id(dense)]: sparse for dense, sparse in swaps.items()})


def obstacle(name: str, layer: nn.Module, weight: Tensor, sparsity: float, owners: dict[int, list[str]]) -> str | None:
    """Why a layer cannot become sparse, or None."""
    if type(layer) not in SPARSE_TYPES:
        return f"a subclass of {next(k.__name__ for k in SPARSE_TYPES if isinstance(layer, k))}"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    if len(names := owners[id(parameter_of(layer))]) > 1:
        return f"its weight is tied to {next(n for n in names if n.rpartition('.')[0] != name)}"
    pre_hooks = [h for h in layer._forward_pre_hooks.values() if not isinstance(h, BasePruningMethod)]
    if pre_hooks or layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "it has hooks"
    return "no zeros" if sparsity == 0 else None


def parameter_of(layer: nn.Module) -> nn.Parameter:
    """The parameter behind a dense layer's weight."""
    parameter = layer._parameters.get("weight_orig", layer._parameters.get("weight"))
    assert parameter is not None
    return parameter


def owners_of(model: nn.Module) -> dict[int, list[str]]:
    """Every place where a parameter is registered, modules that are shared counted once, by the parameter's id."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{name}.{key}" if name else key)
    return owners


def empty_sparse(layer: nn.Module) -> SparseModule:
    """The sparse form of a dense layer, with its bias and flags but without any value; for a state_dict to fill."""
    weight = parameter_of(layer)
    nothing = weight.detach().new_zeros(1).expand(weight.shape)
    sparse = SPARSE_TYPES[type(layer)].from_dense(_plain(layer, nothing))
    sparse.values.requires_grad_(weight.requires_grad)
    return sparse.train(layer.training)


def _plain(layer: nn.Module, weight: Tensor) -> nn.Module:
    """The dense layer with its weight as it is, without hooks that mask it: what sparse has to beat."""
    plain = type(layer).__new__(type(layer))
    parameters = {"weight": nn.Parameter(weight, False), "bias": layer.bias}
    plain.__dict__ = layer.__dict__ | {"_parameters": parameters, "_buffers": {}, "_forward_pre_hooks": {}}
    plain.__dict__.pop("weight", None)  # the product that torch.nn.utils.prune leaves there
    return plain


def replace(model: nn.Module, swaps: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put each new module wherever its old one stands; a shared module stays shared."""
    if model in swaps:
        return swaps[model]
    for module in list(model.modules()):
        for key, child in module._modules.items():
            if child is not None and child in swaps:
                module._modules[key] = swaps[child]
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            encoders.call_its_layers(module)
        elif isinstance(module, nn.TransformerEncoder):
            encoders.keep_padded(module)
    return model


def copied(model: nn.Module) -> tuple[nn.Module, dict[int, Any]]:
    """A deep copy, and what became of each object by its id."""
    memo: dict[int, Any] = {}
    for module in model.modules():  # torch.nn.utils.prune leaves a product with history there, which cannot be copied
        weight = module.__dict__.get("weight")
        if isinstance(weight, Tensor):
            memo[id(weight)] = weight.detach().clone()
    return copy.deepcopy(model, memo), memo


def rekey(
    optimizer: torch.optim.Optimizer,
    moved: dict[int, Any],
    converted: Conversions,
) -> None:
    """Hand the optimiser the new parameters, in place of the old ones, with its state in their shape."""
    for group in optimizer.param_groups:
        for i, old in enumerate(group["params"]):
            new, into = moved.get(id(old), old), None
            if new in converted:
                new, into = converted[new]
            if new is old:
                continue
            group["params"][i] = new
            if old in optimizer.state:
                state = optimizer.state.pop(old)
                optimizer.state[new] = {key: _state(value, old, into) for key, value in state.items()}


def _state(value: Any, old: Tensor, into: Callable[[Tensor], Tensor] | None) -> Any:
    fits = into is not None and isinstance(value, Tensor) and value.shape == old.shape
    return into(value) if fits else value  # type: ignore[misc]


def sparse_layers(model: nn.Module) -> Iterator[tuple[str, SparseModule]]:
    """(name, layer) of every sparse layer, shared ones once."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, SparseModule))
