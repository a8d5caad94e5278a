"""Which epoch's weights count: the last one's, or those of the best epoch on held-out or on test images."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparse_ops.train.figures import wanted

RULES = ("last", "validation", "test")


@dataclass
class Selection:
    """Keeps the weights of the best epoch so far, in memory. `last` keeps nothing.

    Only epochs in which the network has the budget's zeros already are compared; of equal scores the first epoch wins.
    Where no epoch qualifies the last one counts. `test` looks at the test images to choose, as several papers do: such
    an accuracy is too high, and is marked wherever it is shown.
    """

    rule: str = "last"
    best: dict[str, Any] | None = None

    def offer(self, score: float | None, epoch: int, model: nn.Module, method: Any) -> None:
        """The end of an epoch, counted from 1, before the method may prune: keep its weights if none were better."""
        if self.rule == "last" or score is None or not complete(method):
            return
        if self.best is None or score > self.best["score"]:
            weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            state = copy.deepcopy(method.state_dict())
            self.best = {"score": score, "epoch": epoch, "model": weights, "method": state}

    def restore(self, model: nn.Module, method: Any) -> int | None:
        """Put the kept weights and masks back; the epoch that they are of, None where nothing was kept."""
        if self.best is None:
            return None
        method.load_state_dict(self.best["method"])  # first: it may make layers sparse that were so
        model.load_state_dict(self.best["model"])
        return self.best["epoch"]


def complete(method: Any) -> bool:
    """Whether the network has at least as many zeros as its budget wants at the end; one without a budget has."""
    if getattr(method, "budget", None) is None:
        return True
    n = sum(w.numel() for w in method.weights.values())
    return method.metrics().get("sparsity", 0.0) * n >= wanted(method) - 0.5
