"""plan: what a sparsity means for each layer, before training; sparsity_report: what a model holds, after it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from sparse_ops import checks, masks, prunable
from sparse_ops.masks import Count, Scope
from sparse_ops.nn.base import SparseModule, dense_weight
from sparse_ops.nn.choice import EXPECTED_SPARSITY
from sparse_ops.prunable import Filters, Selection


def break_even_sparsity(module_type: type[nn.Module]) -> float | None:
    """The share of zeros from which such a layer is expected to run faster sparse; None where it has no sparse form.

    The numbers are those by which `sparsify` decides without an example; with one it measures. Subclasses have none:
    they may compute something else, or be read past their forward, as the out_proj of nn.MultiheadAttention is.
    """
    return EXPECTED_SPARSITY.get(module_type)


def _stays_dense(module_type: type[nn.Module]) -> str | None:
    """Why `sparsify` leaves such a layer dense, in its words; None where it does not."""
    if module_type in EXPECTED_SPARSITY:
        return None
    parent = next((kind for kind in EXPECTED_SPARSITY if issubclass(module_type, kind)), None)
    return "no sparse form" if parent is None else f"dense: a subclass of {parent.__name__}"


@dataclass(frozen=True)
class PlannedLayer:
    """One prunable weight; zeros is None where a global budget decides it only when the network is pruned.

    break_even_sparsity is None, and stays_dense says why, where `sparsify` leaves the layer dense at any sparsity.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    zeros: int | None
    break_even_sparsity: float | None
    stays_dense: str | None


