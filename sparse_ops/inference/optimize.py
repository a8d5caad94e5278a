"""optimize_for_inference: capture, fuse, choose by measuring, and keep what is quickest as a whole."""

import copy
import gc
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparse_ops.inference import capture, fuse, given, machine, network, plan
from sparse_ops.inference.layers import Fused
from sparse_ops.inference.layout import BATCH_LAST, PLAIN
from sparse_ops.inference.network import InferenceNetwork, InferenceReport, LayerRow
from sparse_ops.inference.signature import Parameters, Signature
from sparse_ops.nn import parametrized, swap, timing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The largest difference from the model that rounding explains, relative to its largest output.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
# A copy of the model is taken where it needs less than this share of the quickest graph's time: a graph can be
# exported, and its layers seen.
LEAST_GAIN = 0.95

_aten = torch.ops.aten
RECURRENT = (_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input)


def optimize_for_inference(
    model: nn.Module, example: Any, *, dtype: str | torch.dtype = "float32", verbose: bool = False
) -> InferenceNetwork:
    """The model as one graph for inference, as quick as this machine is measured to run it.

    model: a network whose weights hold zeros, dense or with sparse layers; it stays as it is and shares no tensor with
    the result. example: what it is called with, a tensor, a tuple of arguments or a dict of keyword arguments; all is
    measured at its shapes, with torch's threads of now.
    Batch norms go into the weights before them; biases, ReLU, GELU and residual additions into the layers. Layers are
    dense or sparse, tensors are laid out as torch has them or with the batch last, as measured. Where no such form of
    the whole network is quicker than its dense form, that is taken; and a copy of the model where the model itself is
    quicker than every graph by more than a twentieth ("given" in the report; not where it has hooks or another dtype).
    dtype: "float32" or "bfloat16", what weights and activations are converted to, whatever the model's dtype is; the
    result has the model's own dtype.
    No dense copy is kept of a weight that is held sparse. verbose: print `.report()`.

    Raises ValueError or TypeError that says what is wrong with the arguments, and where the model fails on the example
    or cannot be captured by torch.export.
    """
    result = optimized(model, example, checked(model, dtype), or_given=True)
    if verbose:
        print(result.report())
    return result


