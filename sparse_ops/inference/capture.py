"""A model as a graph of functional ATen ops, captured with an example by torch.export."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparse_ops.nn import choice, swap

_aten = torch.ops.aten
# What does nothing to a value in a functional graph of a network in evaluation mode.
_NOTHING = (_aten.clone.default, _aten.alias.default, _aten.detach.default, _aten.lift_fresh_copy.default)


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of an example: a tensor, a tuple of arguments, or a dict of keyword arguments."""
    if isinstance(example, dict):
        return (), example
    if isinstance(example, list):
        raise TypeError("the example is a list, expected a tensor, a tuple of arguments or a dict of keyword arguments")
    return (example if isinstance(example, tuple) else (example,)), {}


def capture(model: nn.Module, example: Any) -> fx.GraphModule:
    """The model in evaluation mode as a GraphModule that is called as the model is, its weights shared with the model.

    The first dimension of the example's tensors stays free where all of them agree on it (at 2 or more) and the model
    allows it; other sizes are those of the example. ops are functional; what does nothing (dropout) is gone. Raises
    ValueError or TypeError that names the reason where the model fails on the example or cannot be captured.
    """
    args, kwargs = arguments(example)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors:
        raise TypeError(
            f"the example is {type(example).__name__} without a tensor, expected what the model is called with"
        )
    if any(isinstance(module, swap.SparseModule) for module in model.modules()):
        model = swap.densify(model)
    _try(model, args, kwargs)
    batch = {t.shape[0] if t.dim() else 0 for t in tensors}
    free = len(batch) == 1 and min(batch) > 1
    with quiet():
        try:
            program = _export(model, args, kwargs, free)
        except Exception:
            if not free:
                raise
            program = _export(model, args, kwargs, False)
        graph = program.module()
        assert isinstance(graph, fx.GraphModule)
    _tidy(graph)
    return graph


def _try(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Call the model, whose own error says more than the tracer's."""
    with choice._evaluating(model), torch.no_grad():
        try:
            model(*args, **kwargs)
        except Exception as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            first = (str(error).splitlines() or ["no reason given"])[0]
            raise kind(f"{type(model).__name__} failed on the example: {type(error).__name__}: {first}") from error


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], free: bool
) -> torch.export.ExportedProgram:
    def dims(leaf: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) else None

    shapes = pytree.tree_map(dims, (args, kwargs)) if free else None
    if shapes is not None:
        shapes = (*shapes[0], *shapes[1].values()) if not kwargs else {**shapes[1]}
    try:
        with choice._evaluating(model), choice._layer_by_layer(), torch.no_grad():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
            return program.run_decompositions({})
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ValueError(
            f"{type(model).__name__} cannot be captured by torch.export, as where its Python code depends on values of "
            f"tensors: {type(error).__name__}: {first}"
        ) from error


def _tidy(graph: fx.GraphModule) -> None:
    """Without guards and ops that do nothing; views that any memory layout of their input allows."""
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.graph.erase_node(node)
        elif node.target in _NOTHING and not node.kwargs and node.args[0].op != "placeholder":
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif node.target in (_aten.view.default, _aten._unsafe_view.default):
            node.target = _aten.reshape.default
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that torch's graphs give about their own code when they are made and copied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def attribute(module: nn.Module, path: str) -> Any:
    """The tensor or module at a dotted path."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def copied_constants(graph: fx.GraphModule) -> None:
    """Give the graph tensors of its own in place of those that it shares with the model."""
    memo: dict[int, Any] = {}
    for module in graph.modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    if id(tensor) not in memo:
                        memo[id(tensor)] = copy.deepcopy(tensor.detach())
                    table[key] = memo[id(tensor)] if table is module._buffers else nn.Parameter(memo[id(tensor)], False)
