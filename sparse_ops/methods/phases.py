"""Phases: where a run is in its course, and the factor of the learning rate that follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sparse_ops.methods.schedules import half_cosine, steps_at_half_and_three_quarters

FINISHED = "finished"


@dataclass(frozen=True)
class PhaseChange:
    """A phase has ended. `epoch` counts the epochs that have ended so far."""

    before: str
    after: str
    epoch: int
    reason: str


class Phases:
    """A course of phases, each with a name and the most epochs that it takes.

    epoch: the epochs that have ended; phase_epoch: those of them in the present phase.
    """

    one_schedule: ClassVar[bool] = False  # one learning rate schedule over the whole run, whatever the phases

    def __init__(self, course: Sequence[tuple[str, int]]) -> None:
        self.course = tuple(course)
        self.epoch = self.phase_epoch = 0
        self._phase = 0

    @property
    def phases(self) -> tuple[str, ...]:
        """The names of the phases in their order; a name may come more than once."""
        return tuple(name for name, _ in self.course)

    @property
    def phase(self) -> str:
        """The phase of the coming epoch, or "finished"."""
        return (*self.phases, FINISHED)[self._phase]

    @property
    def phase_epochs(self) -> int:
        """The most epochs of the present phase; 0 when all are over."""
        return 0 if self.finished else self.course[self._phase][1]

    @property
    def total_epochs(self) -> int:
        """The most epochs of all phases together."""
        return sum(length for _, length in self.course)

    @property
    def finished(self) -> bool:
        """True when all phases are over and `finalize` may be called."""
        return self.phase == FINISHED

    @property
    def lr_factor(self) -> float:
        """What the method multiplies the initial learning rate with in the coming epoch.

        Methods with one schedule: half a cosine from 1 to 0 over all epochs. The others: 1, in a phase "finetune" 0.1
        from half and 0.01 from three quarters of it on.
        """
        if self.one_schedule:
            return half_cosine(self.epoch, self.total_epochs)
        fine = self.phase == "finetune"
        return steps_at_half_and_three_quarters(self.phase_epoch, self.phase_epochs) if fine else 1.0

    @classmethod
    def lr_rule(cls) -> str:
        """What `lr_factor` does over a run, in a few words for a reader of a comparison."""
        if cls.one_schedule:
            return "half a cosine to 0 over the run"
        return "constant, in fine-tuning times 0.1 at half and at three quarters"