def checked(model: Any, dtype: Any) -> str:
    """The name of a dtype. Raises where the model or the dtype is none for `optimize_for_inference`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize_for_inference: model is of type {type(model).__name__}, expected a torch.nn.Module")
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"optimize_for_inference: dtype is {name!r}, expected one of {', '.join(map(repr, DTYPES))}")
    if isinstance(model, InferenceNetwork):
        raise ValueError(
            "optimize_for_inference: model is what it returned already: call it, or optimise the model it was made from"
        )
    return name


def optimized(model: nn.Module, example: Any, dtype: str, or_given: bool) -> InferenceNetwork:
    """The quickest network for a model; or_given: or a copy of the model."""
    parametrized.refuse("optimize_for_inference", model)
    args, kwargs = capture.cloned(capture.arguments(example, model))
    with capture.ONE_AT_A_TIME, network.without_autocast(), torch.random.fork_rng(devices=[]):
        wanted = capture.run_twice(model, args, kwargs)
        graph = capture.capture(model, args, kwargs)
        signature = Signature(args, kwargs, Parameters.of(model), graph.meta["least_batch"])
        fuse.fuse(graph)
        capture.copied_constants(graph)
        dense_bytes = network.tensor_bytes(swap.densify(model) if any(swap.sparse_layers(model)) else model)
        graph.meta["dtypes"] = {t.dtype for t in (*graph.parameters(), *graph.buffers())}
        cast(graph, DTYPES[dtype])
        _lie_as(graph, wanted)
        itself = given.of(model, DTYPES[dtype]) if or_given else None
        result = build(graph, signature, args, kwargs, dtype, wanted, dense_bytes, itself)
    del graph, itself
    gc.collect()  # graphs are cycles, and those of the capture hold the model and a dense copy of its weights
    return result


def build(
    graph: fx.GraphModule,
    signature: Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dtype: str,
    wanted: Any,
    dense_bytes: int,
    itself: given.Given | None = None,
) -> InferenceNetwork:
    """The quickest network of a fused graph whose layers are all plain; `wanted` is what it has to compute.

    itself: a copy of the model, which is taken where it is quicker than all of them.
    """
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    own_args, own_kwargs = capture.cloned((args, kwargs))  # the network may change its input
    seen = plan.record(graph, own_args, own_kwargs)
    costs = plan.measure(graph, seen)
    layouts = {
        "dense": (dict.fromkeys(seen, PLAIN), {name: _dense_only(c) for name, c in costs.items()}),
        "sparse": (dict.fromkeys(seen, PLAIN), costs),
        "sparse, batch last": (plan.choose(graph, seen, costs), costs),
    }
    if all(c.sparse >= c.dense for c in costs.values()):
        del layouts["sparse"]
    if BATCH_LAST not in layouts["sparse, batch last"][0].values():
        del layouts["sparse, batch last"]
    floats = {leaf.dtype for leaf in pytree.tree_leaves(wanted) if isinstance(leaf, Tensor)}
    floats |= graph.meta.get("dtypes", set())  # a model may round inside
    tolerance = TOLERANCE["bfloat16" if floats & {torch.bfloat16, torch.float16} else dtype]
    networks: dict[str, InferenceNetwork] = {}
    errors: dict[str, float] = {}
    for name, (chosen, prices) in layouts.items():
        variant = _copy(graph)
        plan.apply(variant, chosen, prices, seen, costs)
        networks[name] = InferenceNetwork(variant, signature, None)
        own_args, own_kwargs = capture.cloned((args, kwargs))
        errors[name] = difference(networks[name](*own_args, **own_kwargs), wanted)
        if not errors[name] <= tolerance:
            raise RuntimeError(
                f"optimize_for_inference: the network as {name} differs from the model by {errors[name]:.2g} of its "
                "largest output, more than rounding does; this is an error in sparse_ops"
            )
    own_args, own_kwargs = capture.cloned((args, kwargs))
    call = own_args, own_kwargs, tensors[0].device
    if itself is not None:
        own = InferenceNetwork(itself, signature, None)
        errors["given"] = _error_of_given(own, args, kwargs, wanted)
        networks = ({"given": own} if errors["given"] <= tolerance else {}) | networks
    ms = _times(networks, *call)
    best = min((name for name in networks if name != "given"), key=ms.__getitem__)
    best = "given" if ms.get("given", math.inf) < LEAST_GAIN * ms[best] else best
    result = networks[best]
    result._recycler.clear()
    rows = tuple(_row(name, layer, layouts[best][0]) for name, layer in _named(result))  # none of a model as given
    batch = tensors[0].shape[0] if tensors[0].dim() else 1
    where = machine.here()
    result._report = InferenceReport(
        rows, dtype, batch, where, ms, best, errors[best], network.tensor_bytes(result.graph), dense_bytes
    )
    return result


def _error_of_given(own: InferenceNetwork, args: tuple[Any, ...], kwargs: dict[str, Any], wanted: Any) -> float:
    """How much the model as it is called differs; infinite where it fails without gradients, or cannot be compared."""
    own_args, own_kwargs = capture.cloned((args, kwargs))
    try:
        with torch.inference_mode():
            return difference(own(*own_args, **own_kwargs), wanted)
    except Exception:
        return math.inf


def _times(
    networks: Mapping[str, InferenceNetwork], args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
) -> dict[str, float]:
    """Milliseconds of one call of each network."""
    runs: list[Callable[[], Any]] = [lambda n=n: n(*args, **kwargs) for n in networks.values()]  # type: ignore[misc]
    with torch.inference_mode():
        return dict(zip(networks, timing.compare(runs, device).ms, strict=True))


def _dense_only(cost: plan.Costs) -> plan.Costs:
    return plan.Costs(cost.dense, math.inf, math.inf, cost.sparsity, cost.busy)


def _copy(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy with nodes of its own, sharing tensors."""
    memo = {id(t): t for t in (*graph.parameters(), *graph.buffers())}
    with capture.quiet():
        return copy.deepcopy(graph, memo)


def _named(result: InferenceNetwork) -> list[tuple[str, tuple[fx.Node, Fused]]]:
    return [(str(node.target), (node, layer)) for node, layer in result.nodes()]


