"""Which layers of a fused graph run sparse and where tensors are batch last: by measuring, and a minimum cut."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sparse_ops.inference import cut, layout
from sparse_ops.inference.fuse import layer_nodes, layer_of
from sparse_ops.inference.layers import Fused, FusedConv2d
from sparse_ops.inference.layout import BATCH_LAST, PLAIN
from sparse_ops.nn import timing
from sparse_ops.nn.choice import LEAST_SPARSITY
from sparse_ops.recycling import Recycler

_aten = torch.ops.aten
# Ops that compute each element by itself, or each image: they take either layout and answer in it.
FREE = {
    getattr(getattr(_aten, name), overload)
    for name, overload in (
        ("add", "Tensor"), ("sub", "Tensor"), ("mul", "Tensor"), ("div", "Tensor"), ("relu", "default"),
        ("gelu", "default"), ("silu", "default"), ("sigmoid", "default"), ("tanh", "default"), ("hardtanh", "default"),
        ("hardswish", "default"), ("hardsigmoid", "default"), ("leaky_relu", "default"), ("elu", "default"),
        ("clamp", "default"), ("clamp_min", "default"),
    )
}  # fmt: skip
# Ops to which the layout of their input makes no difference, and which answer plain.
SINKS = {_aten.mean.dim, _aten.sum.dim_IntList}


@dataclass(frozen=True)
class Seen:
    """What stood at a node when the graph ran on the example."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Costs:
    """Milliseconds of one call of a layer in each form; infinite where it has no such form."""

    dense: float
    sparse: float
    batch_last: float
    sparsity: float
    busy: bool

    @property
    def plain(self) -> float:
        """The quicker of the two forms that take tensors as torch has them."""
        return min(self.dense, self.sparse)


class _Recorder(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[str, Seen] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n.name] = Seen(tuple(value.shape), value.dtype)
        return value


def record(graph: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Seen]:
    """Shape and dtype at each node, on the example."""
    recorder = _Recorder(graph)
    with torch.no_grad():
        leaves, _ = torch.utils._pytree.tree_flatten((args, kwargs))
        recorder.run(*leaves, enable_io_processing=False)
    return recorder.seen


def measure(graph: fx.GraphModule, seen: Mapping[str, Seen]) -> dict[str, Costs]:
    """What each layer's call costs, by the name of its node."""
    return {node.name: _costs(node, layer, seen) for node, layer in layer_nodes(graph)}


def _costs(node: fx.Node, layer: Fused, seen: Mapping[str, Seen]) -> Costs:
    given = [seen[argument.name] for argument in node.args if isinstance(argument, fx.Node)]
    device = layer.dense_weight().device
    xs = [torch.randn(s.shape, device=device).to(s.dtype) for s in given]
    if isinstance(layer, FusedConv2d):
        xs = [x.contiguous(memory_format=torch.channels_last) for x in xs]
    sparsity = 1 - layer.nonzeros() / max(1, math.prod(layer.weight_shape))
    dense = layer.to_dense()
    forms: dict[str, Callable[[], Any]] = {"dense": lambda: dense(*xs)}
    if _may_be_sparse(layer):
        sparse = layer.to_sparse()
        if sparsity >= LEAST_SPARSITY:
            forms["sparse"] = lambda: sparse(*xs)
        if xs[0].dim() in (2, 4) and (sparsity >= LEAST_SPARSITY or layer.weight_shape[1] <= 4):
            turned = [layout.batch_last(x) for x in xs]
            forms["batch_last"] = lambda: sparse(*turned)
    if len(forms) == 1:
        return Costs(1.0, math.inf, math.inf, sparsity, False)
    with torch.inference_mode(), Recycler()():
        times = timing.compare(list(forms.values()), device)
    ms = dict.fromkeys(("dense", "sparse", "batch_last"), math.inf) | dict(zip(forms, times.ms, strict=True))
    return Costs(ms["dense"], ms["sparse"], ms["batch_last"], sparsity, times.busy)


def _may_be_sparse(layer: Fused) -> bool:
    depthwise = isinstance(layer, FusedConv2d) and layer.groups == layer.weight_shape[0] > 1
    return not depthwise and layer.dense_weight().numel() > 0


