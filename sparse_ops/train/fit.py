"""How far a network has been trained: loss, entropy and accuracy on training and on other images, as it is in use."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_ops.train.data import Images
from sparse_ops.train.image_files import ImageFiles
from sparse_ops.train.loop import outputs

IMAGES = 5000  # at most, of either kind


def sample(images: Images | ImageFiles) -> Images | ImageFiles:
    """At most IMAGES of them, evenly spread: the same ones in every run on the same images."""
    if len(images) <= IMAGES:
        return images
    return images.take(torch.linspace(0, len(images) - 1, IMAGES, dtype=torch.float64).round().long())


def measure(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], precision: str) -> dict[str, Any]:
    """Mean cross entropy (no label smoothing), mean entropy of the predictions in nats, and accuracy, in eval mode."""
    logits, labels = outputs(model, batches, precision)
    logs = F.log_softmax(logits.double(), 1)
    return {
        "images": len(labels),
        "loss": float(F.nll_loss(logs, labels)),
        "entropy": float(-(logs.exp() * logs).nan_to_num(0.0).sum(1).mean()),
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
    }


def mean(fits: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over the splits of the data."""
    first = fits[0]
    return {
        key: {name: sum(fit[key][name] for fit in fits) / len(fits) for name in value}
        if isinstance(value, dict)
        else value
        for key, value in first.items()
    }