@dataclass(frozen=True)
class Plan:
    """str() is a table, to_dict() plain data."""

    layers: tuple[PlannedLayer, ...]
    skipped: dict[str, str]
    scope: str
    weights: int
    zeros: int
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only."""
        return asdict(self) | {"layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        rows = [
            [
                layer.name,
                layer.kind,
                _by(layer.shape),
                f"{layer.weights:,}",
                "from the total" if layer.zeros is None else f"{layer.zeros:,}",
                layer.stays_dense or f"{100 * (layer.break_even_sparsity or 0.0):.0f} %",
            ]
            for layer in self.layers
        ]
        total = ["total", "", "", f"{self.weights:,}", f"{self.zeros:,}", ""]
        text = table(["weight", "type", "shape", "weights", "zeros", "faster above"], [*rows, total])
        share = f"{100 * self.zeros / self.weights:.2f} % of the prunable weights, {self.scope} budget; "
        share += f"they are {self.weights:,} of {self.parameters:,} parameters"
        skipped = "".join(f"\n  {line}" for line in _folded(self.skipped))
        return f"{text}\n{share}" + (f"\nnot prunable:{skipped}" if skipped else "")


def plan(
    model: nn.Module,
    sparsity: float,
    *,
    scope: Scope = "global",
    count: Count = "nearest",
    min_nonzeros: int = 0,
    prunable: Filters = None,
    exclude: Filters = None,
) -> Plan:
    """What a method would do to a model: which weights, how many zeros, what is skipped and why.

    sparsity: share of zeros among the prunable weights, in [0, 1). scope: a global budget fixes only the total before
    the network is pruned; "uniform" and "erk" fix each layer's. prunable, exclude, count, min_nonzeros: as in
    `sparse_ops.methods`. TypeError for what is no model, ValueError for a sparsity outside [0, 1), for a model without
    prunable weights, and where the budget leaves too few weights for every layer to keep min_nonzeros.
    """
    checks.module("plan", model)
    selection = _select(model, prunable, exclude)
    sizes = [w.parameter.numel() for w in selection.weights]
    total = masks.budget(sum(sizes), sparsity, count)
    masks.check_min_nonzeros(total, sizes, min_nonzeros)
    zeros: Sequence[int | None] = [None] * len(sizes)
    if scope != "global":
        zeros = masks.layer_zeros([w.parameter.shape for w in selection.weights], sparsity, scope, count, min_nonzeros)
    layers = [
        PlannedLayer(w.name, w.kind, tuple(w.parameter.shape), n, z, break_even_sparsity(kind), _stays_dense(kind))
        for w, n, z in zip(selection.weights, sizes, zeros, strict=True)
        for kind in [type(w.module)]
    ]
    parameters = sum(p.numel() for p in model.parameters())
    return Plan(tuple(layers), selection.skipped, scope, sum(sizes), total, parameters)


def _folded(skipped: dict[str, str]) -> list[str]:
    """A line per reason: a network has hundreds of biases, and one weight that is missed would not be seen among them.

    Reasons that name a bias as such are one line together, the last.
    """
    groups: dict[str, list[str]] = {}
    biases: list[str] = []
    for name, reason in skipped.items():
        leaf = name.rpartition(".")[2]
        if leaf.endswith("bias") and reason.startswith(f"{leaf} of ") and reason.endswith(" is not prunable"):
            biases.append(name)
        else:
            groups.setdefault(reason, []).append(name)
    if len(biases) == 1:
        groups[skipped[biases[0]]] = biases
    lines = [
        f"{first}{f' and {len(rest)} more' if rest else ''}: {reason}" for reason, (first, *rest) in groups.items()
    ]
    return [*lines, f"{len(biases)} biases"] if len(biases) > 1 else lines


def _select(model: nn.Module, chosen: Filters, excluded: Filters) -> Selection:
    return prunable.select(model, chosen, excluded)


@dataclass(frozen=True)
class LayerSparsity:
    """One weight: how many elements it has, how many of them are zero."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class SparsityReport:
    """str() is a table, to_dict() plain data. parameters counts a sparse layer as the dense one that it stands for."""

    layers: tuple[LayerSparsity, ...]
    parameters: int

    @property
    def weights(self) -> int:
        """All prunable weights."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Their zeros."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of zeros among the prunable weights."""
        return self.zeros / self.weights if self.weights else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only."""
        layers = [asdict(layer) | {"sparsity": layer.sparsity} for layer in self.layers]
        totals = {"weights": self.weights, "zeros": self.zeros, "sparsity": self.sparsity}
        return {"layers": layers, **totals, "parameters": self.parameters}

    def __str__(self) -> str:
        rows = [
            [r.name, r.kind, _by(r.shape), f"{r.weights:,}", f"{r.weights - r.zeros:,}", f"{100 * r.sparsity:.2f} %"]
            for r in self.layers
        ]
        total = ["total", "", "", f"{self.weights:,}", f"{self.weights - self.zeros:,}", f"{100 * self.sparsity:.2f} %"]
        text = table(["weight", "type", "shape", "weights", "nonzero", "sparsity"], [*rows, total])
        share = 100 * self.zeros / self.parameters if self.parameters else 0.0
        return f"{text}\n{share:.2f} % of all {self.parameters:,} parameters are pruned zeros"


def sparsity_report(model: nn.Module, selection: Selection | None = None) -> SparsityReport:
    """Zeros per layer and in total, of dense, sparse and torch.nn.utils.prune'd layers alike.

    selection: which weights (default: all registered types, frozen or not, and sparse layers).
    """
    checks.module("sparsity_report", model)
    if not isinstance(selection, Selection | None):
        raise TypeError(
            f"sparsity_report: selection is {selection!r}, expected a Selection (of prunable.select) or None"
        )
    layers, beside = [], 0
    counted: dict[int, torch.Tensor] = {}  # the tensors are held, so that no id comes twice
    if selection is not None:
        layers = [_layer(w.name, w.kind, w.parameter) for w in selection.weights]
        sparse = [m for m in model.modules() if isinstance(m, SparseModule)]
        beside = sum(torch.Size(m.weight_shape).numel() - m.values.numel() for m in sparse)
        return SparsityReport(tuple(layers), sum(p.numel() for p in model.parameters()) + beside)
    for path, module in model.named_modules():
        if isinstance(module, SparseModule):
            n, shape = torch.Size(module.weight_shape).numel(), tuple(module.weight_shape)
            zeros = n - int(module.values.detach().count_nonzero())
            layers.append(LayerSparsity(prunable.clean(f"{path}.weight"), type(module).__name__, shape, n, zeros))
            beside += n - module.values.numel()
        elif prunable.is_registered(module):
            weight = dense_weight(module)
            held = module._parameters.get("weight_orig", module._parameters.get("weight"))
            held = weight if held is None else held
            if id(held) not in counted and not isinstance(weight, nn.parameter.UninitializedParameter):
                counted[id(held)] = held
                name = prunable.clean(f"{path}.weight" if path else "weight")
                layers.append(_layer(name, prunable.type_name(module), weight))
    return SparsityReport(tuple(layers), sum(p.numel() for p in model.parameters()) + beside)


def _layer(name: str, kind: str, weight: torch.Tensor) -> LayerSparsity:
    zeros = weight.numel() - int(weight.detach().count_nonzero())
    return LayerSparsity(name, kind, tuple(weight.shape), weight.numel(), zeros)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: the first column to the left, numbers to the right."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    right = [i > 0 and all(_numeric(row[i]) for row in rows) for i in range(len(columns))]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def _numeric(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] in "-+."
