"""Controller: steers the strength of what makes a network sparse so that the measured sparsity follows a curve."""

import math
from typing import Any

from sparse_ops.methods.schedules import cubic

ACTIONS = 500  # measurements in a run
REACHED = 0.7  # the share of the run after which the target's curve is flat
PROPORTIONAL, INTEGRAL = 8.0, 0.2


class Controller:
    """strength = initial * exp(8 e + 0.2 * the sum of all e so far), the sum and the whole within +-reach.

    e = log(density now / density wanted), as the density is what matters at high sparsity. The wanted sparsity rises
    along a cubic from what is measured first to the target at 70 % of the run, and stays there. There are 500
    measurements in a run, or one a step where that has fewer.
    """

    def __init__(self, target: float, initial: float, total_steps: int, reach: float) -> None:
        self.target, self.initial, self.total_steps, self.reach = target, initial, total_steps, reach
        self.every = max(1, total_steps // ACTIONS)
        self.first: float | None = None
        self.integral = 0.0
        self.strength = initial

    def due(self, step: int) -> bool:
        """Whether the sparsity is to be measured after this many steps."""
        return step % self.every == 0

    def wanted(self, step: int) -> float:
        """The sparsity that the curve has after this many steps."""
        share = min(1.0, step / (REACHED * self.total_steps))
        return cubic(self.first or 0.0, self.target, share)

    def steer(self, step: int, sparsity: float, resolution: float) -> float:
        """The strength from here on. resolution: a density that no measurement can be below, one weight of all."""
        if self.first is None:
            self.first = min(sparsity, self.target)
        density, wanted = max(1 - sparsity, resolution), max(1 - self.wanted(step), resolution)
        error = math.log(density / wanted)
        self.integral = min(max(self.integral + INTEGRAL * error, -self.reach), self.reach)
        exponent = min(max(PROPORTIONAL * error + self.integral, -self.reach), self.reach)
        self.strength = self.initial * math.exp(exponent)
        return self.strength

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return {"first": self.first, "integral": self.integral, "strength": self.strength}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back `state_dict`."""
        self.first, self.integral, self.strength = state["first"], state["integral"], state["strength"]