def _row(name: str, pair: tuple[fx.Node, Fused], layouts: Mapping[str, str]) -> LayerRow:
    node, layer = pair
    kind = type(layer).__name__.removeprefix("Fused")
    sparsity = 1 - layer.nonzeros() / max(1, math.prod(layer.weight_shape))
    last = layouts.get(node.name) == BATCH_LAST
    return LayerRow(name, kind, layer.weight_shape, sparsity, layer.sparse_form, last, layer.choice, layer.bytes())


def cast(graph: fx.GraphModule, dtype: torch.dtype) -> None:
    """Compute in `dtype` where layers have another one: weights and other constants of theirs, inputs in, results back.

    Norms keep constants of float32 and more in float32.
    """
    own = {layer.dense_weight().dtype for _, layer in fuse.layer_nodes(graph)}
    if not own:  # no layer of ours: what the others compute in
        own = {t.dtype for t in (*graph.parameters(), *graph.buffers()) if t.is_floating_point()}
    own -= {dtype}
    if not own:
        return
    # Of a float32 model, ops that ask for float32 want it; of others, ops name the model's dtype where it is created.
    asked = own - {torch.float32}
    norms = set()
    for node in graph.graph.nodes:
        if node.op == "call_function" and "norm" in str(node.target):
            norms |= {str(source.target) for source in node.all_input_nodes if source.op == "get_attr"}
    memo: dict[int, Tensor] = {}
    for path, module in graph.named_modules():
        for table in (module._parameters, module._buffers):
            for key, t in table.items():
                if t is None or t.dtype not in own:
                    continue
                if id(t) not in memo:
                    norm = (f"{path}.{key}" if path else key) in norms
                    memo[id(t)] = t.detach().to(torch.float32 if norm else dtype)
                table[key] = memo[id(t)] if table is module._buffers else nn.Parameter(memo[id(t)], False)

    def converted(node: fx.Node, to: torch.dtype) -> fx.Node:
        call = graph.graph.call_function(torch.ops.aten.to.dtype, (node, to))
        call.meta = dict(node.meta)
        return call

    for node in list(graph.graph.nodes):
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, Tensor) and value.dtype in own:
            with graph.graph.inserting_after(node):
                inside = converted(node, dtype)
            node.replace_all_uses_with(inside, delete_user_cb=lambda user, inside=inside: user is not inside)
        elif node.op == "call_function":
            node.args = pytree.tree_map_only(torch.dtype, lambda d: torch.float32 if d in asked else d, node.args)
            node.kwargs = pytree.tree_map_only(torch.dtype, lambda d: torch.float32 if d in asked else d, node.kwargs)
            if node.target in RECURRENT:  # their states, zeros of the model's dtype where none are given
                with graph.graph.inserting_before(node):
                    states = fx.node.map_arg(node.args[1], lambda n: converted(n, dtype))
                node.args = (node.args[0], states, *node.args[2:])
        elif node.op == "output":

            def back(n: fx.Node) -> fx.Node:
                value = n.meta.get("val")
                return converted(n, value.dtype) if isinstance(value, Tensor) and value.dtype in own else n

            with graph.graph.inserting_before(node):
                node.args = fx.node.map_arg(node.args, back)
    graph.graph.lint()
    graph.recompile()


def _lie_as(graph: fx.GraphModule, wanted: Any) -> None:
    """Results are contiguous where the model's are: a caller's view may rely on it."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    leaves = iter(pytree.tree_leaves(wanted))

    def contiguous(node: Any) -> Any:
        like = next(leaves, None)
        if not isinstance(node, fx.Node) or not isinstance(like, Tensor) or like.dim() < 3 or not like.is_contiguous():
            return node
        call = graph.graph.call_function(torch.ops.aten.contiguous.default, (node,))
        call.meta = dict(node.meta)
        return call

    with graph.graph.inserting_before(output):
        output.args = (type(output.args[0])(contiguous(node) for node in output.args[0]),)
    graph.graph.lint()
    graph.recompile()


def difference(found: Any, wanted: Any) -> float:
    """The largest difference of any tensor, relative to that tensor's largest finite value."""
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        if not isinstance(a, Tensor) or not b.numel():
            continue
        a, b = a.double(), b.double()
        finite = b.isfinite()
        if not torch.equal(finite, a.isfinite()):
            return math.inf
        if finite.any():
            scale = max(float(b[finite].abs().max()), 1e-30)
            worst = max(worst, float((a[finite] - b[finite]).abs().max()) / scale)
    return worst
