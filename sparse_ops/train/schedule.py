"""The learning rate of a recipe's [schedule]: one curve over all steps of a run, whatever the method's phases."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

KINDS = ("method", "cosine", "linear", "steps", "constant")
STEPS = ("update_every", "stabilize_steps")  # lengths in steps, of GReg
SHORTENED = {"delta_t": 2}  # steps between two changes of RigL's mask, and the least; a longer run has more changes


@dataclass
class Schedule:
    """[schedule]: `kind` "method" leaves the learning rate to the method, the others replace the method's own.

    All begin with `warmup_epochs` in which it rises linearly to optimizer.lr. Then "cosine" (half a period) and
    "linear" fall to optimizer.lr times `final` at the end of the run; "steps" multiplies by `gamma` at each of
    `milestones` (epochs since the beginning of the run).
    """

    kind: str = "method"
    warmup_epochs: int = 0
    final: float = 0.0
    milestones: list = field(default_factory=list)
    gamma: float = 0.1

    def check(self) -> None:
        """ValueError or TypeError naming the key and its value."""
        for epoch in self.milestones:
            if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1:
                raise TypeError(f"schedule.milestones is {self.milestones}, expected integers above 0, in epochs")
        if self.kind == "method" and self.warmup_epochs:
            raise ValueError(
                f"schedule.warmup_epochs is {self.warmup_epochs}, which needs a schedule.kind other than 'method'"
            )
        if (self.kind == "steps") != bool(self.milestones):
            raise ValueError(
                f"schedule.milestones is {self.milestones} and schedule.kind {self.kind!r}; 'steps' needs milestones, "
                "the others take none"
            )

    def check_length(self, epochs: int) -> None:
        """ValueError where a run of so many epochs is too short."""
        if self.kind != "method" and self.warmup_epochs >= epochs:
            raise ValueError(f"schedule.warmup_epochs is {self.warmup_epochs}, but the whole run has {epochs} epochs")
        late = [epoch for epoch in self.milestones if epoch >= epochs]
        if late:
            raise ValueError(f"schedule.milestones has {late[0]}, but the run ends after {epochs} epochs")

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """What optimizer.lr is multiplied with in optimiser step `step`, counted from 0."""
        warmup, total = self.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
        if step < warmup:
            return (step + 1) / warmup
        if self.kind == "steps":
            return self.gamma ** sum(step >= epoch * steps_per_epoch for epoch in self.milestones)
        if self.kind == "constant":
            return 1.0
        done = min((step - warmup) / (total - warmup), 1.0)
        falls = (1 + math.cos(math.pi * done)) / 2 if self.kind == "cosine" else 1 - done
        return self.final + (1 - self.final) * falls


@dataclass(frozen=True)
class LearningRate:
    """A schedule over a run of known length."""

    schedule: Schedule
    steps_per_epoch: int
    epochs: int

    def set(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Write the learning rate of the coming step into every group, those too that a method has added."""
        factor = self.schedule.factor(step, self.steps_per_epoch, self.epochs)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def whole(schedule: Schedule, steps_per_epoch: int, epochs: int) -> LearningRate | None:
    """The learning rate of a run; None where the method sets it."""
    return None if schedule.kind == "method" else LearningRate(schedule, steps_per_epoch, epochs)


def is_length(key: str) -> bool:
    """Whether a key of [method] or [schedule] says how long something takes, which a budget multiplies."""
    return key.endswith("epochs") or key in STEPS or key in SHORTENED or key == "milestones"


def scaled_lengths(table: dict[str, Any], budget: float) -> dict[str, Any]:
    """The table with every length of a run times budget (integers, or a list of them, under keys of `is_length`).

    To the nearest integer, halves up; a length above 0 stays at least 1, one of SHORTENED what it says there at least,
    and as it is for a budget above 1.
    """

    def longer(epochs: int, least: int = 1) -> int:
        return max(least, math.floor(epochs * budget + 0.5)) if epochs > 0 else epochs

    result = dict(table)
    for key, value in table.items():
        if is_length(key) and isinstance(value, list):
            result[key] = [longer(epoch) for epoch in value]
        elif is_length(key) and isinstance(value, int) and not isinstance(value, bool):
            if key not in SHORTENED:
                result[key] = longer(value)
            elif budget < 1:
                result[key] = min(value, longer(value, SHORTENED[key]))
    return result
