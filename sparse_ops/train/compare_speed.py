"""Speeds of one comparison on one scale: the dense network is of the same architecture everywhere, so is its time."""

import statistics
from collections.abc import Mapping
from typing import Any

TOLERANCE = 0.25  # share by which a dense time may differ from the median of its call


def disagreeing(speeds: Mapping[str, dict[str, Any]]) -> list[str]:
    """Keys of the findings whose own dense time is off the median of all of them: something else ran beside."""
    own = {key: speed["dense_ms"] for key, speed in speeds.items()}
    return [key for key, ms in own.items() if abs(ms / statistics.median(own.values()) - 1) > TOLERANCE]


def settled(speeds: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The findings of one call with the median dense time for all.

    dense_ms: the median. dense_ms_own: what was timed in turn with the sparse network. dense_ms_spread: the least and
    the most of the call. steady: False where dense_ms_own disagrees. speedup: dense_ms / sparse_ms.
    """
    times = [speed["dense_ms"] for speed in speeds.values()]
    unsteady = disagreeing(speeds)
    return {
        key: speed
        | {
            "dense_ms": (median := statistics.median(times)),
            "dense_ms_own": speed["dense_ms"],
            "dense_ms_spread": [min(times), max(times)],
            "steady": key not in unsteady,
            "speedup": median / speed["sparse_ms"],
        }
        for key, speed in speeds.items()
    }
