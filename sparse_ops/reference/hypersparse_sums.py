"""hypersparse_sums in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def hypersparse_sums(weights: Sequence[Tensor], scale: Tensor) -> Tensor:
    """N = sum |w|, T0 = sum tanh(s|w|), T1 = sum |w| sech^2(s|w|), T2 = sum w^2 tanh(s|w|) sech^2(s|w|)."""
    a = torch.cat([w.reshape(-1).double().abs() for w in weights])
    e = torch.exp(-2 * scale * a)
    t, c = torch.tanh(scale * a), 4 * e / (1 + e) ** 2
    return torch.stack([a.sum(), t.sum(), (a * c).sum(), (a * a * t * c).sum()])
