"""Masks: packed bits, how many zeros a sparsity means for each weight, and the exact selection of them by magnitude."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from sparse_ops import checks
from sparse_ops.ops import magnitude_mask as op
from sparse_ops.reference.apply_masks import unpack_bits
from sparse_ops.reference.magnitude_mask import pack_bits

Scope = Literal["global", "uniform", "erk"]
Count = Literal["nearest", "floor", "ceil", "art"]


@dataclass(frozen=True, eq=False)
class PackedMask:
    """One bit a weight (1 = kept): uint8, least significant bit first, padded with ones, in the weight's storage order.

    shape and stride are the weight's; stride is a dense one, the contiguous one where the weight has gaps.
    """

    bits: Tensor
    shape: torch.Size
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        expected = (self.numel + 7) // 8
        if self.bits.dtype != torch.uint8 or self.bits.shape != (expected,):
            got = f"{self.bits.dtype} {tuple(self.bits.shape)}"
            raise ValueError(f"PackedMask: bits are {got}, expected uint8 ({expected},) for shape {tuple(self.shape)}")
        if len(self.stride) != len(self.shape):
            raise ValueError(f"PackedMask: stride {self.stride} does not fit shape {tuple(self.shape)}")

    @classmethod
    def from_dense(cls, mask: Tensor) -> "PackedMask":
        """Pack a mask of any dtype (kept where it is not 0); it keeps the mask's strides where these are dense."""
        dense = checks.dense(mask)
        return cls(pack_bits(checks.storage_view(dense) != 0), mask.shape, dense.stride())

    def to_dense(self) -> Tensor:
        """bool, with the weight's shape and strides."""
        return unpack_bits(self.bits, self.numel).as_strided(self.shape, self.stride)

    @property
    def numel(self) -> int:
        """How many weights the mask covers."""
        return math.prod(self.shape)

    @property
    def zeros(self) -> int:
        """How many of them it prunes."""
        return self.numel - int(unpack_bits(self.bits, self.numel).sum())


def _check(name: str, sparsity: float) -> None:
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"{name} is {sparsity!r}, expected a number in [0, 1)")
    if not 0 <= sparsity < 1:
        raise ValueError(f"{name} is {sparsity}, expected 0 <= sparsity < 1{percentage(sparsity)}")


def percentage(value: float) -> str:
    """What an error adds to a number that looks like a percentage where a share of 1 was meant."""
    return " (a percentage? divide by 100)" if 1 < value <= 100 else ""


def budget(n: int, sparsity: float, count: Count = "nearest") -> int:
    """How many of n weights a sparsity in [0, 1) makes zero, in float64 arithmetic.

    count: "nearest" floor(s n + 0.5), "floor" floor(s n), "ceil" ceil(s n), "art" floor(s n) + 1 for s > 0 (the rule of
    ART's authors, who also prune every tie with the last one: `magnitude_mask`). ValueError names what is out of range.
    """
    _check("sparsity", sparsity)
    match count:
        case "nearest":
            zeros = math.floor(sparsity * n + 0.5)
        case "floor":
            zeros = math.floor(sparsity * n)
        case "ceil":
            zeros = math.ceil(sparsity * n)
        case "art":
            zeros = math.floor(sparsity * n) + (sparsity > 0)
        case _:
            raise ValueError(f"count is {count!r}; it may be one of {', '.join(get_args(Count))}")
    return min(zeros, n)


def layer_zeros(
    shapes: Sequence[Sequence[int]],
    sparsity: float,
    scope: Scope = "uniform",
    count: Count = "nearest",
    min_nonzeros: int = 0,
) -> list[int]:
    """The zeros of each weight under a per-layer budget; they add up to budget(n, sparsity, count) of all n exactly.

    scope "uniform": every weight the same sparsity. "erk": densities proportional to the sum of a weight's dimensions
    over their product (Erdos-Renyi kernel, as in RigL), where a density above 1 means a dense layer and the others take
    over. Fractions are rounded by largest remainder. min_nonzeros: no weight keeps fewer (or than it has); the
    survivors come from the weights that have most. ValueError where the budget leaves too few for that.
    """
    sizes = [math.prod(shape) for shape in shapes]
    total = budget(sum(sizes), sparsity, count)
    match scope:
        case "uniform":
            ideal = [total * n / max(1, sum(sizes)) for n in sizes]
        case "erk":
            ideal = _erk_zeros(shapes, sizes, total)
        case _:
            raise ValueError(f"scope is {scope!r}, expected 'uniform' or 'erk' for budgets per layer")
    return _keep_alive(_round_to_total(ideal, sizes, total), sizes, min_nonzeros)


