"""Sparsifier: the contract of every method, from the first epoch over masks and resuming to the way out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from sparse_ops import planning
from sparse_ops.masks import PackedMask
from sparse_ops.methods import checkpoint, collapse
from sparse_ops.methods.arguments import either, flags, fraction
from sparse_ops.methods.budget import Budget, Sparsity
from sparse_ops.methods.learning_rates import LearningRates
from sparse_ops.methods.options import Options, TakesOptions, refuse_unknown
from sparse_ops.methods.phases import FINISHED, PhaseChange, Phases
from sparse_ops.methods.report import Report
from sparse_ops.optim.hooks import attach, check_free, reset_state
from sparse_ops.optim.snapshot import apply_masks
from sparse_ops.optim.sweep import StepHooks, Sweep
from sparse_ops.prunable import select

Evaluate = Callable[[nn.Module], float]


class Sparsifier(Phases, TakesOptions, ABC):
    """Takes a dense network to a sparse one while the user's own loop trains it.

    Call `end_epoch` after each epoch until `finished`, then `finalize`. A subclass gives its course, the phases and the
    most epochs of each, hands its `**options` on, defines `_enter` and, where a phase may end early, `_judge`; one that
    acts between two epochs defines `_before_step` or `_after_step`. It sets penalties, tracking and masks of `sweep`,
    and touches no weight.

    sparsity: share of zeros among the prunable weights, in [0, 1), or a mapping from name patterns to such shares, with
    which a class's own default of scope has no meaning. The others are `sparse_ops.methods.Options`.

    Weights may be changed between steps (in place, by load_state_dict, by an optimiser of their own): torch's version
    counters show it, and threshold and penalty follow. They do not show what is written through `.data`: call
    `refresh` after that.
    """

    name: str  # of a class, but for a class of several variants
    _budget_type: ClassVar[type[Budget]] = Budget
    works_in_steps: ClassVar[bool] = False  # `_before_step` and `_after_step` have something to do

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: Sparsity,
        course: Sequence[tuple[str, int]],
        **options: Unpack[Options],
    ) -> None:
        refuse_unknown(self._title, options, list(self.defaults))
        chosen: Options = {**self.defaults, **options}
        if isinstance(sparsity, Mapping) and chosen["scope"] == self.defaults["scope"]:
            chosen["scope"] = "global"
        if not isinstance(model, nn.Module):
            raise TypeError(f"{self._title}: the model is {type(model).__name__}, expected a torch.nn.Module")
        either(self._title, "lr", chosen["lr"], ("method", "user"))
        flags(self._title, strict=chosen["strict"], check=chosen["check"])
        check_free(optimizer)
        self.model, self.optimizer, self.lr, self.strict = model, optimizer, chosen["lr"], chosen["strict"]
        Phases.__init__(self, course)
        self.budget = self._budget_type(sparsity, chosen["scope"], chosen["count"], chosen["min_nonzeros"])
        self.selection = select(model, chosen["prunable"], chosen["exclude"])
        self.weights: dict[str, nn.Parameter] = self.selection.parameters
        self.budget.check(self.weights)
        for name, weight in self.weights.items():
            bad = weight.detach()[~torch.isfinite(weight.detach())]
            if bad.numel():
                raise ValueError(f"{self._title}: {name} holds {bad.numel()} non-finite values ({bad[0].item()})")
        self.sweep = Sweep(self.weights, self.budget.scopes(self.weights), check=chosen["check"])
        if self.works_in_steps:
            self.sweep.hooks = StepHooks(self._before_step, self._after_step)
        self._attachment = attach(optimizer, self.sweep)
        self._learning_rates = LearningRates(optimizer)
        self._history: list[dict[str, Any]] = []
        self._kept_metrics: tuple[int, dict[str, float]] | None = None  # steps so far, the scalars of the last of them
        self._dead_layers: list[str] = []  # the guard has warned of them
        self._final = False

    def _start(self) -> None:
        """Enter the first phase, and those after it while they are empty; the last line of a constructor."""
        try:
            self._enter(self.phase)
            self._advance_while_over()
            self._set_lr(begins=False)
        except Exception:
            self.detach()
            raise

    # What a method defines

    @classmethod
    @abstractmethod
    def for_epochs(cls, epochs: int) -> dict[str, int]:
        """The arguments with which a run takes this many epochs, divided as the method is meant to be."""

    @abstractmethod
    def _enter(self, phase: str) -> None:
        """Set penalty, tracking and masks of a phase that begins."""

    def _judge(self, evaluate: Evaluate | None, train_accuracy: float | None) -> tuple[dict[str, Any], str | None]:
        """At the end of an epoch: what goes into its record, and why the phase ends early (None: it does not)."""
        return {}, None

    def _before_step(self) -> bool:
        """Before an optimiser step that is not skipped, with the gradients as they are; False leaves the weights alone.

        `sweep.steps` counts the steps before this one, those too in which the weights were left alone.
        """
        return True

    def _after_step(self) -> None:
        """After such a step; `sweep.steps` counts it."""
        return

    def _method_state(self) -> dict[str, Any]:
        """What the method itself has to remember; tensors, numbers, strings, lists and dicts."""
        return {}

    def _load_method_state(self, state: dict[str, Any]) -> None:
        """Take back `_method_state`."""
        return

    # The contract

    def end_epoch(self, evaluate: Evaluate | None = None, train_accuracy: float | None = None) -> PhaseChange | None:
        """End an epoch; the PhaseChange when a phase ended with it.

        evaluate: model -> accuracy in [0, 1] on training or validation data (never test data); called with the model
        pruned and in eval mode, where the method needs it. train_accuracy: the epoch's own training accuracy, [0, 1].
        """
        if self.finished:
            raise ValueError(f"{self._title}: all phases are over; call finalize()")
        if evaluate is not None and not callable(evaluate):
            raise TypeError(
                f"{self._title}: evaluate is {evaluate!r}, expected a function: model -> accuracy in [0, 1]"
            )
        train_accuracy = None if train_accuracy is None else fraction("train_accuracy", train_accuracy)
        before, lr_factor = self.phase, self.lr_factor if self.lr == "method" else None
        metrics = self._keep_metrics()
        record, reason = self._judge(evaluate, train_accuracy)
        self._history.append(
            {"epoch": self.epoch + 1, "phase": before, "lr_factor": lr_factor, "train_accuracy": train_accuracy}
            | {key: metrics[key] for key in ("lambda", "threshold", "hit_rate") if key in metrics}
            | record
        )
        self.epoch += 1
        self.phase_epoch += 1
        if reason is None and self.phase_epoch >= self.phase_epochs:
            reason = f"its {self.phase_epoch} epochs are over"
        if reason is not None:
            self._advance()
            self._advance_while_over()
        self._set_lr(begins=reason is not None)
        return None if reason is None else PhaseChange(before, self.phase, self.epoch, reason)

    @property
    def masks(self) -> dict[str, PackedMask]:
        """Name -> mask in force; empty while the network is dense."""
        return self.sweep.masks

    def apply_masks_(self, other_model: nn.Module) -> None:
        """Zero what the masks prune in a copy or an average (EMA) of the model."""
        apply_masks(other_model, self.masks)

    def add_penalty_grad_(self, grad_scale: Tensor | None = None) -> None:
        """Add the penalty to .grad now (after the last backward, before clipping), and not again in the coming step.

        Under GradScaler call scaler.unscale_(optimizer) first, as for clipping, or give the scale as grad_scale.
        """
        self.sweep.add_penalty_grad_(grad_scale)

    def refresh(self) -> None:
        """Exact threshold and coefficients, and the masks, for weights that were changed through `.data`."""
        self.sweep.refresh()

    def metrics(self) -> dict[str, float]:
        """Scalars for any logger: lambda, threshold, hit_rate and others of the last step; sparsity of the masks.

        Those of a step hold until the next one, also where an epoch or a phase has ended since; there are none before
        the first.
        """
        if self.sweep.steps == 0:
            values: dict[str, float] = {}
        elif self._kept_metrics is not None and self._kept_metrics[0] == self.sweep.steps:
            values = self._kept_metrics[1]
        else:
            values = self.sweep.metrics()
            strength = values.pop("strength")
            if self.sweep.penalty != "none":
                values = {"lambda": strength} | values
        zeros = sum(mask.zeros for mask in self.masks.values())
        return values | {"sparsity": zeros / self.selection.numel}

    def report(self) -> Report:
        """The course of the epochs, from 1, and the sparsity of each layer; print it, or call to_dict().

        A row's lr_factor is None where lr="user", since nothing was multiplied with it.
        """
        settings = asdict(self.budget) | self._settings()
        in_use = self._effective()
        weights = tuple(replace(w, parameter=nn.Parameter(in_use[w.name], False)) for w in self.selection.weights)
        layers = planning.sparsity_report(self.model, replace(self.selection, weights=weights))
        return Report(self.name, settings, [dict(row) for row in self._history], layers)

    def _effective(self) -> Mapping[str, Tensor]:
        """Name -> the weight that the model computes with: its parameter, unless a method reparametrizes it."""
        return self.weights

    def _settings(self) -> dict[str, Any]:
        """The method's own arguments, constant in a run: for the report, and a checkpoint with others is refused."""
        return {}

    def finalize(self) -> nn.Module:
        """Take the hooks off and return the model, with exactly the budget's zeros in its weights.

        RigL and SET may leave more: a weight that grew and got no gradient since is still 0, though its mask keeps it.
        Before `finished` it prunes at once what the remaining phases would have pruned. The optimiser is the user's
        again; a new sparsifier may start on it.
        """
        if self._final:
            return self.model
        while not self.finished:
            self._advance()
        self._write_zeros()
        self.detach()
        self._final = True
        return self.model

    def _write_zeros(self) -> None:
        """The zeros into the weights, and the proof that they are the budget's."""
        self.sweep.set_masks(self.masks)
        expected = self.budget.zeros(self.weights)
        zeros = sum(mask.zeros for mask in self.masks.values())
        if expected is not None and zeros != expected:
            raise AssertionError(f"{self._title}: the masks hold {zeros} zeros, the budget is {expected}")
        for name, mask in self.masks.items():
            stray = int(self.weights[name].detach()[~mask.to_dense()].count_nonzero())
            if stray:
                raise AssertionError(f"{self._title}: {stray} pruned weights of {name} are not zero")

    def detach(self) -> None:
        """Take the hooks off without pruning: training goes on as if there had been no sparsifier."""
        self._attachment.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything to continue bit for bit, beside the states of model and optimiser; plain data and tensors."""
        return {
            "method": self.name,
            "phase": self.phase,
            "phase_index": self._phase,
            "epoch": self.epoch,
            "phase_epoch": self.phase_epoch,
            "step": self.sweep.steps,
            "budget": _plain(asdict(self.budget)),
            "settings": self._all_settings(),
            "base_lrs": list(self._learning_rates.base),
            "lr_factor": self._learning_rates.factor,
            "history": [dict(row) for row in self._history],
            "metrics": None if self._kept_metrics is None else [self._kept_metrics[0], dict(self._kept_metrics[1])],
            "sweep": self.sweep.state_dict(),
            "masks": self.sweep.state_dict()["masks"],
            "state": self._method_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken, in a sparsifier made with the same arguments.

        Load the model's and the optimiser's states too, in any order. ValueError for the checkpoint of another method,
        budget, course or model, of other settings, and for one without its masks.
        """
        own = _plain(asdict(self.budget)) | self._all_settings()
        checkpoint.check(self._title, state, self.name, own, (*self.phases, FINISHED))
        self.sweep.load_state_dict({**state["sweep"], "masks": state["masks"]})
        self._phase = state["phase_index"]
        self.epoch, self.phase_epoch = state["epoch"], state["phase_epoch"]
        self._learning_rates.base, self._learning_rates.factor = list(state["base_lrs"]), state["lr_factor"]
        self._history = [dict(row) for row in state["history"]]
        kept = state.get("metrics")
        self._kept_metrics = None if kept is None else (kept[0], dict(kept[1]))
        self._load_method_state(state["state"])

    # Inside

    def _all_settings(self) -> dict[str, Any]:
        return self._settings() | {"course": ", ".join(f"{name} {length}" for name, length in self.course)}

    @property
    def _title(self) -> str:
        return type(self).__name__

    def _prune(self, masks: Mapping[str, PackedMask], *, reset: bool = True, last: bool = True) -> None:
        """Put masks into force, as a new optimiser would meet them: its state is cleared, or (reset=False) that of
        masked weights zeroed. last: no other pruning follows that may cost more outputs."""
        self._dead_layers = collapse.guard(self._title, masks, self.strict, self._dead_layers, last)
        self.sweep.set_masks(masks)
        if reset:
            reset_state(self.optimizer)
        else:
            self.sweep.mask_state(self.optimizer.state)

    def _keep_metrics(self) -> dict[str, float]:
        """The scalars of the last step, which a new phase or strength would overwrite before the next one."""
        metrics = self.metrics()
        if self.sweep.steps:
            self._kept_metrics = self.sweep.steps, {k: v for k, v in metrics.items() if k != "sparsity"}
        return metrics

    def _advance(self) -> None:
        self._keep_metrics()
        self._phase += 1
        self.phase_epoch = 0
        if not self.finished:
            self._enter(self.phase)

    def _advance_while_over(self) -> None:
        while not self.finished and self.phase_epochs == 0:
            self._advance()

    def _set_lr(self, begins: bool) -> None:
        self._learning_rates.know_groups()
        if self.lr == "method" and not self.finished:
            self._learning_rates.set(self.lr_factor, begins)


def _plain(budget: dict[str, Any]) -> dict[str, Any]:
    sparsity = budget["sparsity"]
    return budget | {"sparsity": dict(sparsity) if isinstance(sparsity, Mapping) else sparsity}
