"""ART with HyperSparse: train dense, let a penalty grow until the pruned network is as good, fine-tune the survivors.

Glandorf, Kaiser, Rosenhahn: HyperSparse Neural Networks: Shifting Exploration to Exploitation through Adaptive
Regularization, ICCVW 2023, arXiv 2308.07163.
"""

from typing import Any, Literal, Unpack

import torch
from torch import nn

from sparse_ops.methods.arguments import epochs, fraction, one_of, positive
from sparse_ops.methods.best_of import BestOf
from sparse_ops.methods.budget import Sparsity
from sparse_ops.methods.options import Options
from sparse_ops.methods.schedules import growing
from sparse_ops.methods.updater import Evaluate, Sparsifier
from sparse_ops.optim.snapshot import Snapshot, pruned


class ART(Sparsifier):
    """Adaptive Regularized Training.

    pretrain: `pretrain_epochs` dense epochs (0 for a trained model). regularize: in epoch e the penalty's strength is
    lambda_init * eta^e; after each epoch the network is pruned to `sparsity`, given to `evaluate` and restored; of the
    last 2 * half_window + 1 pruned networks the middle one is kept as the best when their mean accuracy exceeds the
    best's own, and the phase ends when the best mean exceeds the epoch's train_accuracy, or after
    `max_regularize_epochs` (without train_accuracy: only then). finetune: from the best pruned weights with a fixed
    mask and a cleared optimiser, the learning rate times 0.1 at half and at three quarters of `finetune_epochs`. With
    `total_epochs`, fine-tuning takes what the first two phases have left of them, whatever `finetune_epochs` says.

    An evaluation takes one copy of the model's tensors, from which the model is restored and the pruned network is
    kept. Weights that were edited through `.data` need a `refresh()`: nothing else shows that they have changed.

    The defaults are the authors' for CIFAR-10 with SGD at learning rate 0.1. The other arguments are those of
    `Options`; count="art" prunes as the authors do, floor(sparsity n) + 1 weights and all ties.
    """

    name = "art"

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: Sparsity,
        pretrain_epochs: int = 60,
        max_regularize_epochs: int = 100,
        finetune_epochs: int = 160,
        *,
        regularizer: Literal["hypersparse", "l1", "l2"] = "hypersparse",
        lambda_init: float = 5e-6,
        eta: float = 1.05,
        half_window: int = 1,
        total_epochs: int = 0,
        **options: Unpack[Options],
    ) -> None:
        epochs(
            "ART",
            pretrain_epochs=pretrain_epochs,
            max_regularize_epochs=max_regularize_epochs,
            finetune_epochs=finetune_epochs,
            half_window=half_window,
            total_epochs=total_epochs,
        )
        if 0 < total_epochs < pretrain_epochs + max_regularize_epochs:
            raise ValueError(
                f"ART: total_epochs is {total_epochs}, less than the {pretrain_epochs} + {max_regularize_epochs} that "
                "pretrain_epochs and max_regularize_epochs may take"
            )
        self._whole = total_epochs
        one_of("ART", "regularizer", regularizer, ("hypersparse", "l1", "l2"))
        positive("ART", lambda_init=lambda_init, eta=eta)
        if eta < 1:
            raise ValueError(f"ART: eta is {eta}, expected a number >= 1: below 1 the penalty would shrink")
        self.regularizer, self.lambda_init, self.eta = regularizer, float(lambda_init), float(eta)
        self.best = BestOf(half_window)
        course = [("pretrain", pretrain_epochs), ("regularize", max_regularize_epochs), ("finetune", finetune_epochs)]
        super().__init__(model, optimizer, sparsity, course, **options)
        self._start()

    @classmethod
    def for_epochs(cls, epochs: int) -> dict[str, int]:
        """15 % of the epochs dense, at most 65 % with the penalty, the rest fine-tuning."""
        return {
            "pretrain_epochs": 3 * epochs // 20,
            "max_regularize_epochs": 13 * epochs // 20,
            "total_epochs": epochs,
        }

    @property
    def phase_epochs(self) -> int:
        """The most epochs of the present phase; 0 when all are over."""
        if self._whole and self.phase == "finetune":
            return self._whole - (self.epoch - self.phase_epoch)
        return super().phase_epochs

    @property
    def total_epochs(self) -> int:
        """The most epochs of all phases together."""
        return self._whole or super().total_epochs

    def _enter(self, phase: str) -> None:
        if phase == "regularize":
            self.sweep.track(self.budget.tracked(self.weights))
            self._grow(0)
        elif phase == "finetune":
            self.sweep.set_penalty("none")
            self.sweep.track(None)
            if self.best.snapshot is not None:
                self.best.snapshot.restore(self.model, self.weights)
            self._prune(self.best.snapshot.masks if self.best.snapshot else self.budget.masks(self.weights))
            self.best.forget()

    def _grow(self, epoch: int) -> None:
        strength = growing(self.lambda_init, self.eta, epoch)
        targets = self.budget.tracked(self.weights)  # a layer that stays dense feels nothing
        self.sweep.set_penalty(self.regularizer, [strength if target > 0 else 0.0 for target in targets])

    def _judge(self, evaluate: Evaluate | None, train_accuracy: float | None) -> tuple[dict[str, Any], str | None]:
        if self.phase != "regularize":
            return {}, None
        if evaluate is None:
            raise ValueError("ART: end_epoch needs evaluate (model -> accuracy in [0, 1]) in the phase 'regularize'")
        masks = self.budget.masks(self.weights)
        with torch.no_grad(), pruned(self.model, self.weights, masks) as copied:
            accuracy = fraction("the accuracy that evaluate returned", evaluate(self.model))
        self.best.add(Snapshot.take(self.model, self.weights, masks, copied), accuracy)
        self._grow(self.phase_epoch + 1)
        record = {"pruned_accuracy": accuracy, "best_mean_accuracy": self.best.mean}
        if train_accuracy is not None and self.best.mean > train_accuracy:
            mean = f"{self.best.mean:.4f}"
            return record, f"the pruned networks' mean accuracy {mean} exceeds the dense one's {train_accuracy:.4f}"
        return record, None

    def _settings(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("regularizer", "lambda_init", "eta")}
        own["half_window"] = self.best.half_window
        return own | dict(self.course) | ({"total_epochs": self._whole} if self._whole else {})

    def _method_state(self) -> dict[str, Any]:
        return {"best": self.best.state_dict()}

    def _load_method_state(self, state: dict[str, Any]) -> None:
        self.best.load_state_dict(state["best"], next(iter(self.weights.values())).device)
