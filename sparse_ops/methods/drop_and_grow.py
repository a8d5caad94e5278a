"""One change of a mask that moves: the smallest live weights give way to as many others."""

import torch
from torch import Tensor

from sparse_ops.masks import keep_largest


def drop_and_grow(weight: Tensor, mask: Tensor, growth: Tensor, fraction: float) -> Tensor:
    """The mask after int(fraction n) of its n live weights were dropped and as many grown.

    weight, mask (bool) and growth have one shape. The smallest |weight| of the live ones are dropped, then the largest
    |growth| grow among all that are not live any more, the dropped ones too. Of equals the first is kept, or grows.
    """
    live = int(mask.sum())
    dropped = int(fraction * live)
    if dropped == 0:
        return mask
    kept = torch.zeros_like(mask)
    kept[mask] = keep_largest(weight[mask], live - dropped)
    grown = torch.zeros_like(mask)
    grown[~kept] = keep_largest(growth[~kept], dropped)
    return kept | grown
