"""Parameter groups for weight decay that also know the 1-D values of sparse layers."""

from typing import Any

from torch import nn

from sparse_ops import checks, prunable
from sparse_ops.nn.base import SparseModule


def param_groups(model: nn.Module, weight_decay: float, *, no_decay: prunable.Filters = None) -> list[dict[str, Any]]:
    """Two groups for any optimiser: weights that decay, and biases and norms that do not.

    Decays: what has two or more dimensions, and `values` of SparseLinear and SparseConv2d, which are weights though
    they are 1-D. no_decay: predicates, module types or name patterns (as `prunable=` of a method) that do not decay in
    any case. Frozen parameters are in their group too, a tied one once. ValueError for a weight_decay that is
    negative or not finite, TypeError for what is no model or no number.
    """
    checks.module("param_groups", model)
    checks.at_least_0("param_groups", "weight_decay", weight_decay)
    sparse = {id(m.values) for m in model.modules() if isinstance(m, SparseModule)}
    kept = {id(p) for p in prunable.matching(model, "no_decay", no_decay)}
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for p in model.parameters():
        decays = (p.dim() > 1 or id(p) in sparse) and id(p) not in kept
        (decay if decays else plain).append(p)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
