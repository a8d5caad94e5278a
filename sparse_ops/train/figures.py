"""Numbers behind the report's pictures: magnitudes of the weights, density per layer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_ops.methods import Sparsifier
from sparse_ops.methods.budget import Budget
from sparse_ops.ops.kth_magnitude import kth_magnitude
from sparse_ops.prunable import select

BINS_PER_DECADE, LOWEST, HIGHEST = 10, -10, 2  # decades of |w|


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Module name -> weight, of every Linear and convolution."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {name: m.weight.detach() for name, m in model.named_modules() if isinstance(m, kinds)}


def count_zeros(model: nn.Module) -> tuple[int, int]:
    """(zeros, all) over the prunable weights."""
    weights = list(prunable(model).values())
    total = sum(w.numel() for w in weights)
    return total - sum(int(w.count_nonzero()) for w in weights), total


def share(model: nn.Module, method: Mapping[str, Any]) -> float:
    """The sparsity of a recipe's method over all its weights, where the recipe gives it by layer too."""
    if not isinstance(method["sparsity"], Mapping):
        return float(method["sparsity"])
    weights = select(model, method.get("prunable"), method.get("exclude")).parameters
    return (Budget(method["sparsity"]).zeros(weights) or 0) / sum(w.numel() for w in weights.values())


def asked(method: Sparsifier) -> dict[str, int]:
    """Of a finished method: the weights that its budget covers, how many zeros it wants there, and how many there are.

    count="art" may prune a few more: one, and what ties with it.
    """
    weights = {name: w.detach() for name, w in method.weights.items()}
    total = sum(w.numel() for w in weights.values())
    zeros = total - sum(int(w.count_nonzero()) for w in weights.values())
    return {"weights": total, "wanted": wanted(method), "zeros": zeros}


def wanted(method: Sparsifier) -> int:
    """The least zeros that a method's budget wants at the end."""
    budget = method.budget if method.budget.count != "art" else dataclasses.replace(method.budget, count="floor")
    return budget.zeros(method.weights) or 0


def magnitudes(model: nn.Module, sparsity: float) -> dict[str, Any]:
    """`histogram` of the prunable weights, and the magnitude below which a share `sparsity` of them lies."""
    weights = list(prunable(model).values())
    n = sum(w.numel() for w in weights)
    k = max(1, int(sparsity * n + 0.5))
    return histogram(weights) | {"threshold": float(kth_magnitude(weights, k))}


def histogram(weights: Sequence[Tensor]) -> dict[str, Any]:
    """How many weights have which log10 |w|.

    Magnitudes outside 1e-10 to 100 count in the first and the last bin; zeros are counted apart.
    """
    bins = BINS_PER_DECADE * (HIGHEST - LOWEST)
    counts = torch.zeros(bins, dtype=torch.int64)
    zeros = 0
    for w in weights:
        live = w.flatten().float().abs()
        live = live[live > 0]
        zeros += w.numel() - live.numel()
        index = ((live.log10() - LOWEST) * BINS_PER_DECADE).floor().long().clamp_(0, bins - 1)
        counts += torch.bincount(index, minlength=bins).cpu()
    return {"lowest": LOWEST, "bins_per_decade": BINS_PER_DECADE, "counts": counts.tolist(), "zeros": zeros}


def density(model: nn.Module) -> list[dict[str, Any]]:
    """One record per prunable weight: name, shape, weights, nonzeros."""
    return [
        {"name": name, "shape": list(w.shape), "weights": w.numel(), "nonzeros": int(w.count_nonzero())}
        for name, w in prunable(model).items()
    ]
