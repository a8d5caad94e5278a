"""regularized_sgd_ in plain PyTorch."""

import torch
from torch import Tensor

from sparse_ops.reference import sweep


def regularized_sgd_(
    weights: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    masks: list[Tensor],
    groups: list[Tensor],
    scopes: list[int],
    coefficients: Tensor,
    brackets: Tensor,
    statistics: Tensor,
    candidates: Tensor,
    penalty: str,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first_step: bool,
    lr_tensor: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """All tensors of weights are 1-D, in storage order."""
    if found_inf is not None and found_inf.item() != 0:
        return
    lr = lr if lr_tensor is None else lr_tensor.item()
    for i, (weight, scope) in enumerate(zip(weights, scopes, strict=True)):
        dtype = sweep.compute_dtype(weight)
        w, g = weight.to(dtype), grads[i].to(dtype)
        if grad_scale is not None:
            g = g / grad_scale.to(dtype)
        if maximize:
            g = -g
        if weight_decay != 0:
            g = g + weight_decay * w
        if scope >= 0:
            group = sweep.bits_of(groups, i, w.numel())
            g = g + sweep.penalty_gradient(w, coefficients[scope], penalty, group)
        keep = sweep.bits_of(masks, i, w.numel())
        if momenta:
            m = g if first_step else momentum * momenta[i].to(dtype) + (1 - dampening) * g
            g = g + momentum * m if nesterov else m
            momenta[i].copy_(m if keep is None else torch.where(keep, m, 0.0))
        w = w - lr * g
        weight.copy_(w if keep is None else torch.where(keep, w, 0.0))
        if scope >= 0:
            sweep.observe(weight, coefficients[scope, 2].item(), brackets[scope], statistics[scope], candidates[scope])