def _erk_zeros(shapes: Sequence[Sequence[int]], sizes: list[int], total_zeros: int) -> list[float]:
    """Zeros per layer, not rounded; a layer found too dense is dense, which makes the others denser."""
    weights = [max(1, sum(shape)) if n else 0 for shape, n in zip(shapes, sizes, strict=True)]
    nonzeros = sum(sizes) - total_zeros
    dense = [n == 0 for n in sizes]
    while not all(dense):
        left = nonzeros - sum(n for n, full in zip(sizes, dense, strict=True) if full)
        epsilon = left / sum(w for w, full in zip(weights, dense, strict=True) if not full)
        too_dense = [not full and epsilon * w > n for w, n, full in zip(weights, sizes, dense, strict=True)]
        if not any(too_dense):
            return [0.0 if full else n - epsilon * w for w, n, full in zip(weights, sizes, dense, strict=True)]
        dense = [full or more for full, more in zip(dense, too_dense, strict=True)]
    return [0.0] * len(sizes)


def _round_to_total(ideal: list[float], sizes: list[int], total: int) -> list[int]:
    """Integers next to the ideal ones that add up to total: the largest fractions are rounded up."""
    zeros = [min(n, math.floor(x)) for x, n in zip(ideal, sizes, strict=True)]
    missing = total - sum(zeros)
    step = 1 if missing > 0 else -1
    order = sorted(range(len(zeros)), key=lambda i: step * (zeros[i] - ideal[i]))
    while missing:
        for i in order:
            if missing and 0 <= zeros[i] + step <= sizes[i]:
                zeros[i] += step
                missing -= step
    return zeros


def check_min_nonzeros(zeros: int, sizes: Sequence[int], min_nonzeros: int) -> None:
    """ValueError where so many zeros in all leave too few weights for each layer to keep min_nonzeros (or all)."""
    if isinstance(min_nonzeros, bool) or not isinstance(min_nonzeros, int) or min_nonzeros < 0:
        raise ValueError(f"min_nonzeros is {min_nonzeros!r}, expected an integer >= 0")
    left, needed = sum(sizes) - zeros, sum(min(min_nonzeros, n) for n in sizes)
    if left < needed:
        raise ValueError(
            f"min_nonzeros is {min_nonzeros}, but the budget leaves {left} of {sum(sizes)} weights, fewer than the "
            f"{needed} that {len(sizes)} layers would keep"
        )


def _keep_alive(zeros: list[int], sizes: list[int], min_nonzeros: int) -> list[int]:
    """The same total of zeros with at least min_nonzeros (or all) survivors in each layer."""
    check_min_nonzeros(sum(zeros), sizes, min_nonzeros)
    needed = [min(min_nonzeros, n) for n in sizes]
    left = [n - z for n, z in zip(sizes, zeros, strict=True)]
    for i, need in enumerate(needed):
        while left[i] < need:
            donor = max(range(len(left)), key=lambda j: left[j] - needed[j])
            others = max(0, *(left[j] - needed[j] for j in range(len(left)) if j != donor))
            given = min(need - left[i], max(1, left[donor] - needed[donor] - others))
            left[donor] -= given
            left[i] += given
    return [n - kept for n, kept in zip(sizes, left, strict=True)]


def raised(zeros: Sequence[int], least: Sequence[int]) -> list[int]:
    """The same total with at least these zeros in each weight; the others give, those first that are furthest above.

    Where `least` adds up to more than the total, it is the answer.
    """
    found = [max(z, low) for z, low in zip(zeros, least, strict=True)]
    surplus = sum(found) - sum(zeros)
    while surplus > 0:
        above = sorted(z - low for z, low in zip(found, least, strict=True))
        if above[-1] == 0:
            break
        i = max(i for i, (z, low) in enumerate(zip(found, least, strict=True)) if z - low == above[-1])
        given = min(surplus, max(1, above[-1] - (above[-2] if len(above) > 1 else 0)))
        found[i] -= given
        surplus -= given
    return found


