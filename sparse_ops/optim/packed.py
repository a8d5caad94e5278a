"""PackedBits: one bit per weight for some of a sweep's weights, in whatever storage order a tensor has."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_ops import checks
from sparse_ops.masks import PackedMask
from sparse_ops.ops.apply_masks import apply_masks_


class PackedBits:
    """Name -> PackedMask, checked against the weights; a tensor with other strides gets the bits repacked once."""

    def __init__(self, what: str, shapes: Mapping[str, torch.Size], masks: Mapping[str, PackedMask]) -> None:
        for name, mask in masks.items():
            if name not in shapes:
                raise ValueError(f"a {what} for {name}, which is not a prunable weight")
            if tuple(mask.shape) != tuple(shapes[name]):
                raise ValueError(f"the {what} of {name} is {tuple(mask.shape)}, the weight {tuple(shapes[name])}")
        self.masks = {name: masks[name] for name in shapes if name in masks}
        self._repacked: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self.masks)

    def __contains__(self, name: str) -> bool:
        return name in self.masks

    def bits(self, name: str, tensor: Tensor) -> Tensor:
        """The bits of a weight in the storage order of `tensor`, which has the weight's shape and is dense."""
        mask = self.masks[name]
        if tuple(mask.stride) == tensor.stride() and mask.bits.device == tensor.device:
            return mask.bits
        key = (name, tensor.stride())
        if key not in self._repacked or self._repacked[key].device != tensor.device:
            self._repacked[key] = bits_for(mask, tensor)
        return self._repacked[key]

    def operands(self, names: Sequence[str | None], tensors: Sequence[Tensor]) -> list[Tensor]:
        """Packed bits per tensor as the ops take them: empty where there are none, [] where no weight has any."""
        if not self.masks:
            return []
        return [
            self.bits(name, t) if name in self.masks else no_bits(t.device)
            for name, t in zip(names, tensors, strict=True)
        ]

    @torch.no_grad()
    def apply(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Zero where the bits are 0; each tensor has the shape of the weight that it is named after."""
        dense = [(name, t) for name, t in tensors if name in self.masks and checks.is_dense(t)]
        if dense:
            apply_masks_([t.detach() for _, t in dense], [self.bits(name, t) for name, t in dense])
        for name, t in tensors:
            if name in self.masks and not checks.is_dense(t):
                t.detach().masked_fill_(~self.masks[name].to_dense().to(t.device), 0)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        return {name: packed_state(mask) for name, mask in self.masks.items()}


@functools.cache
def no_bits(device: torch.device) -> Tensor:
    """What stands for a weight without bits."""
    return torch.empty(0, dtype=torch.uint8, device=device)


def bits_for(mask: PackedMask, tensor: Tensor) -> Tensor:
    """The mask's bits in the storage order of `tensor`, on its device."""
    dense = torch.empty_strided(tensor.shape, tensor.stride(), dtype=torch.bool, device=tensor.device)
    return PackedMask.from_dense(dense.copy_(mask.to_dense())).bits


def packed_state(mask: PackedMask) -> dict[str, Any]:
    """A mask as an entry of a state_dict."""
    return {"bits": mask.bits.clone(), "shape": list(mask.shape), "stride": list(mask.stride)}


def unpacked_state(state: Mapping[str, Any], device: torch.device) -> PackedMask:
    """The mask of a state_dict's entry."""
    return PackedMask(state["bits"].to(device, copy=True), torch.Size(state["shape"]), tuple(state["stride"]))
