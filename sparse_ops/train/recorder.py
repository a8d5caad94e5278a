"""What `sparse-ops analyze` needs of a training: after each epoch the largest weights, magnitudes, right answers."""

import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_ops.masks import PackedMask
from sparse_ops.methods.budget import Budget
from sparse_ops.prunable import select
from sparse_ops.train import figures, run_folder
from sparse_ops.train.recipe import Recipe

FOLDER = run_folder.ANALYSIS[0]
_BUDGET = ("sparsity", "scope", "count", "min_nonzeros")


@dataclass(frozen=True)
class Answers:
    """For each class how many answers were right, and how many images it has."""

    right: list[int]
    images: list[int]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / sum(self.images)


class Recorder:
    """Writes analysis/STAGE/EPOCH.pt into a run's folder: a bit a weight, and a few hundred numbers.

    The surviving set of an epoch is what the recipe's budget would keep of its weights by magnitude, whether a mask is
    in force or not, so that it can be compared between epochs and between methods.
    """

    def __init__(self, folder: Path, stage: str, model: nn.Module, recipe: Recipe) -> None:
        method = recipe.method
        self.path = folder / FOLDER / stage
        self.budget = Budget(**{key: method[key] for key in _BUDGET if key in method})
        # the names of now: a method may put other parameters in the place of a weight
        self.names = list(select(model, method.get("prunable"), method.get("exclude")).parameters)

    @torch.no_grad()
    def write(self, epoch: int, phase: str, model: nn.Module, answers: Answers | None) -> None:
        """After an epoch, counted from 1, before the method may prune; answers are those on the test images."""
        weights = {name: operator.attrgetter(name)(model).detach() for name in self.names}
        masks = self.budget.masks(weights)
        state: dict[str, Any] = {
            "epoch": epoch,
            "phase": phase,
            "shapes": {name: list(weight.shape) for name, weight in weights.items()},
            "masks": {name: mask.bits.cpu() for name, mask in masks.items()},
            "kept": {name: mask.numel - mask.zeros for name, mask in masks.items()},
            "zeros": {name: w.numel() - int(w.count_nonzero()) for name, w in weights.items()},
            "magnitudes": figures.histogram(list(weights.values())),
            "threshold": min((_least(weights[name], mask) for name, mask in masks.items()), default=0.0),
            "right": None if answers is None else answers.right,
            "images": None if answers is None else answers.images,
        }
        run_folder.save_state(self.path / f"{epoch:05d}.pt", state)


def _least(weight: Tensor, mask: PackedMask) -> float:
    """The smallest magnitude that a mask keeps."""
    kept = weight[mask.to_dense()].abs()
    return float(kept.min()) if kept.numel() else math.inf
