"""GrowingPenalty: which weights GReg's penalty presses on, how strongly in each step, and what it has left of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_ops.masks import PackedMask
from sparse_ops.methods.growth import Growth
from sparse_ops.optim.sweep import Sweep

KEPT_BY_THE_CODE = -1e-4


class GrowingPenalty:
    """The phase "regularize" on the weights of a sweep, each of them in a row of its own.

    tracked: the sparsity of each weight; one with 0 feels nothing. choose: the masks that would prune the weights as
    they are. kept: what the weights that are not chosen feel after the picking, for each weight.
    """

    def __init__(
        self,
        sweep: Sweep,
        growth: Growth,
        tracked: list[float],
        choose: Callable[[], Mapping[str, PackedMask]],
        kept: Callable[[], list[float]],
    ) -> None:
        self.sweep, self.growth = sweep, growth
        self.felt = [float(share > 0) for share in tracked]
        self._masks, self._kept = choose, kept
        self.began = 0  # the sweep's steps before the phase
        self.strength = 0.0
        self.grown_at = -1  # the step of the last growth

    @property
    def taken(self) -> int:
        """The steps of the phase so far."""
        return self.sweep.steps - self.began

    def begin(self) -> None:
        """The first growth, before the phase's first step; what is not picked is chosen now."""
        self.began = self.sweep.steps
        if not self.growth.picks(0.0):
            self.choose()
        self._grow()

    def after_step(self) -> None:
        """Grow where it is due before the coming step."""
        if self.grown_at < 0 and self.taken % self.growth.every == 0:
            self._grow()

    def choose(self) -> None:
        """The smallest magnitudes are the weights to be pruned, from now on."""
        self.sweep.set_groups({name: _inverse(mask) for name, mask in self._masks().items()})

    def _grow(self) -> None:
        picking = self.growth.picks(self.strength)
        self.strength = self.growth.after(self.strength)
        if picking and not self.growth.picks(self.strength):
            self.choose()
        kept = [self.strength] * len(self.felt) if picking else self._kept()
        strengths = [self.strength * layer for layer in self.felt]
        self.sweep.set_penalty("growing_l2", strengths, [k * layer for k, layer in zip(kept, self.felt, strict=True)])
        if self.growth.done(self.strength):
            self.grown_at = self.taken

    def end(self) -> dict[str, PackedMask]:
        """Take the penalty off; the masks that prune what was chosen, or what is smallest now where nothing was."""
        self.sweep.set_penalty("none")
        if not self.sweep.groups:
            self.choose()
        masks = {name: _inverse(chosen) for name, chosen in self.sweep.groups.items()}
        self.sweep.set_groups({})
        return masks

    def over(self) -> bool:
        """Whether lambda exceeds tau and the steps that stabilise have been taken."""
        return self.grown_at >= 0 and self.taken > self.grown_at + self.growth.stabilize_steps

    def magnitude_left(self, weights: Mapping[str, Tensor]) -> float | None:
        """The share of all magnitude that the penalty has left in the chosen weights; None before the choice."""
        chosen = self.sweep.groups
        if not chosen:
            return None
        sums = {name: w.detach().abs() for name, w in weights.items()}
        left = sum(float(sums[name][mask.to_dense()].sum(dtype=torch.float64)) for name, mask in chosen.items())
        total = sum(float(magnitudes.sum(dtype=torch.float64)) for magnitudes in sums.values())
        return left / total if total > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Numbers only; the sweep's state has the groups."""
        return {"began": self.began, "strength": self.strength, "grown_at": self.grown_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back `state_dict`."""
        self.began, self.strength, self.grown_at = state["began"], state["strength"], state["grown_at"]


def kept_strengths(kind: str, optimizer: torch.optim.Optimizer, weights: Sequence[Tensor]) -> list[float]:
    """What the weights that are not chosen feel: nothing ("free"), minus their decay ("paper"), or -1e-4 ("code")."""
    if kind != "paper":
        return [KEPT_BY_THE_CODE if kind == "code" else 0.0] * len(weights)
    decay = {id(p): group.get("weight_decay", 0.0) for group in optimizer.param_groups for p in group["params"]}
    return [-float(decay[id(w)]) for w in weights]


def refuse_decoupled_decay(optimizer: torch.optim.Optimizer) -> None:
    """ValueError for an optimiser whose decay no gradient can take back."""
    for group in getattr(optimizer, "param_groups", []):
        decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
        if decoupled and group["weight_decay"] != 0:
            raise ValueError(
                f"GReg: kept is 'paper', a penalty that takes the decay out of the gradient, but "
                f"{type(optimizer).__name__} keeps its weight_decay of {group['weight_decay']} out of it; use "
                "kept='code', or SGD"
            )


def _inverse(mask: PackedMask) -> PackedMask:
    return PackedMask.from_dense(~mask.to_dense())
