"""When: how the strength of a penalty and the learning rate move over the epochs of a phase."""

import math


def growing(initial: float, growth: float, epoch: int) -> float:
    """initial * growth^epoch: the strength in this epoch of a phase, epochs counted from 0."""
    return initial * growth**epoch


def steps_at_half_and_three_quarters(epoch: int, epochs: int, factor: float = 0.1) -> float:
    """The learning rate's factor: 1, `factor` from half of the epochs on, `factor` squared from three quarters on."""
    return factor ** ((2 * epoch >= epochs) + (4 * epoch >= 3 * epochs)) if epoch > 0 else 1.0


def half_cosine(epoch: int, epochs: int) -> float:
    """(1 + cos(pi epoch / epochs)) / 2: the factor of an epoch counted from 0, from 1 down to 0 after the last one."""
    return (1 + math.cos(math.pi * min(epoch / epochs, 1))) / 2 if epochs > 0 else 1.0
