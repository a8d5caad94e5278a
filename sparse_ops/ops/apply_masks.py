"""The op sparse_ops::apply_masks_: zero what a mask prunes, in place."""

import torch
from torch import Tensor

from sparse_ops import checks, extension, launch
from sparse_ops.reference import apply_masks as reference

torch.library.define("sparse_ops::apply_masks_", "(Tensor(a!)[] tensors, Tensor[] masks) -> ()")


def _check(tensors: list[Tensor], masks: list[Tensor]) -> None:
    """Check the operands: the first half of the op and, since nothing is allocated, all of its fake."""
    checks.floating("apply_masks_", "tensors", tensors)
    if len(masks) != len(tensors):
        raise ValueError(f"apply_masks_: {len(tensors)} tensors but {len(masks)} masks")
    for i, (t, mask) in enumerate(zip(tensors, masks, strict=True)):
        if not checks.is_dense(t):
            raise ValueError(
                f"apply_masks_: tensors[{i}] has gaps or overlaps, strides {t.stride()} for {tuple(t.shape)}"
            )
        expected = ((t.numel() + 7) // 8,)
        if mask.dtype != torch.uint8 or mask.shape != expected:
            raise ValueError(f"apply_masks_: masks[{i}] is {mask.dtype} {tuple(mask.shape)}, expected uint8 {expected}")


@torch.library.register_fake("sparse_ops::apply_masks_")
def _fake(tensors: list[Tensor], masks: list[Tensor]) -> None:
    _check(tensors, masks)


@torch.library.impl("sparse_ops::apply_masks_", ("cpu", "cuda"))
def _apply_masks_(tensors: list[Tensor], masks: list[Tensor]) -> None:
    _check(tensors, masks)
    if not tensors:
        return
    match launch.backend(tensors[0].device):
        case "native":
            extension.native().apply_masks_(tensors, masks)
        case "triton":
            from sparse_ops.kernels import apply_masks as kernel

            with launch.on(tensors[0].device):
                for t, mask in zip(tensors, masks, strict=True):
                    kernel.apply_masks(checks.storage_view(t), mask)
        case "reference":
            reference.apply_masks_([checks.storage_view(t) for t in tensors], masks)
    torch.autograd.graph.increment_version(tensors)


def apply_masks_(tensors: list[Tensor], masks: list[Tensor]) -> None:
    """Write +0 into each element whose mask bit is 0, keep the others bit for bit.

    tensors: dense in memory, any floating dtype. masks: packed uint8, one per tensor, in the tensor's storage order
    (`sparse_ops.masks.PackedMask.bits`). Not differentiable.
    """
    torch.ops.sparse_ops.apply_masks_(tensors, masks)
