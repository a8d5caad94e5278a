"""A fused graph as one function of Python, without what torch.fx and nn.Module do around every step of it.

A small network pays for that: three dense layers of 784, 300 and 100 numbers for one sample take 30 us, the calls of
fx.GraphModule around them took 40.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

_aten = torch.ops.aten
# Functions of torch that take the arguments of an overload of ATen and do the same, 1 to 1.5 us sooner.
QUICK: dict[Any, Callable[..., Any]] = {
    _aten.add.Tensor: torch.add,
    _aten.avg_pool2d.default: nn.functional.avg_pool2d,
    _aten.cat.default: torch.cat,
    _aten.clone.default: torch.clone,
    _aten.div.Tensor: torch.div,
    _aten.embedding.default: torch.embedding,
    _aten.layer_norm.default: torch.layer_norm,
    _aten.lstm.input: torch.lstm,
    _aten.max_pool2d.default: torch.max_pool2d,
    _aten.mean.dim: torch.mean,
    _aten.mul.Tensor: torch.mul,
    _aten.permute.default: torch.permute,
    _aten.relu.default: torch.relu,
    _aten.reshape.default: torch.reshape,
    _aten.scaled_dot_product_attention.default: nn.functional.scaled_dot_product_attention,
    _aten.select.int: torch.select,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.squeeze.dim: torch.squeeze,
    _aten.sub.Tensor: torch.sub,
    _aten.sym_size.int: Tensor.size,
    _aten.tanh.default: torch.tanh,
    _aten.transpose.int: torch.transpose,
    _aten.unsqueeze.default: torch.unsqueeze,
}


class Program:
    """Calls the steps of a graph on (args, kwargs); tensors go when the last step that takes them is done."""

    def __init__(self, graph: fx.GraphModule) -> None:
        info = graph.graph._codegen.pytree_info  # type: ignore[attr-defined]
        self._in_spec, self._out_spec = info.in_spec, info.out_spec
        self._run = _compiled(graph)

    def __call__(self, args: Sequence[Any], kwargs: dict[str, Any], leaves: Sequence[Any] | None = None) -> Any:
        """The graph's results. leaves: those of the arguments where they are known, which spares looking for them."""
        if leaves is None:
            leaves = fx_pytree.tree_flatten_spec((list(args), kwargs), self._in_spec)
        results = self._run(*leaves)
        if self._out_spec.is_leaf() and len(results) == 1:
            return results[0]
        return pytree.tree_unflatten(results, self._out_spec)


def _compiled(graph: fx.GraphModule) -> Callable[..., Any]:
    names: dict[fx.Node, str] = {}
    scope: dict[str, Any] = {}
    inputs, lines = [], []

    def constant(value: Any) -> str:
        name = f"c{len(scope)}"
        scope[name] = value
        return name

    def text(value: Any) -> str:
        """Source of an argument: nodes by their names, containers of nodes in their own form, all else a constant."""
        if isinstance(value, fx.Node):
            return names[value]
        if not any(isinstance(leaf, fx.Node) for leaf in _leaves(value)):
            return constant(value)
        match value:
            case list() | tuple():
                inner = ", ".join(text(v) for v in value)
                return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
            case dict():
                return "{" + ", ".join(f"{key!r}: {text(v)}" for key, v in value.items()) + "}"
            case slice():
                return f"slice({text(value.start)}, {text(value.stop)}, {text(value.step)})"
        raise TypeError(f"a graph's argument is of type {type(value).__name__}")

    last = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}
    for node in graph.graph.nodes:
        given = ", ".join([*map(text, node.args), *(f"{key}={text(value)}" for key, value in node.kwargs.items())])
        names[node] = f"v{len(names)}"
        match node.op:
            case "placeholder":
                inputs.append(names[node])
                continue
            case "get_attr":  # looked up at each call: a device may change
                parent, _, leaf = node.target.rpartition(".")
                call = f"getattr({constant(graph.get_submodule(parent))}, {leaf!r})"
            case "call_module":
                call = f"{constant(graph.get_submodule(node.target).forward)}({given})"
            case "call_function":
                call = f"{constant(QUICK.get(node.target, node.target))}({given})"
            case "call_method":
                call = f"{text(node.args[0])}.{node.target}({given.partition(', ')[2]})"
            case "output":
                lines.append(f"return {text(tuple(node.args[0]))}")
                continue
        lines.append(f"{names[node]} = {call}")
        lines += [f"del {names[source]}" for source in node.all_input_nodes if last[source] is node]
    exec(f"def run({', '.join(inputs)}):\n    " + "\n    ".join(lines), scope)  # of our own making
    return scope["run"]


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    if isinstance(value, dict):
        return [leaf for v in value.values() for leaf in _leaves(v)]
    return [leaf for v in value for leaf in _leaves(v)] if isinstance(value, list | tuple) else [value]
