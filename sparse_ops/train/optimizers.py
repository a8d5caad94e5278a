"""The optimiser that a recipe's [optimizer] names, with the sweep inside."""

from dataclasses import dataclass

import torch
from torch import nn

from sparse_ops import optim
from sparse_ops.optim.param_groups import param_groups

NAMES = ("sgd", "adamw")
ADAMW = {"lr": 1e-3, "weight_decay": 1e-2}  # torch's own defaults, where a recipe with adamw does not give them


@dataclass
class Optimizer:
    """[optimizer]: sparse_ops.optim.SGD or AdamW with these settings."""

    name: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 1e-4
    momentum: float = 0.9  # momentum and nesterov are those of sgd
    nesterov: bool = False
    beta1: float = 0.9  # beta1, beta2 and eps are those of adamw
    beta2: float = 0.999
    eps: float = 1e-8
    decay_norms: bool = True  # false: no weight decay on biases and normalisation layers


def build(settings: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all parameters of a model."""
    parameters = model.parameters() if settings.decay_norms else param_groups(model, settings.weight_decay)
    if settings.name == "adamw":
        return optim.AdamW(
            parameters,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
    return optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
