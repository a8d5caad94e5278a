"""A model as it was given in place of a graph of its ops, where its own code is quicker."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.utils import _pytree as pytree

from sparse_ops.nn import swap


class Given(nn.Module):
    """Calls a model with the leaves of its arguments, and returns those of its result."""

    def __init__(self, model: nn.Module, arguments: pytree.TreeSpec) -> None:
        super().__init__()
        self.model = model
        self._arguments = arguments

    def forward(self, *leaves: Any) -> list[Any]:
        """All values of the result, in order."""
        args, kwargs = pytree.tree_unflatten(leaves, self._arguments)
        return pytree.tree_leaves(self.model(*args, **kwargs))

    def __repr__(self) -> str:
        return repr(self.model)


def can_stand(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether the model itself computes in `dtype`, and calls nobody's hooks."""
    floats = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not isinstance(hook, BasePruningMethod)
    ]
    return floats <= {dtype} and not hooks


def graph(model: nn.Module, captured: fx.GraphModule, result: Any) -> fx.GraphModule | None:
    """A graph of one step, called as the captured one is: a copy of the model, in evaluation mode.

    result: what the model returns. None where it cannot be copied, as where it holds a lock or an open file.
    """
    try:
        own = swap.copied(model)[0].eval().requires_grad_(False)
    except Exception:
        return None
    info = captured.graph._codegen.pytree_info  # type: ignore[attr-defined]
    module = nn.Module()
    module.add_module("given", Given(own, info.in_spec))
    found = fx.Graph()
    found.set_codegen(captured.graph._codegen)
    inputs = [found.node_copy(node) for node in captured.graph.nodes if node.op == "placeholder"]
    leaves = found.call_module("given", tuple(inputs))
    count = len(pytree.tree_leaves(result))
    found.output(tuple(found.call_function(operator.getitem, (leaves, i)) for i in range(count)))
    return fx.GraphModule(module, found)


def model_of(graph: fx.GraphModule) -> nn.Module | None:
    """The model that a graph of `graph` runs; None for a captured one."""
    step = graph._modules.get("given")
    return step.model if isinstance(step, Given) else None
