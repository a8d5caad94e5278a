"""LearningRates: what an optimiser's groups began with, times a method's factor."""

import torch
from torch import Tensor


class LearningRates:
    """Writes a learning rate where a phase begins or the factor changes: between, a user's schedule may.

    base: the initial learning rate of each group; factor: what was written last.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.base: list[float] = []
        self.factor = 1.0
        self.know_groups()

    def know_groups(self) -> None:
        """Note the initial learning rates of the groups that the optimiser has got since the last look."""
        new = self.optimizer.param_groups[len(self.base) :]
        self.base += [float(group.get("initial_lr", group["lr"])) for group in new]

    def set(self, factor: float, begins: bool) -> None:
        """Every group's initial learning rate times factor, where that is another one or a phase begins."""
        if factor == self.factor and not begins:
            return
        self.factor = factor
        for group, base in zip(self.optimizer.param_groups, self.base, strict=False):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor
