"""OneShot: train dense, prune once by magnitude, fine-tune with a fixed mask.

Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015,
arXiv 1506.02626, with a single pruning step.
"""

from typing import Any, Unpack

import torch
from torch import nn

from sparse_ops.methods.arguments import epochs
from sparse_ops.methods.budget import Sparsity
from sparse_ops.methods.options import Options
from sparse_ops.methods.updater import Sparsifier


class OneShot(Sparsifier):
    """One magnitude pruning between dense training and fine-tuning.

    pretrain: `pretrain_epochs` dense epochs (0 for a trained model). finetune: the smallest magnitudes are pruned, the
    optimiser is cleared, and the survivors train for `finetune_epochs`, the learning rate times 0.1 at half and at
    three quarters of them. The other arguments are those of `Options`.
    """

    name = "oneshot"

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: Sparsity,
        pretrain_epochs: int = 160,
        finetune_epochs: int = 160,
        **options: Unpack[Options],
    ) -> None:
        epochs("OneShot", pretrain_epochs=pretrain_epochs, finetune_epochs=finetune_epochs)
        course = [("pretrain", pretrain_epochs), ("finetune", finetune_epochs)]
        super().__init__(model, optimizer, sparsity, course, **options)
        self._start()

    @classmethod
    def for_epochs(cls, epochs: int) -> dict[str, int]:
        """Half of the epochs dense, half fine-tuning."""
        return {"pretrain_epochs": epochs - epochs // 2, "finetune_epochs": epochs // 2}

    def _settings(self) -> dict[str, Any]:
        return dict(self.course)

    def _enter(self, phase: str) -> None:
        if phase == "finetune":
            self._prune(self.budget.masks(self.weights))
