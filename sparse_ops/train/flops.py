"""Multiply-adds of a network's prunable layers, and the share of them that zeros leave."""

from typing import Any

import torch
from torch import Tensor, nn

from sparse_ops.train import figures


@torch.inference_mode()
def positions(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Module name -> how often each of its weights is used for one image (channels, height, width).

    1 for a Linear of a classifier, height times width of the output for a convolution; a layer that the forward pass
    does not reach counts 0 times.
    """
    weights = figures.prunable(model)
    found = dict.fromkeys(weights, 0)

    def hook(name: str) -> Any:
        def count(module: nn.Module, _: Any, output: Tensor) -> None:
            found[name] += output.numel() // len(weights[name])  # the first dimension of a weight is its outputs

        return count

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in weights]
    training = model.training
    try:
        parameter = next(model.parameters())
        model.eval()(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


def left(model: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int]:
    """(multiply-adds by weights that are not zero, all multiply-adds) of the prunable layers, for one image."""
    used, weights = positions(model, shape), figures.prunable(model)
    live = sum(used[name] * int(w.count_nonzero()) for name, w in weights.items())
    return live, sum(used[name] * w.numel() for name, w in weights.items())