def magnitude_mask(
    tensors: Iterable[Tensor],
    sparsity: float | Sequence[float],
    scope: Scope = "global",
    count: Count = "nearest",
    min_nonzeros: int = 0,
) -> list[PackedMask]:
    """Masks that prune the smallest magnitudes: exactly the budget's zeros, one mask for each tensor.

    tensors: any shapes and strides, float16, bfloat16, float32 or float64, on one device. sparsity: the share of zeros
    in [0, 1), or one number for each tensor, which is then its own budget (scope is not asked). scope: "global" ranks
    all tensors together, "uniform" and "erk" give each its own count (`layer_zeros`). count: see `budget`. Of equal
    magnitudes at a threshold the first are kept (tensor order, then contiguous index); count="art" prunes all of them.
    min_nonzeros: no tensor keeps fewer; the survivors come from the tensors that have most, the total stays. ValueError
    for a sparsity out of range, a NaN (naming the tensor), no elements, or a budget that min_nonzeros cannot meet.
    """
    tensors = [t.detach() for t in checks.tensor_list("magnitude_mask", "tensors", tensors)]
    if scope not in get_args(Scope):
        raise ValueError(f"scope is {scope!r}; it may be one of {', '.join(get_args(Scope))}")
    sizes = [t.numel() for t in tensors]
    if sum(sizes) == 0:
        raise ValueError(f"magnitude_mask: {len(tensors)} tensors without a single element")
    art = count == "art"
    if isinstance(sparsity, Sequence) and not isinstance(sparsity, str):
        if len(sparsity) != len(tensors):
            raise ValueError(f"magnitude_mask: {len(sparsity)} sparsities for {len(tensors)} tensors")
        for i, s in enumerate(sparsity):
            _check(f"sparsity[{i}]", s)
        zeros = [budget(n, s, count) for n, s in zip(sizes, sparsity, strict=True)]
        masks = [_layer_mask(i, t, z, art) for i, (t, z) in enumerate(zip(tensors, zeros, strict=True))]
    elif scope == "global":
        bits = op.magnitude_mask(tensors, budget(sum(sizes), sparsity, count), prune_ties=art)
        masks = [_packed(b, t) for b, t in zip(bits, tensors, strict=True)]
    else:
        zeros = layer_zeros([t.shape for t in tensors], sparsity, scope, count)
        masks = [_layer_mask(i, t, z, art) for i, (t, z) in enumerate(zip(tensors, zeros, strict=True))]
    if min_nonzeros == 0:
        return masks
    found = [mask.zeros for mask in masks]
    wanted = _keep_alive(found, sizes, min_nonzeros)
    return [masks[i] if z == found[i] else _layer_mask(i, tensors[i], z, False) for i, z in enumerate(wanted)]


def keep_largest(scores: Tensor, kept: int) -> Tensor:
    """bool, of the shape of scores: True at the `kept` largest magnitudes, of equal ones at the first.

    ValueError where kept is not in 0 to the number of scores, and for a NaN.
    """
    n = scores.numel()
    if not 0 <= kept <= n:
        raise ValueError(f"keep_largest: kept is {kept}, expected 0 to {n}, the number of scores")
    if n == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    scores = scores.detach()
    return _packed(op.magnitude_mask([scores], n - kept)[0], scores).to_dense()


def _packed(bits: Tensor, t: Tensor) -> PackedMask:
    stride = t.stride() if checks.is_dense(t) else torch.empty(t.shape, device="meta").stride()
    return PackedMask(bits, t.shape, stride)


def _layer_mask(i: int, t: Tensor, zeros: int, prune_ties: bool) -> PackedMask:
    if t.numel() == 0:
        return _packed(t.new_empty(0, dtype=torch.uint8), t)
    try:
        return _packed(op.magnitude_mask([t], zeros, prune_ties)[0], t)
    except ValueError as error:
        raise ValueError(str(error).replace("tensors[0]", f"tensors[{i}]")) from None
