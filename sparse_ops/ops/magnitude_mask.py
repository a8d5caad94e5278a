"""The op sparse_ops::magnitude_mask: packed masks with an exact number of zeros."""

import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from sparse_ops import checks, extension, launch, tables
from sparse_ops.reference import magnitude_mask as reference
from sparse_ops.reference.apply_masks import unpack_bits
from sparse_ops.reference.kth_magnitude import promoted_dtype

torch.library.define(
    "sparse_ops::magnitude_mask", "(Tensor[] tensors, SymInt zeros, bool prune_ties=False) -> Tensor[]"
)


def _output(tensors: list[Tensor], zeros: int, prune_ties: bool = False) -> list[Tensor]:
    """Check the operands and allocate the masks: the first half of the op and all of its fake."""
    checks.floating("magnitude_mask", "tensors", tensors)
    checks.same_device("magnitude_mask", "tensors", tensors)
    n = sum(t.numel() for t in tensors)
    if n == 0:
        raise ValueError(f"magnitude_mask: {len(tensors)} tensors without a single element")
    if not 0 <= zeros <= n:
        raise ValueError(f"magnitude_mask: zeros is {zeros}, expected 0 to {n}, the number of elements of all tensors")
    return [t.new_empty((t.numel() + 7) // 8, dtype=torch.uint8) for t in tensors]


@torch.library.register_fake("sparse_ops::magnitude_mask")
def _fake(tensors: list[Tensor], zeros: int, prune_ties: bool = False) -> list[Tensor]:
    return _output(tensors, zeros, prune_ties)


def _in_storage_order(mask: Tensor, t: Tensor) -> Tensor:
    """A packed mask in the logical order of t, in its storage order."""
    if t.is_contiguous():
        return mask
    keep = unpack_bits(mask, t.numel()).view(t.shape)
    return reference.pack_bits(reference.in_storage_order(keep, t.stride()))


@torch.library.impl("sparse_ops::magnitude_mask", ("cpu", "cuda"))
def _magnitude_mask(tensors: list[Tensor], zeros: int, prune_ties: bool = False) -> list[Tensor]:
    masks = _output(tensors, zeros, prune_ties)
    dense = [checks.dense(t) for t in tensors]
    match launch.backend(tensors[0].device):
        case "native":
            native = extension.native()
            nan = native.magnitude_mask(dense, promoted_dtype(tensors), zeros, prune_ties, masks)
        case "triton":
            from sparse_ops.kernels import magnitude_mask as kernel

            with launch.on(tensors[0].device):
                logical = [t.contiguous() for t in dense]
                plan = tables.plan(logical, masks=masks, scopes=[0] * len(dense))
                histograms = plan.histograms(1, promoted_dtype(tensors))
                ranks = tables.integers([max(zeros, 1)], histograms.device)
                found = torch.zeros_like(ranks, dtype=torch.int32)
                ties = torch.empty_like(plan.chunk_scopes, dtype=torch.int64)
                kernel.magnitude_mask(plan, histograms, ranks, found, ties, prune_ties)
            if zeros:
                masks = [_in_storage_order(mask, t) for mask, t in zip(masks, dense, strict=True)]
            else:
                masks = [mask.fill_(255) for mask in masks]
            nan = reference.first_nan(dense) if found.item() else -1
        case "reference":
            nan = reference.first_nan(dense)
            masks = reference.magnitude_mask(dense, zeros, prune_ties)
    if nan >= 0:
        raise ValueError(f"magnitude_mask: tensors[{nan}], of shape {tuple(tensors[nan].shape)}, holds a NaN")
    return masks


def magnitude_mask(tensors: Iterable[Tensor], zeros: int, prune_ties: bool = False) -> list[Tensor]:
    """Packed masks that prune exactly the `zeros` smallest magnitudes of all tensors together.

    Of equal magnitudes at the threshold the first are kept: tensor order, then logical (contiguous) order. With
    `prune_ties` all of them are pruned, so that there may be more zeros. tensors: any shapes, float16, bfloat16,
    float32 or float64, on one device. Returns one uint8 tensor each: eight elements a byte, least significant bit
    first, 1 = kept, padded with ones, in the tensor's storage order (contiguous order where it has gaps). Not
    differentiable. Raises ValueError for a NaN, naming the tensor, and for zeros out of range.
    """
    detached = [t.detach() for t in checks.tensor_list("magnitude_mask", "tensors", tensors)]
    count = zeros if isinstance(zeros, torch.SymInt) else operator.index(zeros)
    return torch.ops.sparse_ops.magnitude_mask(detached, count, prune_ties)
