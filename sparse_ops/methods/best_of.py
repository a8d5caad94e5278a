"""BestOf: the pruned networks of the last epochs, and the best of all epochs by their smoothed accuracy (ART)."""

from typing import Any

import torch

from sparse_ops.optim.snapshot import Snapshot


class BestOf:
    """A FIFO of the last 2 * half_window + 1 pruned networks with their accuracies.

    A new best is taken when the mean over the FIFO exceeds the accuracy of the best so far: the network in the middle
    of the full FIFO, the last one before it is full. The comparison is the authors': a mean over several epochs with
    the single accuracy of the best network's own epoch, so a lucky epoch in the middle raises the bar. `mean` is the
    mean with which the best was taken; the stop rule compares it with the dense accuracy.
    """

    def __init__(self, half_window: int) -> None:
        self.half_window = half_window
        self.forget()

    def forget(self) -> None:
        """Start anew, without any network."""
        self._window: list[tuple[Snapshot, float]] = []
        self.snapshot: Snapshot | None = None
        self.accuracy = self.mean = float("-inf")

    def add(self, snapshot: Snapshot, accuracy: float) -> None:
        """The pruned network of an epoch."""
        size = 2 * self.half_window + 1
        self._window = [*self._window, (snapshot, accuracy)][-size:]
        mean = sum(a for _, a in self._window) / len(self._window)
        if mean > self.accuracy:
            middle = self.half_window if len(self._window) == size else -1
            self.snapshot, self.accuracy = self._window[middle]
            self.mean = mean

    def state_dict(self) -> dict[str, Any]:
        """Each network once: the best is often one of the FIFO."""
        held = [snapshot for snapshot, _ in self._window]
        inside = next((i for i, snapshot in enumerate(held) if snapshot is self.snapshot), -1)
        outside = self.snapshot is not None and inside < 0
        return {
            "window": [(snapshot.state_dict(), accuracy) for snapshot, accuracy in self._window],
            "best": self.snapshot.state_dict() if outside and self.snapshot is not None else inside,
            "accuracy": self.accuracy,
            "mean": self.mean,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take back `state_dict`."""
        self._window = [(Snapshot.from_state(snapshot, device), accuracy) for snapshot, accuracy in state["window"]]
        best = state["best"]
        if isinstance(best, int):
            self.snapshot = self._window[best][0] if best >= 0 else None
        else:
            self.snapshot = Snapshot.from_state(best, device)
        self.accuracy, self.mean = state["accuracy"], state["mean"]
