"""regularized_adamw_ in plain PyTorch."""

import math

import torch
from torch import Tensor

from sparse_ops.reference import sweep


def regularized_adamw_(
    weights: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    masks: list[Tensor],
    groups: list[Tensor],
    scopes: list[int],
    coefficients: Tensor,
    brackets: Tensor,
    statistics: Tensor,
    candidates: Tensor,
    penalty: str,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    lr_tensor: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """All tensors of weights and states are 1-D, in storage order."""
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
        if scope >= 0:
            group = sweep.bits_of(groups, i, w.numel())
            g = g + sweep.penalty_gradient(w, coefficients[scope], penalty, group)
        keep = sweep.bits_of(masks, i, w.numel())
        step = steps[i].item()
        m = beta1 * exp_avgs[i].to(dtype) + (1 - beta1) * g
        v = beta2 * exp_avg_sqs[i].to(dtype) + (1 - beta2) * g * g
        largest = torch.maximum(max_exp_avg_sqs[i].to(dtype), v) if max_exp_avg_sqs else v
        denominator = largest.sqrt() / math.sqrt(1 - beta2**step) + eps
        w = w - lr * weight_decay * w - lr / (1 - beta1**step) * m / denominator

        new = [(weight, w), (exp_avgs[i], m), (exp_avg_sqs[i], v)]
        if max_exp_avg_sqs:
            new.append((max_exp_avg_sqs[i], largest))
        for old, value in new:
            old.copy_(value if keep is None else torch.where(keep, value, 0.0))
        if scope >= 0:
            sweep.observe(weight, coefficients[scope, 2].item(), brackets[scope], statistics[scope], candidates[scope])
