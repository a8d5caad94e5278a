"""The HyperSparse penalty in plain PyTorch: the literal formula, and its gradient in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor


def hypersparse_penalty(weights: Sequence[Tensor], scale: Tensor, normalizer: Tensor) -> Tensor:
    """(1/A) sum|w| sum tanh(s|w|) - sum|w|; autograd differentiates it with s and A as constants."""
    a = torch.cat([w.reshape(-1) for w in weights]).abs()
    return a.sum() * torch.tanh(scale * a).sum() / normalizer - a.sum()


def hypersparse_loss(weights: Sequence[Tensor], sparsity: float) -> Tensor:
    """The penalty with s and A taken from the weights: a full sort, as the method is written down."""
    a = torch.cat([w.detach().reshape(-1) for w in weights]).abs()
    scale = 0.6585 / a.sort().values[int(sparsity * a.numel())]
    return hypersparse_penalty(weights, scale, torch.tanh(scale * a).sum())


def hypersparse_penalty_backward(weights: Sequence[Tensor], coefficients: Tensor) -> list[Tensor]:
    """sign(w) (base + strength sech^2(s|w|)); coefficients: (base, strength, s). No strength: zeros, also for NaN."""
    base, strength, s = coefficients.unbind()
    grads = []
    for w in weights:
        e = torch.exp(-2 * s * w.double().abs())
        grad = w.double().sign() * (base + strength * (4 * e / (1 + e) ** 2))
        grads.append(torch.where((base == 0) & (strength == 0), 0.0, grad).to(w.dtype))
    return grads
