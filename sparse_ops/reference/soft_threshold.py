"""Soft thresholding per group in plain PyTorch: the formula for autograd, and its gradients in closed form."""

import torch
from torch import Tensor


def _rows(t: Tensor, groups: int) -> Tensor:
    return t.reshape(groups, t.numel() // groups if groups else 0)


def soft_threshold(weight: Tensor, thresholds: Tensor, relative: bool = False) -> Tensor:
    """sign(w) relu(|w| - t_g); t_g is a group's threshold, times the group's sum of magnitudes where `relative`."""
    rows = _rows(weight, thresholds.numel())
    t = thresholds.reshape(-1, 1) * (rows.abs().sum(1, keepdim=True) if relative else 1)
    return (rows.sign() * torch.relu(rows.abs() - t)).reshape(weight.shape)


def levels(weight: Tensor, thresholds: Tensor, relative: bool) -> Tensor:
    """(G, 3) float64: t_g as rounded to the dtype of the arithmetic, its derivatives by |w| and by the threshold."""
    given = thresholds.detach().reshape(-1).double()
    norms = _rows(weight.detach().double(), len(given)).abs().sum(1) if relative else torch.ones_like(given)
    t = given * norms
    used = t if weight.dtype == torch.float64 else t.float().double()
    return torch.stack([used, given if relative else torch.zeros_like(given), norms], 1)


def soft_threshold_backward(grad: Tensor, weight: Tensor, levels: Tensor, elu: bool) -> tuple[Tensor, Tensor]:
    """(gradient by the weight in float64, by each t_g); elu: the pruned pass exp(|w| - t_g) of the gradient, else 0."""
    rows, dy = _rows(weight.double(), len(levels)), _rows(grad.double(), len(levels))
    rest, sign = rows.abs() - levels[:, :1], rows.sign()
    passing = torch.where(rest <= 0, dy * rest.clamp_max(0).exp() if elu else 0.0, dy)
    sums = -(passing * sign).sum(1)
    pull = torch.where(levels[:, 1] == 0, 0.0, sums * levels[:, 1])
    return (passing + pull[:, None] * sign).reshape(weight.shape), sums
