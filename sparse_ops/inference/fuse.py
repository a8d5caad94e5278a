"""Passes over a captured graph: layers become modules, which take in norms, additions and activations behind them."""

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, fx

from sparse_ops.inference import capture
from sparse_ops.inference.layers import Fused, FusedConv2d, FusedLinear

_aten = torch.ops.aten
HELD = ("weight", "values", "row_offsets", "columns", "t_row_offsets", "bias")  # what a layer has of its own
_NORMS = (_aten._native_batch_norm_legit_no_training.default, _aten.batch_norm.default)


def fuse(graph: fx.GraphModule) -> None:
    """Put Fused layers into the graph in place; values change by float32 rounding alone."""
    _each(graph, (_aten.mul.Tensor,), _multiply)
    graph.graph.eliminate_dead_code()
    _layers(graph)
    _fold_norms(graph)
    _each(graph, (_aten.add.Tensor,), _take_addend)
    _each(graph, (_aten.relu.default, _aten.gelu.default), _take_activation)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    drop_unused(graph)
    graph.recompile()


def layer_of(graph: fx.GraphModule, node: Any) -> Fused | None:
    """The layer that a node calls."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    return module if isinstance(module, Fused) else None


def layer_nodes(graph: fx.GraphModule) -> list[tuple[fx.Node, Fused]]:
    """Every call of a layer, in order."""
    return [(node, layer) for node in graph.graph.nodes if (layer := layer_of(graph, node)) is not None]


def _each(graph: fx.GraphModule, targets: tuple[Any, ...], do: Callable[[fx.GraphModule, fx.Node], None]) -> None:
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in targets:
            do(graph, node)


def _constant(graph: fx.GraphModule, node: Any) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found = capture.attribute(graph, str(node.target))
    return found.detach() if isinstance(found, Tensor) else None


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call of an op by their names in its schema, with defaults."""
    target: Any = node.target
    schema = target._schema
    values = {argument.name: argument.default_value for argument in schema.arguments}
    return values | dict(zip(values, node.args, strict=False)) | node.kwargs


def _multiply(graph: fx.GraphModule, node: fx.Node) -> None:
    """A product of two constants, as of torch.nn.utils.prune's weight_orig and weight_mask, becomes one constant."""
    given = _arguments(node)
    a, b = _constant(graph, given["self"]), _constant(graph, given["other"])
    if a is None or b is None:
        return
    sources = sorted(
        (str(given[name].target) for name in ("self", "other")), key=lambda path: not path.endswith("_orig")
    )
    parent, _, leaf = sources[0].removesuffix("_orig").rpartition(".")
    holder = graph.get_submodule(parent)
    while hasattr(holder, leaf):
        leaf += "_product"
    holder.register_buffer(leaf, a * b)
    with graph.graph.inserting_before(node):
        constant = graph.graph.get_attr(f"{parent}.{leaf}" if parent else leaf)
    constant.meta = dict(node.meta)
    node.replace_all_uses_with(constant)
    graph.graph.erase_node(node)


def _layers(graph: fx.GraphModule) -> None:
    """Convolutions and linear layers with constant weights become modules, under the names of their weights."""
    makers = {
        _aten.linear.default: _linear,
        _aten.conv2d.default: _conv2d,
        _aten.conv2d.padding: _conv2d,
    }
    found: dict[fx.Node, Fused] = {}
    held: dict[Any, Tensor] = {}  # convolutions turn a weight, which those that share it do once
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in makers:
            continue
        given = _arguments(node)
        weight, bias = _constant(graph, given["weight"]), _constant(graph, given["bias"])
        if weight is None or not weight.is_floating_point() or (bias is None) != (given["bias"] is None):
            continue
        if weight.dim() == 4 and _dim(given["input"]) != 4:
            continue  # one image without a batch
        layer = found[node] = makers[node.target](given, weight, bias)
        layer.weight = held.setdefault((weight.data_ptr(), weight.shape), layer.weight)
    used = _used_beside(graph, found)
    for node, layer in found.items():
        given = _arguments(node)
        _replace(graph, node, _free_path(graph, str(given["weight"].target), used), layer, (given["input"],))


