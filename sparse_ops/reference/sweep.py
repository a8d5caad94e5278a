"""What the sweeps share, in plain PyTorch: the penalty's gradient and the sums over the new weights.

All tensors are 1-D, in storage order. Arithmetic runs in float32 for half weights, in the weight's type otherwise.
"""

import torch
from torch import Tensor

from sparse_ops.reference.apply_masks import unpack_bits

HALVES = (torch.float16, torch.bfloat16)


def compute_dtype(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.dtype in HALVES else weight.dtype


def bits_of(packed: list[Tensor], i: int, n: int) -> Tensor | None:
    """The bools of entry i, None where the list or the entry is empty."""
    return unpack_bits(packed[i], n) if packed and packed[i].numel() else None


def penalty_gradient(w: Tensor, row: Tensor, penalty: str, group: Tensor | None) -> Tensor:
    """What is added to the gradient of w; row: this scope's line of the coefficients."""
    strength, kept, s, ratio = row.tolist()
    match penalty:
        case "none":
            return torch.zeros_like(w)
        case "l1":
            return strength * w.sign()
        case "l2":
            return 2 * strength * w
        case "growing_l2":
            return kept * w if group is None else torch.where(group, strength * w, kept * w)
        case "hypersparse":
            if strength * s * ratio == 0:
                return torch.zeros_like(w)
            sech = 1 / torch.cosh(s * w.abs())
            return strength * s * ratio * w.sign() * sech * sech
    raise ValueError(f"unknown penalty {penalty!r}")


def observe(weight: Tensor, s: float, bracket: Tensor, statistics: Tensor, candidates: Tensor) -> None:
    """Add this weight's sums and counts to its scope's line of the statistics and append its candidates.

    Each term is computed in the weight's compute type, sums run in float64, and the bracket is compared in float64.
    """
    u = weight.to(compute_dtype(weight)).abs()
    low, high = bracket.tolist()
    statistics[0] += u.double().sum()
    if s == 0:
        statistics[2] += u.double().sum()
    else:
        t = torch.tanh(s * u)
        sech = 1 / torch.cosh(s * u)
        statistics[1] += t.double().sum()
        statistics[2] += (u * sech * sech).double().sum()
        statistics[3] += (u * u * t * sech * sech).double().sum()
    inside = u[(u.double() >= low) & (u.double() < high)]
    stored = min(int(statistics[5]), candidates.numel())
    room = candidates.numel() - stored
    candidates[stored : stored + inside.numel()] = inside[:room].to(candidates.dtype)
    statistics[4] += (u.double() >= high).sum()
    statistics[5] += inside.numel()
    statistics[6] += u.numel()