def choose(graph: fx.GraphModule, seen: Mapping[str, Seen], costs: Mapping[str, Costs]) -> dict[str, str]:
    """The layout of every node's output that makes the sum of layers and conversions least; PLAIN or BATCH_LAST."""
    states: dict[str, tuple[float, float]] = {}
    edges: list[tuple[str, str, float]] = []
    conversion: dict[Seen, float] = {}
    for node in graph.graph.nodes:
        if layer_of(graph, node) is not None:
            states[node.name] = costs[node.name].plain, costs[node.name].batch_last
        elif _is_free(node, seen):
            states[node.name] = 0.0, 0.0
        else:
            states[node.name] = 0.0, math.inf
        for source in node.all_input_nodes:
            found = seen.get(source.name)
            if found is None or len(found.shape) not in (2, 4) or node.target in SINKS:
                continue
            if not found.dtype.is_floating_point:
                continue
            if found not in conversion:
                conversion[found] = _conversion(found)
            edges.append((source.name, node.name, conversion[found]))
    most = 1 + sum(min(pair) + max((c for c in pair if c < math.inf), default=0) for pair in states.values())
    most += sum(cost for *_, cost in edges)
    finite = {name: (min(zero, most), min(one, most)) for name, (zero, one) in states.items()}
    return {name: (PLAIN, BATCH_LAST)[state] for name, state in cut.cheapest(finite, edges).items()}


def _is_free(node: fx.Node, seen: Mapping[str, Seen]) -> bool:
    own = seen.get(node.name)
    if node.op != "call_function" or own is None or len(own.shape) not in (2, 4):
        return False
    if node.target in layout.POOLS:
        return True
    if node.target not in FREE:
        return False
    return all(len(seen[n.name].shape) in (0, len(own.shape)) for n in node.all_input_nodes if n.name in seen)


def _conversion(found: Seen) -> float:
    """Milliseconds of the way to batch last, or back where that takes longer."""
    x = torch.zeros(found.shape, dtype=found.dtype)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    turned = layout.batch_last(x)
    with torch.inference_mode(), Recycler()():
        return max(timing.compare([lambda: layout.batch_last(x), lambda: layout.plain(turned)], x.device).ms)


def apply(
    graph: fx.GraphModule,
    layouts: Mapping[str, str],
    costs: Mapping[str, Costs],
    seen: Mapping[str, Seen],
    measured: Mapping[str, Costs],
) -> None:
    """Put the chosen forms and the conversions between layouts into the graph, in place.

    costs: what the choice goes by; measured: what the layers say of it.
    """
    made: dict[Any, tuple[Fused, Fused]] = {}
    for node, layer in layer_nodes(graph):
        cost, last = costs[node.name], layouts[node.name] == BATCH_LAST
        sparse = last or cost.sparse < cost.dense
        chosen = _sparse(layer, made) if sparse else layer.to_dense()
        chosen.choice = _reason(measured[node.name], sparse, last)
        graph.set_submodule(str(node.target), chosen)
    turned: dict[tuple[fx.Node, str], fx.Node] = {}
    for node in list(graph.graph.nodes):
        wanted = layouts.get(node.name, PLAIN)
        if wanted == BATCH_LAST and node.target in layout.POOLS:
            node.target = layout.POOLS[node.target]
        if node.target in SINKS:
            source = node.all_input_nodes[0]
            batch_last = layouts.get(source.name) == BATCH_LAST and len(seen[source.name].shape) == 4
            if node.target == _aten.mean.dim and batch_last:
                node.target = layout.mean
            continue
        for source in node.all_input_nodes:
            found = seen.get(source.name)
            if layouts.get(source.name, PLAIN) == wanted or found is None or len(found.shape) not in (2, 4):
                continue
            if (source, wanted) not in turned:
                with graph.graph.inserting_after(source):
                    function = layout.batch_last if wanted == BATCH_LAST else layout.plain
                    turned[source, wanted] = graph.graph.call_function(function, (source,))
            node.replace_input_with(source, turned[source, wanted])
    graph.graph.lint()
    graph.recompile()


def _sparse(layer: Fused, made: dict[Any, tuple[Fused, Fused]]) -> Fused:
    """The layer held sparse; layers that share a weight share its parts. made: dense layers, alive, and their forms."""
    if layer.weight is None:
        return layer
    known = layer.weight.data_ptr(), layer.weight.dtype, layer.weight_shape, layer.weight.stride()
    if known not in made:
        made[known] = layer, layer.to_sparse()
        return made[known][1]
    return layer.with_weight_of(made[known][1])


def _reason(cost: Costs, sparse: bool, last: bool) -> str:
    if math.isinf(min(cost.sparse, cost.batch_last)):
        return f"{cost.sparsity:.1%} zeros"
    own = cost.batch_last if last else cost.sparse if sparse else cost.dense
    parts = [f"{cost.sparsity:.1%} zeros", f"{own:.3f} ms{' in batch last' if last else ''}"]
    others = (("dense", cost.dense, not sparse), ("sparse", cost.sparse, sparse and not last))
    parts += [f"{name} {ms:.3f}" for name, ms, is_own in others if not is_own and ms < math.inf]
    if not last and cost.batch_last < math.inf:
        parts.append(f"batch last {cost.batch_last:.3f}")
    return ", ".join([*parts, "machine busy"] if cost.busy else parts)
