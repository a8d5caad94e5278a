"""GReg-1 and GReg-2: an L2 penalty that grows on the weights to be pruned until nothing is left of them.

Wang, Qin, Zhang, Fu: Neural Pruning via Growing Regularization, ICLR 2021, arXiv 2012.09243; for single weights.
"""

import warnings
from dataclasses import asdict
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import nn

from sparse_ops.masks import PackedMask
from sparse_ops.methods import collapse
from sparse_ops.methods.arguments import either, epochs, positive
from sparse_ops.methods.budget import LayerRatios, Sparsity
from sparse_ops.methods.growing_penalty import GrowingPenalty, kept_strengths, refuse_decoupled_decay
from sparse_ops.methods.growth import Growth
from sparse_ops.methods.options import Options
from sparse_ops.methods.schedules import phase_steps, steps_at_half_and_three_quarters
from sparse_ops.methods.updater import Evaluate, Sparsifier
from sparse_ops.optim.hooks import reset_state


class GReg(Sparsifier):
    """Growing regularisation, of a trained network.

    pretrain: `pretrain_epochs` dense epochs; 0 needs pretrained=True. regularize: with a cleared optimiser and the
    constant learning rate `regularize_lr`, each step adds lambda * w to the gradient, and lambda grows before the first
    step and after every `update_every` steps. GReg-1 chooses the weights to be pruned when the phase begins, by
    magnitude, and lambda grows by `d_lambda` on them alone. GReg-2 lets lambda grow by `d_pick` on all weights until it
    is at least `tau_pick`, and chooses then; from the next growth on that of the chosen ones goes on by `d_lambda`, and
    the kept ones have a negative constant. When lambda exceeds `tau` it stays, the step that follows and
    `stabilize_steps` more are taken, and the epoch in which these end is the phase's last, as is the epoch
    `max_regularize_epochs`. finetune: the chosen weights are pruned, the optimiser is cleared; learning rate
    `finetune_lr`, times 0.1 at half and at three quarters of `finetune_epochs`.

    variant: 1 or 2. kept: "paper", minus the weight decay of the weight's parameter group, or "code", -1e-4;
    "paper" is refused with decoupled decay, which no gradient can take back.
    total_steps: the optimiser steps of the whole run, 0 where they are not known; with it a phase that is too short is
    an error here instead of a warning after its first epoch, and the run's length is known. fit: scale the growth to
    max_regularize_epochs, see `Growth.fitted`; needs total_steps. Learning rates are those of the first parameter
    group, the others keep their proportion. scope: sparsity is that of each layer; with count="ceil" a layer of n
    weights loses min(ceil(sparsity n), n - 1), as the authors count. The other arguments are those of `Options`.
    """

    name = "greg1"
    _budget_type = LayerRatios
    defaults: ClassVar[Options] = {**Sparsifier.defaults, "scope": "uniform"}
    works_in_steps = True
    own_variant: ClassVar[Literal[1, 2]] = 1

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: Sparsity,
        pretrain_epochs: int = 0,
        max_regularize_epochs: int = 310,
        finetune_epochs: int = 120,
        *,
        pretrained: bool = False,
        variant: Literal[1, 2] | None = None,
        total_steps: int = 0,
        fit: bool = False,
        update_every: int = 10,
        stabilize_steps: int = 10000,
        d_lambda: float = 1e-4,
        tau: float = 1.0,
        d_pick: float = 1e-5,
        tau_pick: float = 1e-2,
        kept: Literal["paper", "code"] = "paper",
        regularize_lr: float = 1e-3,
        finetune_lr: float = 1e-2,
        **options: Unpack[Options],
    ) -> None:
        lengths = [pretrain_epochs, max_regularize_epochs, finetune_epochs]
        names = ("pretrain_epochs", "max_regularize_epochs", "finetune_epochs")
        epochs(
            "GReg", **dict(zip(names, lengths, strict=True)), update_every=update_every, stabilize_steps=stabilize_steps
        )
        self.variant = self.own_variant if variant is None else variant
        either("GReg", "variant", self.variant, (1, 2))
        self.name = f"greg{self.variant}"
        if pretrain_epochs == 0 and not pretrained:
            raise ValueError(
                "GReg: it prunes a trained network: give pretrained=True if this one is, or train it here first, for "
                f"pretrain_epochs (now {pretrain_epochs})"
            )
        positive("GReg", update_every=update_every, d_lambda=d_lambda, tau=tau, d_pick=d_pick, tau_pick=tau_pick)
        positive("GReg", regularize_lr=regularize_lr, finetune_lr=finetune_lr)
        either("GReg", "kept", kept, ("paper", "code"))
        if self.variant == 2 and kept == "paper":
            refuse_decoupled_decay(optimizer)
        self.kept, self.rates = kept, {"regularize": regularize_lr, "finetune": finetune_lr}
        picking = (d_pick, tau_pick) if self.variant == 2 else ()
        self.growth = Growth(update_every, stabilize_steps, d_lambda, tau, *picking)
        if fit and not total_steps:
            raise ValueError("GReg: fit needs total_steps, the number of optimiser steps in the whole run")
        if total_steps:
            steps = phase_steps("GReg", total_steps, lengths)[1]
            self.growth, lengths[1] = self.growth.within(steps, max_regularize_epochs, fit)
        self._length_known = total_steps > 0
        course = list(zip(("pretrain", "regularize", "finetune"), lengths, strict=True))
        super().__init__(model, optimizer, sparsity, course, **options)
        tracked = self.budget.tracked(self.weights)
        self._penalty = GrowingPenalty(self.sweep, self.growth, tracked, self._chosen, self._kept_strengths)
        self._start()

    @classmethod
    def for_epochs(cls, epochs: int) -> dict[str, int]:
        """A third of the epochs dense and a fifth fine-tuning, as on CIFAR-10, the rest with the penalty, fitted."""
        pretrain, finetune = min(epochs, max(1, epochs // 3)), epochs // 5
        lengths = {"pretrain_epochs": pretrain, "max_regularize_epochs": epochs - pretrain - finetune}
        return lengths | {"finetune_epochs": finetune, "fit": True}

    @property
    def lr_factor(self) -> float:
        """What the method multiplies the initial learning rate with in the coming epoch.

        While training dense and while fine-tuning times 0.1 at half and at three quarters of the phase.
        """
        constant = self.phase not in ("pretrain", "finetune")
        steps = 1.0 if constant else steps_at_half_and_three_quarters(self.phase_epoch, self.phase_epochs)
        rate, first = self.rates.get(self.phase), self._learning_rates.base[0]
        return steps if rate is None or first == 0 else steps * rate / first

    @classmethod
    def lr_rule(cls) -> str:
        """What `lr_factor` does over a run, in a few words for a reader of a comparison."""
        return (
            "times 0.1 at half and at three quarters of the dense phase, then regularize_lr, then finetune_lr, times "
            "0.1 at half and at three quarters"
        )

    def _enter(self, phase: str) -> None:
        if phase == "regularize":
            reset_state(self.optimizer)
            self._penalty.begin()
        elif phase == "finetune":
            self._prune(self._penalty.end())

    def _chosen(self) -> dict[str, PackedMask]:
        masks = self.budget.masks(self.weights)
        if self.strict:
            collapse.guard(self._title, masks, strict=True)
        return masks

    def _kept_strengths(self) -> list[float]:
        kind = self.kept if self.variant == 2 else "free"
        return kept_strengths(kind, self.optimizer, list(self.weights.values()))

    def _after_step(self) -> None:
        if self.phase == "regularize":
            self._penalty.after_step()

    def _judge(self, evaluate: Evaluate | None, train_accuracy: float | None) -> tuple[dict[str, Any], str | None]:
        if self.phase != "regularize":
            return {}, None
        growth, taken, left = self.growth, self._penalty.taken, self._penalty.magnitude_left(self.weights)
        record = {} if left is None else {"magnitude_left": left}
        reason = None
        if self._penalty.over():
            reason = f"lambda has exceeded tau = {growth.tau:g}, and {growth.stabilize_steps} steps have followed"
        elif self.phase_epoch + 1 == self.phase_epochs:
            reached = f"with lambda at {self._penalty.strength:g} of {growth.tau:g}"
            reason = f"its {self.phase_epochs} epochs are over, {reached}"
        if reason is not None and left is not None:
            reason += f"; the weights to be pruned hold {left:.2g} of all magnitude"
        if self.phase_epoch == 0 and not self._length_known and taken * self.phase_epochs < growth.grown_after():
            warnings.warn(
                f"GReg: lambda exceeds tau = {growth.tau:g} after {growth.grown_after():,} steps, but with {taken} "
                f"steps an epoch the {self.phase_epochs} max_regularize_epochs have {taken * self.phase_epochs:,}",
                stacklevel=3,
            )
        return record, reason

    def _settings(self) -> dict[str, Any]:
        own: dict[str, Any] = {"variant": self.variant, "kept": self.kept}
        if self.lr == "method":  # the user's learning rate knows no phases
            own |= {f"{name}_lr": rate for name, rate in self.rates.items()}
        return dict(self.course) | asdict(self.growth) | own

    def _method_state(self) -> dict[str, Any]:
        return self._penalty.state_dict()

    def _load_method_state(self, state: dict[str, Any]) -> None:
        self._penalty.load_state_dict(state)


class GReg2(GReg):
    """GReg with variant=2: which weights are pruned is chosen by how they answer to a growing penalty."""

    name = "greg2"
    own_variant = 2
