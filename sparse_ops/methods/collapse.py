"""The guard against layer collapse: which layers, or outputs of a layer, keep no weight under a mask."""

import inspect
import warnings
from collections.abc import Collection, Mapping

from sparse_ops.masks import PackedMask


class CollapseWarning(UserWarning):
    """A mask leaves a layer, or all inputs of some of its outputs, without any weight."""


REMEDY = "min_nonzeros= keeps layers alive, as does a lower sparsity"


def without_weights(masks: Mapping[str, PackedMask]) -> dict[str, tuple[int, int]]:
    """Name -> (outputs without any weight, outputs), for each mask that has such outputs."""
    found = {}
    for name, mask in masks.items():
        alive = mask.to_dense().flatten(1).any(1) if len(mask.shape) > 1 else mask.to_dense()
        dead = alive.numel() - int(alive.sum())
        if dead:
            found[name] = dead, alive.numel()
    return found


def guard(
    method: str,
    masks: Mapping[str, PackedMask],
    strict: bool,
    known: Collection[str] = (),
    last: bool = True,
    remedy: str = REMEDY,
) -> list[str]:
    """A CollapseWarning for layers without any weight, one for outputs that lose their last; ValueError if strict.

    Returns the layers without any weight. For methods that prune step by step: known layers are not warned of again,
    outputs only in the last pruning, since single ones are usual.
    """
    found = without_weights(masks)
    dead_layers = [name for name, (dead, outputs) in found.items() if dead == outputs]
    layers = dead_layers if strict else [name for name in dead_layers if name not in known]
    outputs = [f"{name} ({dead} of {total} outputs)" for name, (dead, total) in found.items() if dead < total]
    if not strict and not last:
        outputs = []
    messages = []
    if layers:
        subject, around = ("they give", "them") if len(layers) > 1 else ("it gives", "it")
        messages.append(
            f"{method}: no weight survives in {', '.join(layers)}: {subject} the same output for any input, and so "
            f"does the whole network unless a path leads around {around}; {remedy}"
        )
    if outputs:
        usual = "single ones are usual at high sparsity"
        messages.append(f"{method}: some outputs lose all their inputs: {', '.join(outputs)}; {usual}; {remedy}")
    if strict and messages:
        raise ValueError("\n".join(messages))
    for message in messages:
        warnings.warn(message, CollapseWarning, stacklevel=outside())
    return dead_layers


def outside() -> int:
    """The stacklevel, for the function that calls this, of the nearest caller outside of this package and torch."""
    inside = (__name__.partition(".")[0], "torch")  # torch's step calls a method that prunes between two epochs
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in inside:
        frame, level = frame.f_back, level + 1
    return level
