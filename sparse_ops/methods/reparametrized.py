"""Reparametrized: what methods share that train thresholds beside the weights, and no masks."""

import warnings
from abc import abstractmethod
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from sparse_ops.masks import PackedMask
from sparse_ops.methods import collapse
from sparse_ops.methods.arguments import epochs
from sparse_ops.methods.budget import Sparsity
from sparse_ops.methods.controller import Controller
from sparse_ops.methods.options import SharedOptions
from sparse_ops.methods.schedules import phase_steps
from sparse_ops.methods.updater import Evaluate, Sparsifier
from sparse_ops.optim.reparametrize import Reparametrization, SoftThreshold, ThresholdGroup
from sparse_ops.optim.snapshot import apply_masks

REMEDY = "a lower sparsity or strength keeps layers alive, as does exclude="
TOLERANCE = 0.01  # of the sparsity that a controller steers, before a warning tells of it


class Reparametrized(Sparsifier):
    """One phase, "train", in which the weights in use are soft-thresholded functions of those that are trained.

    The model's Parameters stay the optimiser's, under `parametrizations.weight.original`; thresholds are new Parameters
    in a group of their own at the end of the optimiser's groups. `masks`, `metrics` and `report` tell of the weights in
    use as they are now, `finalize` writes these into the Parameters and takes parametrizations and group away, `detach`
    gives the trained weights back. A subclass makes the form of a weight and applies a strength: with a controller it
    is steered so that the measured sparsity reaches `sparsity`, else it is constant.
    """

    reach: ClassVar[float]  # how far from the first one a controller may take the strength, in powers of e
    one_schedule = True
    works_in_steps = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: Sparsity,
        train_epochs: int,
        *,
        strength: float,
        controller: bool,
        total_steps: int,
        lr_factor: float,
        **options: Unpack[SharedOptions],
    ) -> None:
        epochs(self._title, epochs=train_epochs)
        phase_steps(self._title, total_steps, [train_epochs])
        super().__init__(model, optimizer, sparsity, [("train", train_epochs)], **options)
        self.strength = self.initial_strength = strength
        self.total_steps, self.threshold_lr = total_steps, lr_factor
        self._masks_at_end: dict[str, PackedMask] | None = None
        self.forms = Reparametrization(model, self.weights, self._form)
        self.thresholds = ThresholdGroup(optimizer, self.forms.parameters, lr_factor)
        self._learning_rates.know_groups()
        target = (self.budget.zeros(self.weights) or 0) / self.selection.numel
        self.controller = Controller(target, strength, total_steps, self.reach) if controller else None
        self._apply(strength)
        self._start()

    @abstractmethod
    def _form(self, name: str, weight: nn.Parameter) -> SoftThreshold:
        """The parametrization of a weight, with the thresholds that it starts with."""

    def _apply(self, strength: float) -> None:
        """Make this the strength from the next step on."""
        self.strength = strength

    def _add_gradient(self, grad_scale: Tensor | None) -> None:
        """Add what drives the sparsity to the gradients, where it is a penalty."""
        return

    @classmethod
    def for_epochs(cls, epochs: int) -> dict[str, int]:
        """All of them; there is one phase."""
        return {"epochs": epochs}

    @property
    def masks(self) -> dict[str, PackedMask]:
        """Name -> where the weight in use is not zero; {} while there is no zero at all."""
        if self._masks_at_end is not None:
            return dict(self._masks_at_end)
        found = {name: y != 0 for name, y in self.forms.effective().items()}
        if all(bool(alive.all()) for alive in found.values()):
            return {}
        return {name: PackedMask.from_dense(alive) for name, alive in found.items()}

    def apply_masks_(self, other_model: nn.Module) -> None:
        """Zero what is zero here in a copy or an average (EMA) of the model, parametrized like it or plain.

        Of a parametrized copy these are the trained weights; its own thresholds then work on what is left, and it stays
        parametrized, so that an average takes further updates: `sparse_ops.methods.bake` makes it a plain network.
        """
        apply_masks(other_model, self.masks)

    def add_penalty_grad_(self, grad_scale: Tensor | None = None) -> None:
        """Add the penalty to .grad now (after the last backward, before clipping), and not again in the coming step."""
        if not self.sweep.added:
            self._add_gradient(grad_scale)
        super().add_penalty_grad_(grad_scale)

    def metrics(self) -> dict[str, float]:
        """Those of every method; lambda is the strength in force."""
        values = super().metrics()
        return {"lambda": self.strength} | values if self.sweep.steps else values

    def _effective(self) -> dict[str, Tensor]:
        return dict(self.weights) if self._masks_at_end is not None else self.forms.effective()

    def _enter(self, phase: str) -> None:
        return

    def _before_step(self) -> bool:
        if not self.sweep.added:
            self._add_gradient(getattr(self.optimizer, "grad_scale", None))
        return True

    def _after_step(self) -> None:
        if self.controller is not None and self.controller.due(self.sweep.steps):
            n = self.selection.numel
            self._apply(self.controller.steer(self.sweep.steps, self.forms.zeros() / n, 1 / n))

    def _judge(self, evaluate: Evaluate | None, train_accuracy: float | None) -> tuple[dict[str, Any], str | None]:
        masks = self.masks
        self._dead_layers = collapse.guard(self._title, masks, self.strict, self._dead_layers, False, REMEDY)
        return {"sparsity": sum(mask.zeros for mask in masks.values()) / self.selection.numel}, None

    def _write_zeros(self) -> None:
        masks = self.masks
        collapse.guard(self._title, masks, self.strict, self._dead_layers, remedy=REMEDY)
        self.forms.remove(keep=True)
        self._masks_at_end = masks
        if self.controller is not None:
            self._tell_where_missed(sum(mask.zeros for mask in masks.values()) / self.selection.numel)

    def _tell_where_missed(self, sparsity: float) -> None:
        assert self.controller is not None
        if abs(sparsity - self.controller.target) > TOLERANCE:
            wanted, initial = self.controller.target, self.controller.initial
            warnings.warn(
                f"{self._title}: {100 * sparsity:.2f} % of the weights are zero, {100 * wanted:.2f} % were wanted; the "
                f"controller ended at a strength of {self.strength:.3g}, begun with {initial:.3g}: train longer, or "
                "begin nearer",
                stacklevel=collapse.outside(),
            )

    def detach(self) -> None:
        """Take hooks, parametrizations and the thresholds' group off; before `finalize`, training goes on dense."""
        super().detach()
        self.forms.remove(keep=False)
        self.thresholds.remove()

    def _settings(self) -> dict[str, Any]:
        own = {"controller": self.controller is not None, "total_steps": self.total_steps}
        return dict(self.course) | own | {"threshold_lr": self.threshold_lr}

    def _method_state(self) -> dict[str, Any]:
        return {"strength": self.strength} | ({} if self.controller is None else self.controller.state_dict())

    def _load_method_state(self, state: dict[str, Any]) -> None:
        if self.controller is not None:
            self.controller.load_state_dict(state)
        self._apply(state["strength"])
