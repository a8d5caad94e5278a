"""Differentiable sparsification: weights or filters below a trained share of their group's sum are zero.

Lee: Differentiable Sparsification for Deep Neural Networks, arXiv 1910.03201, and its companion on structured and
unstructured sparsity, arXiv 2006.13716.
"""

import math
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from sparse_ops.methods.arguments import either
from sparse_ops.methods.budget import Sparsity
from sparse_ops.methods.options import SharedOptions
from sparse_ops.methods.reparametrized import Reparametrized
from sparse_ops.optim.reparametrize import SoftThreshold, logit

# Of the gradient by beta, which grows with the number of weights in the group: without it a layer of 262,144 weights is
# dead within a few steps of SGD at a strength of 6e-5, before a controller sees it.
CLIP = 0.02


class DifferentiableSparsification(Reparametrized):
    """The weight in use is sign(w) relu(|w| - sigmoid(beta) * the sum of |w| over the group), beta is trained.

    unit="weight": single weights vanish, one beta a layer or (group="filter") a filter. unit="filter": whole filters
    do, w_f relu(||w_f|| - t) / ||w_f|| with t = sigmoid(beta) * the sum of the filters' 2-norms, one beta a layer. At
    first the threshold is `initial_share` times the group's mean magnitude (beta is about -log(10 n) for n of them).

    The loss gains `strength` * the sum of |a|^p over the weights in use that are not zero (over the norms of filters),
    for the step only: its gradient joins .grad, and that by beta is clipped to +-0.02. p < 1 presses most on what is
    small. leaky="relu": dead weights feel nothing of the loss; "elu": the backward pass goes through them with the
    derivative of ELU. controller=True (needs total_steps, the optimiser steps of the run) steers the strength so that
    the measured sparsity follows a cubic to `sparsity` and keeps it; False: it is constant, and `sparsity` only what is
    wanted. Thresholds do not decay; their learning rate is `threshold_lr` times the first group's (0: 10 times for
    optimisers with betas, whose steps do not grow with the gradient, else once). The learning rate is one half-cosine
    over the run. The other arguments are those of `SharedOptions`; a mapping as sparsity gives the total.

    Under `LBFGS` and other closures the penalty joins the first evaluation of a step.
    """

    name = "differentiable"
    reach = 4.0  # a penalty that is far stronger than the loss leaves nothing that works

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: Sparsity,
        epochs: int = 100,
        *,
        total_steps: int,
        unit: Literal["weight", "filter"] = "weight",
        group: Literal["layer", "filter"] = "layer",
        strength: float = 1e-4,
        p: float = 0.5,
        leaky: Literal["relu", "elu"] = "relu",
        initial_share: float = 0.1,
        threshold_lr: float = 0.0,
        controller: bool = True,
        **options: Unpack[SharedOptions],
    ) -> None:
        either(self._title, "unit", unit, ("weight", "filter"))
        either(self._title, "group", group, ("layer", "filter"))
        either(self._title, "leaky", leaky, ("relu", "elu"))
        if unit == "filter" and group == "filter":
            raise ValueError(f"{self._title}: group is 'filter', but with unit='filter' a layer is the group")
        for argument, number, low, high in (
            ("strength", strength, 0.0, math.inf),
            ("p", p, 0.0, 2.0),
            ("initial_share", initial_share, 0.0, 1.0),
        ):
            if not low < number < high:
                raise ValueError(f"{self._title}: {argument} is {number}, expected {low:g} < {argument} < {high:g}")
        if not (math.isfinite(threshold_lr) and threshold_lr >= 0):
            raise ValueError(f"{self._title}: threshold_lr is {threshold_lr}, expected a finite number >= 0")
        if threshold_lr == 0:
            threshold_lr = 10.0 if "betas" in getattr(optimizer, "defaults", {}) else 1.0
        self.unit, self.group, self.p, self.leaky = unit, group, float(p), leaky
        self.initial_share = float(initial_share)
        super().__init__(
            model,
            optimizer,
            sparsity,
            epochs,
            strength=float(strength),
            controller=controller,
            total_steps=total_steps,
            lr_factor=float(threshold_lr),
            **options,
        )

    def _form(self, name: str, weight: nn.Parameter) -> SoftThreshold:
        filters = weight.shape[0] if weight.dim() > 1 else 1
        groups = filters if self.group == "filter" else 1
        members = filters if self.unit == "filter" else weight.numel() // groups
        beta = logit(self.initial_share / members) if members > 1 else logit(self.initial_share)
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return SoftThreshold(torch.full((groups,), beta, dtype=dtype), relative=True, leaky=self.leaky, unit=self.unit)

    def _add_gradient(self, grad_scale: Tensor | None) -> None:
        self.forms.add_penalty_grad_(self.strength, self.p, self.thresholds.climbing(), grad_scale)
        self.thresholds.clip_gradients_(CLIP, grad_scale)

    def _settings(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("unit", "group", "p", "leaky", "initial_share")}
        return super()._settings() | own | {"strength": self.initial_strength}
