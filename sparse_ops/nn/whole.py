"""Whether small sparse layers that are faster alone make the model faster too: they are timed together, in it."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparse_ops.nn import choice, timing
from sparse_ops.nn.base import SparseModule

# Layers that take longer than this in all, in milliseconds, keep what was measured of each.
SMALL_MS = 20.0
LONG_SECONDS = 0.2  # of one call of the model, of which its small layers are a small part
GAINS = (choice.LEAST_GAIN, 1.5, 2.0)  # how much faster alone the layers of an attempt are

Swaps = Mapping[nn.Module, SparseModule]


def faster_together(
    model: nn.Module,
    with_layers: Callable[[Swaps], nn.Module],
    swaps: Swaps,
    ms: Mapping[nn.Module, tuple[float, float]],
    examples: Sequence[Any],
) -> Swaps:
    """The swaps with which the model is no slower than without any; fewer where all of them make it slower.

    with_layers: the model with some of its layers replaced. ms: of each dense layer alone, (dense, sparse). A layer
    timed in a loop finds its weights and its branches where it left them, which favours the sparse one of two small
    layers: one of 256 x 256 for one sample was 1.2 times as fast alone, and a fifth slower among others (Zen 3).
    Models with hooks are not called for this.
    """
    if not swaps or choice.has_hooks(model) or sum(ms[layer][0] for layer in swaps) > SMALL_MS:
        return swaps
    device = next(iter(swaps.values())).values.device
    tried: Swaps = {}
    for gain in GAINS:
        chosen = {layer: sparse for layer, sparse in swaps.items() if ms[layer][0] >= gain * ms[layer][1]}
        if len(chosen) in (0, len(tried)):
            continue
        tried = chosen
        dense, sparse = with_layers({}), with_layers(chosen)
        with choice.evaluating(dense), choice.evaluating(sparse), torch.no_grad():
            begin = time.perf_counter()
            _calls(dense, examples)()
            if time.perf_counter() - begin > LONG_SECONDS:
                return swaps
            times = timing.compare([_calls(sparse, examples), _calls(dense, examples)], device)
        if times.ms[0] <= times.ms[1]:
            return chosen
    return {}


def _calls(model: nn.Module, examples: Sequence[Any]) -> Callable[[], None]:
    def run() -> None:
        for example in examples:
            choice.call(model, example)

    return run
