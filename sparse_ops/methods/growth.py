"""Growth: when GReg's penalty grows, by how much, and when it is done; in steps of the phase, before any is taken."""

import ctypes
import functools
import math
from dataclasses import dataclass, replace

MOST = 10**6  # growths; more take longer than any run, and float32 increments below 6e-8 of tau are lost


@dataclass(frozen=True)
class Growth:
    """Before step 0 and then before every `every`-th one, lambda grows; tau_pick is 0 where nothing is picked.

    Picking: lambda += d_pick until it is at least tau_pick. Then lambda += d_lambda until it exceeds tau. With it as it
    is the step that follows and `stabilize_steps` more are taken. Sums are float32, as the authors' tensors are: 1e-4
    added 10,000 times exceeds 1, and 1e-5 takes 1001 additions to reach 1e-2; with other rounding it would be 10,001
    and 1000. ValueError where an increment is less than a millionth of what it has to reach.
    """

    every: int
    stabilize_steps: int
    d_lambda: float
    tau: float
    d_pick: float = 0.0
    tau_pick: float = 0.0

    def __post_init__(self) -> None:
        for name, step, bound in (("d_pick", self.d_pick, "tau_pick"), ("d_lambda", self.d_lambda, "tau")):
            if getattr(self, bound) > MOST * step:
                raise ValueError(f"{name} is {step}: {bound} = {getattr(self, bound)} is more than a million of it")

    def picks(self, strength: float) -> bool:
        """Whether lambda still grows for all weights alike."""
        return strength < float32(self.tau_pick)

    def done(self, strength: float) -> bool:
        """Whether lambda has grown enough."""
        return not self.picks(strength) and strength > float32(self.tau)

    def after(self, strength: float) -> float:
        """Lambda after one growth."""
        return float32(strength + float32(self.d_pick if self.picks(strength) else self.d_lambda))

    @functools.cached_property
    def counts(self) -> tuple[int, int]:
        """How often lambda grows while picking, and after it."""
        strength, picking, growing = 0.0, 0, 0
        while self.picks(strength):
            strength, picking = self.after(strength), picking + 1
        while not self.done(strength):
            strength, growing = self.after(strength), growing + 1
        return picking, growing

    def grown_after(self) -> int:
        """Steps up to the last growth, the one that follows it included."""
        return (sum(self.counts) - 1) * self.every + 1

    def steps(self) -> int:
        """Steps from the first growth to the pruning."""
        return self.grown_after() + self.stabilize_steps

    def fitted(self, steps: int) -> "Growth":
        """The same growth in this many steps, longer or shorter.

        `every` and `stabilize_steps` are scaled by steps / self.steps() and rounded down, `every` to 1 at least; d_pick
        and d_lambda change by what that leaves over, such that picking keeps its share of the growths and the last
        growth is the last that fits; the steps that are left stabilise.
        """
        picking, growing = self.counts
        factor = steps / self.steps()
        every = max(1, math.floor(self.every * factor))
        room = (steps - 1 - math.floor(self.stabilize_steps * factor)) // every + 1  # growths
        picks = max(1, round(room * picking / (picking + growing))) if picking else 0
        if room < picks + (growing > 0):
            raise ValueError(f"max_regularize_epochs has {steps} steps, too few for the penalty to grow in")
        fitted = replace(self, every=every)
        if room != picking + growing:
            if picking:
                fitted = replace(fitted, d_pick=self.tau_pick / (picks - 0.5))  # half of it to spare: float32 rounds
            if growing:
                fitted = replace(fitted, d_lambda=(self.tau - fitted.picked()) / (room - picks - 0.5))
            while sum(fitted.counts) > room:
                more = 1 + 0.1 / room
                fitted = replace(fitted, d_pick=fitted.d_pick * more, d_lambda=fitted.d_lambda * more)
        return replace(fitted, stabilize_steps=steps - fitted.grown_after())

    def within(self, steps: int, epochs: int, fit: bool) -> "tuple[Growth, int]":
        """The growth, fitted or as it is, in a phase of so many steps and epochs, and the epochs that it takes of them.

        ValueError where it does not fit in.
        """
        if epochs == 0:
            return self, 0
        growth = self.fitted(steps) if fit else self
        if growth.steps() > steps:
            raise ValueError(
                f"GReg: max_regularize_epochs is {epochs}, which is {steps:,} steps, but lambda exceeds tau = "
                f"{growth.tau:g} only after {growth.grown_after():,} ({sum(growth.counts):,} growths, update_every = "
                f"{growth.every}), and stabilize_steps = {growth.stabilize_steps:,} follow; fit=True scales them"
            )
        return growth, math.ceil(growth.steps() * epochs / steps)

    def picked(self) -> float:
        """Lambda when picking ends."""
        strength = 0.0
        while self.picks(strength):
            strength = self.after(strength)
        return strength


def float32(value: float) -> float:
    """The nearest float32."""
    return ctypes.c_float(value).value
