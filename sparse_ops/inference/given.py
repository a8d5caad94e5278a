"""A model as it was given in place of a graph of its ops, where its own code is quicker."""

from typing import Any

import torch
from torch import nn

from sparse_ops.nn import choice, swap


class Given(nn.Module):
    """A copy of a model in evaluation mode, called as a graph's program is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def run(self, args: Any, kwargs: dict[str, Any], leaves: Any = None) -> Any:
        """The model's result."""
        return self.model(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self.model)


def of(model: nn.Module, dtype: torch.dtype) -> Given | None:
    """A copy that can stand for the model; None where that has hooks, computes in another dtype, or cannot be copied.

    What cannot be copied holds a lock or an open file, say.
    """
    floats = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}
    if choice.has_hooks(model) or not floats <= {dtype}:
        return None
    try:
        return Given(swap.copied(model)[0].eval().requires_grad_(False)).eval()
    except Exception:
        return None
