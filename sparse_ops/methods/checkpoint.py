"""What a sparsifier's checkpoint must have in common with the sparsifier that goes on from it."""

from collections.abc import Mapping, Sequence
from typing import Any

PARTS = ("method", "phase", "phase_index", "budget", "settings", "sweep", "state")


def check(
    title: str, state: Mapping[str, Any], method: str, settings: Mapping[str, Any], phases: Sequence[str]
) -> None:
    """ValueError, naming what differs and both values, for the checkpoint of something else, and one without masks.

    settings: budget and settings of the sparsifier; phases: the names of all, the end among them.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"{title}: the checkpoint is of type {type(state).__name__}, expected what state_dict() gave")
    missing = [key for key in PARTS if key not in state]
    if missing:
        raise ValueError(f"{title}: this is not a sparsifier's checkpoint, it lacks {', '.join(missing)}")
    if state["method"] != method:
        raise ValueError(f"{title}: the checkpoint is of the method {state['method']!r}, not {method!r}")
    if "masks" not in state or "masks" not in state["sweep"]:
        raise ValueError(
            f"{title}: the checkpoint has no masks; resuming without them would let pruned weights grow back"
        )
    other = state["budget"] | state["settings"]
    for key in {**settings, **other}:
        if other.get(key) != settings.get(key):
            raise ValueError(f"{title}: the checkpoint has {key} {other.get(key)}, here it is {settings.get(key)}")
    index = state["phase_index"]
    if not (0 <= index < len(phases) and phases[index] == state["phase"]):
        raise ValueError(
            f"{title}: the checkpoint is in phase {index + 1}, {state['phase']!r}, of another course than "
            f"{', '.join(phases[:-1])}"
        )
