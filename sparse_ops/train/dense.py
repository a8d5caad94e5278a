"""Plain dense training behind the loop's contract: the baseline that every method is compared with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class DenseTraining:
    """`epochs` epochs; the learning rate falls to a tenth at 1/2 and again at 3/4 of them (lr="user": left alone)."""

    phase = "dense"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, *, lr: str = "method") -> None:
        self.model, self.optimizer, self.total_epochs, self.epoch, self.lr = model, optimizer, epochs, 0, lr
        self.base = [group["lr"] for group in optimizer.param_groups]

    @property
    def finished(self) -> bool:
        return self.epoch >= self.total_epochs

    @property
    def lr_factor(self) -> float:
        """0.1 for each of the two marks that were passed."""
        return 0.1 ** ((2 * self.epoch >= self.total_epochs) + (4 * self.epoch >= 3 * self.total_epochs))

    @classmethod
    def lr_rule(cls) -> str:
        """What `lr_factor` does over a run, in a few words."""
        return "times 0.1 at half and at three quarters of the run"

    def end_epoch(self, evaluate: Callable[[nn.Module], float] | None = None, *, train_accuracy: float) -> None:
        """Count the epoch and set the learning rate of the next one."""
        self.epoch += 1
        if self.lr == "user":
            return
        for group, lr in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = lr * self.lr_factor

    def finalize(self) -> nn.Module:
        """The trained network."""
        return self.model

    def metrics(self) -> dict[str, float]:
        """Nothing of its own."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The epochs done and the learning rates that were given."""
        return {"epoch": self.epoch, "base": self.base}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state_dict."""
        self.epoch, self.base = state["epoch"], list(state["base"])
