"""What methods do to a model between steps: prune it for an evaluation, keep a pruned copy, mask another model."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparse_ops import checks, prunable
from sparse_ops.masks import PackedMask
from sparse_ops.optim.packed import PackedBits, packed_state, unpacked_state


@contextlib.contextmanager
@torch.no_grad()
def pruned(
    model: nn.Module, weights: Mapping[str, nn.Parameter], masks: Mapping[str, PackedMask]
) -> Iterator[dict[str, Tensor]]:
    """Within the `with` the model is pruned and in eval mode; after it, also after an error, all is as it was.

    Yields the one copy that is taken: name -> what the tensor held before, for all parameters and buffers. After the
    `with` it is the caller's, who may make a Snapshot of it.
    """
    tensors = _tensors(model)
    kept = {name: t.detach().clone() for name, t in tensors.items()}
    training = [(module, module.training) for module in model.modules()]
    try:
        PackedBits("mask", {name: w.shape for name, w in weights.items()}, masks).apply(list(weights.items()))
        model.eval()
        yield kept
    finally:
        for name, t in tensors.items():
            t.copy_(kept[name])
        for module, mode in training:
            module.training = mode


class Snapshot:
    """A model pruned by masks: the surviving weights, the masks, and all other parameters and buffers, copied."""

    def __init__(self, masks: dict[str, PackedMask], survivors: dict[str, Tensor], others: dict[str, Tensor]) -> None:
        self.masks, self.survivors, self.others = masks, survivors, others

    @classmethod
    @torch.no_grad()
    def take(
        cls,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        masks: Mapping[str, PackedMask],
        copied: Mapping[str, Tensor] | None = None,
    ) -> "Snapshot":
        """Of a model that is not, or not yet, pruned by the masks, or of the copy of it that `pruned` has yielded.

        The copy's tensors become the snapshot's own, but for the pruned weights, of which the survivors are copied.
        """
        tensors = _tensors(model)
        masked = {id(weights[name]): name for name in masks}
        survivors, others = {}, {}
        for name, t in tensors.items():
            before = t.detach() if copied is None else copied[name]
            if id(t) in masked:
                survivors[masked[id(t)]] = before[masks[masked[id(t)]].to_dense()]
            else:
                others[name] = before.clone() if copied is None else before
        return cls(dict(masks), survivors, others)

    @torch.no_grad()
    def restore(self, model: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
        """Make the model the pruned one of the snapshot."""
        for name, mask in self.masks.items():
            weights[name].zero_()
            weights[name][mask.to_dense()] = self.survivors[name]
        tensors = _tensors(model)
        for name, t in self.others.items():
            tensors[name].copy_(t)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        masks = {name: packed_state(mask) for name, mask in self.masks.items()}
        return {"masks": masks, "survivors": dict(self.survivors), "others": dict(self.others)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "Snapshot":
        """The snapshot of a state_dict."""
        masks = {name: unpacked_state(mask, device) for name, mask in state["masks"].items()}
        survivors = {name: t.to(device, copy=True) for name, t in state["survivors"].items()}
        others = {name: t.to(device, copy=True) for name, t in state["others"].items()}
        return cls(masks, survivors, others)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**prunable.named_parameters(model), **prunable.named_buffers(model)}


def apply_masks(model: nn.Module, masks: Mapping[str, PackedMask]) -> None:
    """Zero what the masks prune in another model of the same architecture (an average, a copy).

    Names are compared without `module.` and `_orig_mod.`, those of parametrized weights without their parametrization.
    ValueError for a name that the model lacks or another shape.
    """
    checks.module("apply_masks_", model)
    parameters = {prunable.plain(name): p for name, p in prunable.named_parameters(model).items()}
    shapes = {name: p.shape for name, p in parameters.items()}
    missing = [name for name in masks if name not in shapes]
    if missing:
        raise ValueError(
            f"{type(model).__name__} has no parameter {missing[0]}: it is another model than the masked one"
        )
    PackedBits("mask", shapes, masks).apply([(name, parameters[name]) for name in masks])
