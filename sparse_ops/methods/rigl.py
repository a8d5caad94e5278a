"""RigL: sparse from the first step to the last; the smallest weights give way to others where the gradient is largest.

Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery: Making All Tickets Winners, ICML 2020, arXiv 1911.11134.
"""

import math
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn

from sparse_ops.masks import PackedMask
from sparse_ops.methods.arguments import epochs, one_of, shares
from sparse_ops.methods.budget import Sparsity
from sparse_ops.methods.drop_and_grow import drop_and_grow
from sparse_ops.methods.execution import RunsSparse, SparseRunOptions
from sparse_ops.methods.schedules import half_cosine, phase_steps

CHANGES = 10  # of the mask, at least, in a run that is fitted


class RigL(RunsSparse):
    """Sparse training with a mask that moves, from a random one that has the budget's zeros.

    Every `delta_t` steps before step `t_end` * total_steps, the first of all among them, the mask is changed in place
    of the weights: in each layer the fraction f of its n live weights with the smallest magnitudes is dropped,
    int(f n) of them, and as many grow where the gradient of all weights is largest, of those just dropped too (these go
    on as if nothing had been). New weights and their optimiser state are zero. f is alpha (1 + cos(pi t / T)) / 2 in
    step t with T = t_end * total_steps (anneal="cosine", RigL's own) or alpha (anneal="constant", SET's own). Each
    layer keeps its number of weights. The learning rate is one half-cosine over the whole run.

    total_steps: the optimiser steps of the whole run of `total_epochs`. The start mask is drawn from a generator that
    takes its seed from torch's. scope: "erk" unless the sparsity is given layer by layer; with "global" the start mask
    is drawn from all weights together. fit: a tenth of the steps before `t_end` takes the place of a longer `delta_t`,
    so that the mask of a short run changes ten times too. execution="sparse": layers run sparse but in the steps that
    change the mask, with the same result to rounding. The other arguments are those of `Options`.
    """

    name = "rigl"
    one_schedule = True
    defaults: ClassVar[SparseRunOptions] = {**RunsSparse.defaults, "scope": "erk"}
    works_in_steps = True
    own_anneal: ClassVar[str] = "cosine"

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: Sparsity,
        total_epochs: int = 100,
        *,
        total_steps: int,
        alpha: float = 0.3,
        delta_t: int = 100,
        t_end: float = 0.75,
        anneal: Literal["method", "cosine", "constant"] = "method",
        fit: bool = False,
        **options: Unpack[SparseRunOptions],
    ) -> None:
        epochs(self._title, total_epochs=total_epochs, delta_t=delta_t)
        phase_steps(self._title, total_steps, [total_epochs])
        if delta_t < 2:
            raise ValueError(
                f"{self._title}: delta_t is {delta_t}, expected 2 or more: a step that changes the mask changes no "
                "weight"
            )
        shares(self._title, alpha=alpha, t_end=t_end)
        one_of(self._title, "anneal", anneal, ("method", "cosine", "constant"))
        self.alpha, self.end_step = float(alpha), math.floor(t_end * total_steps + 0.5)
        self.delta_t = min(delta_t, max(2, self.end_step // CHANGES)) if fit else delta_t
        if not fit and t_end > 0 and delta_t > total_steps > 0:
            most = self.end_step - 1
            why = f"at most {most} lets it change again" if most >= 2 else "t_end=0 says that it shall stay"
            raise ValueError(
                f"{self._title}: delta_t is {delta_t}, but the run has {total_steps} steps: the mask would change in "
                f"the first one alone; {why}, fit=True takes a value that fits"
            )
        self.anneal = self.own_anneal if anneal == "method" else anneal
        self._random = torch.Generator().manual_seed(int(torch.randint(2**62, ()).item()))
        super().__init__(model, optimizer, sparsity, [("train", total_epochs)], **options)
        self._start()

    @classmethod
    def for_epochs(cls, epochs: int) -> dict[str, int]:
        """All epochs alike, with a `delta_t` that fits."""
        return {"total_epochs": epochs, "fit": True}

    def drop_fraction(self, step: int) -> float:
        """The share of a layer's live weights that a change of the mask in this step drops; steps count from 0."""
        if step >= self.end_step:
            return 0.0
        return self.alpha * (half_cosine(step, self.end_step) if self.anneal == "cosine" else 1.0)

    def changes_mask(self, step: int) -> bool:
        """True where this step changes the mask and leaves the weights alone."""
        return step < self.end_step and step % self.delta_t == 0 and bool(self.masks)

    def metrics(self) -> dict[str, float]:
        """Those of every method, and drop_fraction, f of the last step."""
        last = self.sweep.steps - 1
        return super().metrics() | ({"drop_fraction": self.drop_fraction(last)} if last >= 0 else {})

    def add_penalty_grad_(self, grad_scale: Tensor | None = None) -> None:
        """Zero the gradients of masked weights now, for clipping, except before a step that needs them for the mask."""
        if not self.changes_mask(self.sweep.steps):
            super().add_penalty_grad_(grad_scale)

    def _enter(self, phase: str) -> None:
        chances = {name: self._chances(weight) for name, weight in self.weights.items()}
        self._prune(self.budget.masks(chances), reset=False)
        self._after_step()

    def _before_step(self) -> bool:
        step = self.sweep.steps
        if not self.changes_mask(step):
            return True
        fraction, masks = self.drop_fraction(step), dict(self.masks)
        for name, mask in masks.items():
            weight = self.weights[name]
            if weight.grad is None:  # the layer took no part in this step
                continue
            masks[name] = PackedMask.from_dense(
                drop_and_grow(weight.detach(), mask.to_dense(), self._growth(name, weight), fraction)
            )
        self._prune(masks, reset=False, last=step + self.delta_t >= self.end_step)
        return False

    def _after_step(self) -> None:
        if self.changes_mask(self.sweep.steps):
            self._run_dense()
        else:
            self._run_sparse()

    def _growth(self, name: str, weight: nn.Parameter) -> Tensor:
        """What the new weights are chosen by, of the weight's shape: the largest magnitudes grow."""
        grad = weight.grad
        assert grad is not None
        bad = grad[~torch.isfinite(grad)]
        if bad.numel():
            raise ValueError(
                f"{self._title}: the gradient of {name} holds {bad.numel()} non-finite values ({bad[0].item()}) in "
                f"step {self.sweep.steps + 1}, which chooses weights by it"
            )
        return grad

    def _chances(self, weight: Tensor) -> Tensor:
        """Random numbers of the weight's shape and strides, drawn on the CPU in the order of its indices."""
        drawn = torch.rand(weight.shape, generator=self._random)
        return torch.empty_like(weight, dtype=torch.float32, requires_grad=False).copy_(drawn)

    def _settings(self) -> dict[str, Any]:
        own = {"alpha": self.alpha, "anneal": self.anneal, "delta_t": self.delta_t, "end_step": self.end_step}
        return own | {"total_epochs": self.total_epochs}

    def _method_state(self) -> dict[str, Any]:
        return {"random": self._random.get_state()}

    def _load_method_state(self, state: dict[str, Any]) -> None:
        self._random.set_state(state["random"].cpu())
