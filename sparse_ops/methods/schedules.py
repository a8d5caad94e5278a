"""When: how strengths, sparsities and learning rates move over a phase, and how phases share the epochs of a run."""

import itertools
import math
from collections.abc import Sequence


def growing(initial: float, growth: float, epoch: int) -> float:
    """initial * growth^epoch: the strength in this epoch of a phase, epochs counted from 0."""
    return initial * growth**epoch


def steps_at_half_and_three_quarters(epoch: int, epochs: int, factor: float = 0.1) -> float:
    """The learning rate's factor: 1, `factor` from half of the epochs on, `factor` squared from three quarters on."""
    return factor ** ((2 * epoch >= epochs) + (4 * epoch >= 3 * epochs)) if epoch > 0 else 1.0


def half_cosine(epoch: int, epochs: int) -> float:
    """(1 + cos(pi epoch / epochs)) / 2: the factor of an epoch counted from 0, from 1 down to 0 after the last one."""
    return (1 + math.cos(math.pi * min(epoch / epochs, 1))) / 2 if epochs > 0 else 1.0


def cubic(initial: float, final: float, share: float) -> float:
    """final + (initial - final) (1 - share)^3: the sparsity at a share of a pruning phase (Zhu, Gupta 2017)."""
    return final + (initial - final) * (1 - share) ** 3


def phase_steps(method: str, total_steps: int, lengths: Sequence[int]) -> list[int]:
    """The optimiser steps of each phase of a run, from the phases' epochs; each epoch has at least one.

    TypeError or ValueError, naming the method, where total_steps is not an integer or has less than a step an epoch.
    """
    if isinstance(total_steps, bool) or not isinstance(total_steps, int):
        raise TypeError(f"{method}: total_steps is {total_steps!r}, expected an integer")
    total = sum(lengths)
    if total_steps < total:
        raise ValueError(f"{method}: total_steps is {total_steps}, less than one in each of the {total} epochs")
    ends = [total_steps * sum(lengths[: i + 1]) // max(1, total) for i in range(len(lengths))]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def alternating(epochs: int, compressed: int, decompressed: int) -> list[int]:
    """The lengths of phases sparse, dense, ..., sparse that fill `epochs`, 0 or `compressed` of them at least.

    They are `compressed` and `decompressed` where a number of pairs and one more fits, else all scaled alike by what
    fits best, with their ends rounded to the nearest epoch; none is empty.
    """
    if epochs == 0:
        return []
    pair = compressed + decompressed
    pairs = (epochs - compressed) // pair
    filled = compressed + pairs * pair
    more = filled + pair
    if more - epochs < epochs - filled and min(compressed, decompressed) * epochs >= more:
        pairs, filled = pairs + 1, more
    turns = [(compressed, decompressed)[i % 2] for i in range(2 * pairs + 1)]
    ends = [rounded(end * epochs, filled) for end in itertools.accumulate(turns)]
    return [end - begin for begin, end in itertools.pairwise([0, *ends])]


def rounded(a: int, b: int) -> int:
    """a / b to the nearest integer, halves up."""
    return (2 * a + b) // (2 * b)
