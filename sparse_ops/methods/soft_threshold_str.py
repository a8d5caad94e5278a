"""STR: every layer learns the threshold below which its weights are zero.

Kusupati, Ramanujan, Somani, Wortsman, Jain, Kakade, Farhadi: Soft Threshold Weight Reparameterization for Learnable
Sparsity, ICML 2020, arXiv 2002.03231.
"""

import math
from typing import Any, Literal, Unpack

import torch
from torch import nn

from sparse_ops.methods.arguments import either, positive
from sparse_ops.methods.budget import Sparsity
from sparse_ops.methods.options import SharedOptions
from sparse_ops.methods.reparametrized import Reparametrized
from sparse_ops.optim.reparametrize import SoftThreshold


class STR(Reparametrized):
    """Soft threshold reparametrization: the weight in use is sign(w) relu(|w| - sigmoid(s)), s is trained.

    One s a layer (group="filter": one a filter), `initial_threshold` at first. Weight decay on s, `threshold_decay`,
    pulls it towards 0 and so raises the threshold, the loss holds against it. controller=True (needs total_steps, the
    optimiser steps of the run) steers that decay, from `threshold_decay` on, so that the measured sparsity follows a
    cubic to `sparsity` and keeps it; False is the paper's method, where the decay alone decides, and `sparsity` is only
    what is wanted. Weight decay on the weights is the user's. The learning rate is one half-cosine over the run.

    The paper starts ResNet-50 on ImageNet at s = -3200 with a decay of 2.25e-5 on everything and lets it rise for most
    of the 100 epochs; short runs start near the weights: sigmoid(-5) is 0.0067. The other arguments are those of
    `SharedOptions`; a mapping as sparsity gives the total.
    """

    name = "str"
    reach = 12.0

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: Sparsity,
        epochs: int = 100,
        *,
        total_steps: int,
        initial_threshold: float = -5.0,
        threshold_decay: float = 5e-4,
        group: Literal["layer", "filter"] = "layer",
        controller: bool = True,
        **options: Unpack[SharedOptions],
    ) -> None:
        either("STR", "group", group, ("layer", "filter"))
        if not math.isfinite(initial_threshold):
            raise ValueError(f"STR: initial_threshold is {initial_threshold}, expected a finite number")
        positive("STR", threshold_decay=threshold_decay)
        self.group, self.initial_threshold = group, float(initial_threshold)
        super().__init__(
            model,
            optimizer,
            sparsity,
            epochs,
            strength=float(threshold_decay),
            controller=controller,
            total_steps=total_steps,
            lr_factor=1.0,
            **options,
        )

    def _form(self, name: str, weight: nn.Parameter) -> SoftThreshold:
        groups = weight.shape[0] if self.group == "filter" and weight.dim() > 1 else 1
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return SoftThreshold(torch.full((groups,), self.initial_threshold, dtype=dtype), relative=False, leaky="relu")

    def _apply(self, strength: float) -> None:
        super()._apply(strength)
        self.thresholds.set_weight_decay(strength)

    def _settings(self) -> dict[str, Any]:
        own = {"group": self.group, "initial_threshold": self.initial_threshold}
        return super()._settings() | own | {"threshold_decay": self.initial_strength}
