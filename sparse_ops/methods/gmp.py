"""GMP: gradual magnitude pruning, the share of zeros rises along a cubic while the network trains.

Zhu, Gupta: To prune, or not to prune: exploring the efficacy of pruning for model compression, ICLR 2018 workshop,
arXiv 1710.01878.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from sparse_ops.masks import PackedMask, magnitude_mask, raised
from sparse_ops.methods.arguments import epochs
from sparse_ops.methods.budget import Budget, Sparsity
from sparse_ops.methods.options import Options
from sparse_ops.methods.schedules import cubic, phase_steps
from sparse_ops.methods.updater import Sparsifier

PRUNINGS = 100  # of a schedule whose `every` is not given


class GMP(Sparsifier):
    """Gradual magnitude pruning.

    pretrain: `pretrain_epochs` dense epochs. prune: the smallest magnitudes are masked at the beginning and after every
    `every` steps, n times more; after k * every steps the sparsity is s + (s_0 - s) (1 - k / n)^3, with s the target
    and s_0 `initial_sparsity`. finetune: `finetune_epochs` with the last mask. What is masked stays masked; the
    optimiser keeps its state but for that of masked weights, which is zeroed. The learning rate is one half-cosine over
    the whole run.

    total_steps: the optimiser steps of the whole run, from which the steps of the phase "prune" follow by the share of
    its epochs, and n = steps // every. every: 0 spreads 100 prunings over the phase, or one a step where it is shorter.
    Per-layer sparsities follow the same curve, each to its own target and from no more than that; where the rounding of
    a layer's count would fall as the total rises, it stays, and another layer has as many fewer zeros. The mask of the
    full target is in force when "finetune" begins, also where fewer steps were taken than total_steps said. The other
    arguments are those of `Options`.
    """

    name = "gmp"
    one_schedule = True
    works_in_steps = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: Sparsity,
        pretrain_epochs: int = 20,
        prune_epochs: int = 60,
        finetune_epochs: int = 20,
        *,
        total_steps: int,
        every: int = 0,
        initial_sparsity: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        lengths = {"pretrain_epochs": pretrain_epochs, "prune_epochs": prune_epochs, "finetune_epochs": finetune_epochs}
        epochs("GMP", **lengths, every=every)
        length = phase_steps("GMP", total_steps, list(lengths.values()))[1]
        if every > length > 0:
            raise ValueError(
                f"GMP: every is {every}, but of the {total_steps} steps the {prune_epochs} prune_epochs have {length}: "
                "no pruning would fall into them"
            )
        target = Budget(sparsity).sparsity
        highest = max(target.values(), default=0) if isinstance(target, Mapping) else target
        if not (isinstance(initial_sparsity, int | float) and 0 <= initial_sparsity <= highest):
            raise ValueError(
                f"GMP: initial_sparsity is {initial_sparsity!r}, expected a number from 0 to the target of {highest}"
            )
        self.every = every or max(1, length // PRUNINGS)
        self.prunings = length // self.every
        self.initial = initial_sparsity
        self._began = 0  # steps before the phase "prune"
        self._pruned = False  # the mask of the full target is in force
        course = [("pretrain", pretrain_epochs), ("prune", prune_epochs), ("finetune", finetune_epochs)]
        super().__init__(model, optimizer, sparsity, course, **options)
        self._start()

    @classmethod
    def for_epochs(cls, epochs: int) -> dict[str, int]:
        """A fifth of the epochs dense, three fifths pruning, the rest with the last mask."""
        pretrain, prune = epochs // 5, 3 * epochs // 5
        return {"pretrain_epochs": pretrain, "prune_epochs": prune, "finetune_epochs": epochs - pretrain - prune}

    def sparsity_after(self, prunings: int) -> Sparsity:
        """The sparsity in force after this many of the n prunings that follow the first."""
        share = prunings / self.prunings if self.prunings else 1.0
        target = self.budget.sparsity
        if isinstance(target, Mapping):
            return {name: cubic(min(self.initial, final), final, share) for name, final in target.items()}
        return cubic(self.initial, target, share)

    def _enter(self, phase: str) -> None:
        if phase == "prune":
            self._began = self.sweep.steps
            self._prune_to(0)
        elif phase == "finetune" and not self._pruned:
            self._prune_to(self.prunings)

    def _after_step(self) -> None:
        done, odd = divmod(self.sweep.steps - self._began, self.every)
        if self.phase == "prune" and not odd and not self._pruned:
            self._prune_to(done)

    def _prune_to(self, prunings: int) -> None:
        """Mask the smallest magnitudes: first what is masked, which stays so, then live weights that happen to be 0."""
        self._pruned = prunings == self.prunings
        scores = {name: w.detach() for name, w in self.weights.items()}
        for name, mask in self.masks.items():
            live = scores[name].abs().clamp_min(torch.finfo(scores[name].dtype).tiny)
            scores[name] = torch.where(mask.to_dense(), live, 0)
        masks = dataclasses.replace(self.budget, sparsity=self.sparsity_after(prunings)).masks(scores)
        masks = self._none_revived(masks, scores)
        self._prune(masks, reset=False, last=self._pruned)

    def _none_revived(self, masks: dict[str, PackedMask], scores: dict[str, Tensor]) -> dict[str, PackedMask]:
        """These masks, with no fewer zeros in any layer than are masked already, and the same in all.

        As the total grows, rounding it layer by layer (or keeping min_nonzeros) can give a layer fewer zeros.
        """
        masked = {name: mask.zeros for name, mask in self.masks.items()}
        if all(masks[name].zeros >= zeros for name, zeros in masked.items()):
            return masks
        wanted = raised([mask.zeros for mask in masks.values()], [masked[name] for name in masks])
        shares = [zeros / max(1, mask.numel) for zeros, mask in zip(wanted, masks.values(), strict=True)]
        return dict(zip(masks, magnitude_mask([scores[name] for name in masks], shares), strict=True))

    def _settings(self) -> dict[str, Any]:
        own = {"every": self.every, "prunings": self.prunings, "initial_sparsity": self.initial}
        return dict(self.course) | own

    def _method_state(self) -> dict[str, Any]:
        return {"began": self._began, "pruned": self._pruned}

    def _load_method_state(self, state: dict[str, Any]) -> None:
        self._began, self._pruned = state["began"], state["pruned"]