def lift(graph: fx.GraphModule) -> None:
    """Calls of the ops of Fused layers, as a graph that was exported holds them, become such layers again."""
    kinds: dict[Any, type[Fused]] = {
        torch.ops.sparse_ops.fused_linear.default: FusedLinear,
        torch.ops.sparse_ops.fused_conv2d.default: FusedConv2d,
    }
    found: dict[fx.Node, Fused] = {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in kinds:
            given = _arguments(node)
            tensors = [_constant(graph, given[name]) for name in HELD]
            found[node] = kinds[node.target].from_parts(given, tensors)
    used = _used_beside(graph, found)
    for node, layer in found.items():
        given = _arguments(node)
        holder = given["values"] if given["weight"] is None else given["weight"]
        path = _free_path(graph, str(holder.target).replace("values", "weight"), used)
        args = [argument for argument in (given["x"], given["addend"]) if argument is not None]
        _replace(graph, node, path, layer, tuple(args))
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    drop_unused(graph)
    graph.recompile()


def _linear(given: dict[str, Any], weight: Tensor, bias: Tensor | None) -> Fused:
    return FusedLinear(weight, bias)


def _conv2d(given: dict[str, Any], weight: Tensor, bias: Tensor | None) -> Fused:
    stride, dilation = (_pair(given[name]) for name in ("stride", "dilation"))
    sides: list[int] = []
    for k, d, p in zip(weight.shape[2:], dilation, _pair(given["padding"]), strict=True):
        total = d * (k - 1)
        sides += [total // 2, total - total // 2] if p == "same" else [0, 0] if p == "valid" else [p, p]
    return FusedConv2d(weight, bias, stride, sides, dilation, given["groups"])


def _pair(value: Any) -> tuple[Any, Any]:
    if isinstance(value, (str, int)):
        return value, value
    pair = tuple(value)
    return pair if len(pair) == 2 else (pair[0], pair[0])


def _used_beside(graph: fx.GraphModule, layers: Container[fx.Node]) -> set[str]:
    """The paths of constants that others take than these calls."""
    attributes = (node for node in graph.graph.nodes if node.op == "get_attr")
    return {str(node.target) for node in attributes if any(user not in layers for user in node.users)}


def _free_path(graph: fx.GraphModule, weight: str, used: Container[str]) -> str:
    """Where a weight's layer goes: the path of the weight's module where nothing else of it is used, or one beside."""
    path = weight.removesuffix("weight").rstrip("._") or "layer"
    modules, found, i = dict(graph.named_modules()), path, 2
    while found in modules and (
        isinstance(modules[found], Fused)
        or modules[found]._modules
        or any(f"{found}.{key}" in used for key in _tensors(modules[found]))
    ):
        found, i = f"{path}_{i}", i + 1
    return found


def drop_unused(graph: fx.GraphModule) -> None:
    """Let go of tensors that no step takes: those of layers which have their own now."""
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for path, module in graph.named_modules():
        if isinstance(module, Fused):
            continue
        for key in _tensors(module):
            if (f"{path}.{key}" if path else key) not in used:
                delattr(module, key)


def _tensors(module: torch.nn.Module) -> set[str]:
    return {*module._parameters, *module._buffers}


def _replace(graph: fx.GraphModule, node: fx.Node, path: str, layer: Fused, args: tuple[Any, ...]) -> fx.Node:
    """Call `layer`, to be found at `path`, in place of a node."""
    graph.add_submodule(path, layer)
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(path, args)
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)
    return call


def _fold_norms(graph: fx.GraphModule) -> None:
    """Batch norms behind a layer that nobody else uses go into its weight and bias, computed in float64."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in _NORMS:
            continue
        given = _arguments(node)
        source = given["input"]
        layer = layer_of(graph, source)
        names = ("weight", "bias", "running_mean", "running_var")
        scale, shift, mean, variance = (_constant(graph, given[name]) for name in names)
        if layer is None or len(source.users) != 1 or mean is None or variance is None or given.get("training"):
            continue
        if isinstance(layer, FusedLinear) and _dim(source) != 2:
            continue  # the norm's channels are not the layer's features
        factor = (variance.double() + given["eps"]).rsqrt()
        if scale is not None:
            factor = factor * scale.double()
        offset = (0 if layer.bias is None else layer.bias.double()) - mean.double()
        offset = offset * factor + (0 if shift is None else shift.double())
        dtype, weight = layer.dense_weight().dtype, layer.dense_weight()
        scaled = (weight.double() * factor.view(-1, *[1] * (weight.dim() - 1))).to(dtype)
        layer.set_dense(scaled)
        layer.bias = offset.to(dtype)
        if node.target is _NORMS[0]:
            for user in list(node.users):  # getitem: only the first of its three outputs means something here
                user.replace_all_uses_with(source)
                graph.graph.erase_node(user)
        else:
            node.replace_all_uses_with(source)
        graph.graph.erase_node(node)


def _dim(node: Any) -> int | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dim() if isinstance(value, Tensor) else None


def _kind(node: Any) -> tuple[Any, ...] | None:
    """Dtype and shape of a tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return (value.dtype, *value.shape) if isinstance(value, Tensor) else None


def _take_addend(graph: fx.GraphModule, node: fx.Node) -> None:
    """a + b becomes the call of the layer that computes a or b, the later of the two, with the other as its addend."""
    given = _arguments(node)
    a, b = given["self"], given["other"]
    if given["alpha"] != 1 or a is b or _kind(a) is None or not _kind(a) == _kind(b) == _kind(node):
        return
    order = {n: i for i, n in enumerate(graph.graph.nodes)}
    for own, other in sorted(((a, b), (b, a)), key=lambda pair: -order[pair[0]]):
        layer = layer_of(graph, own)
        if layer is None or len(own.users) != 1 or len(own.args) != 1 or layer.activation != "none":
            continue
        with graph.graph.inserting_before(node):
            call = graph.graph.call_module(str(own.target), (own.args[0], other))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.graph.erase_node(node)
        graph.graph.erase_node(own)
        return


def _take_activation(graph: fx.GraphModule, node: fx.Node) -> None:
    given = _arguments(node)
    source = given["self"]
    layer = layer_of(graph, source)
    if (
        layer is None
        or len(source.users) != 1
        or layer.activation != "none"
        or given.get("approximate", "none") != "none"
    ):
        return
    layer.activation = "gelu" if node.target is _aten.gelu.default else "relu"
    node.replace_all_uses_with(source)
    graph.graph.erase_node(node)
