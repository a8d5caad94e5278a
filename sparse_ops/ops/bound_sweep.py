"""Steps of regularized_sgd_ and regularized_adamw_ over lists that C++ keeps: the gradients alone are handed over."""

import itertools
import weakref
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparse_ops import extension
from sparse_ops.ops import regularized_adamw, regularized_sgd


class BoundSweep:
    """Weights on the CPU, their state, masks, group bits and scopes, for the C++ kernel alone.

    Handing a list to the dispatcher costs 0.13 us a tensor, and a small network's step is little else. The tensors are
    torch's own: where they lie, their shapes and types are read and checked at each step, so that `.data` may change.
    They are held until this object goes: `torch.utils.swap_tensors` refuses them until then.

    states: lists of one tensor per weight, in the op's order. steps: one per weight, or none.
    """

    kernel: ClassVar[str]  # of torch.ops._sparse_ops_C
    rule: ClassVar[tuple[str, ...]]  # its settings, in their order

    def __init__(
        self,
        weights: list[Tensor],
        states: list[list[Tensor]],
        steps: list[Tensor],
        masks: list[Tensor],
        groups: list[Tensor],
        scopes: list[int],
    ) -> None:
        self.weights, self.states, self.steps = list(weights), list(map(list, states)), list(steps)
        self.scopes = scopes
        kept = list(itertools.chain.from_iterable(self.states))
        self._changed = [*self.weights, *kept, *self.steps]
        kernels = extension.native()
        self._kernel = getattr(kernels, self.kernel).default
        self._number = kernels.sweep_bind(self.weights, kept, self.steps, masks, groups, scopes)
        weakref.finalize(self, kernels.sweep_release.default, self._number).atexit = False

    def step(
        self,
        grads: list[Tensor],
        tables: tuple[Tensor, Tensor, Tensor, Tensor],
        *,
        penalty: str,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        **rule: float,
    ) -> bool:
        """One step of the op. False, and nothing has happened, where a tensor is not plain.

        Then the op says which, or copies what lies otherwise.
        """
        settings = [*tables, penalty, *map(rule.__getitem__, self.rule)]
        self._check(grads, settings, [grad_scale, found_inf])
        # C++ does not see that a weight was replaced by a negative view, whose memory holds the weight's negative. At
        # 0.07 us a tensor the state, which is the optimiser's own, is not looked at
        if any(map(Tensor.is_neg, self.weights)):
            return False
        if not self._kernel(self._number, grads, *settings, grad_scale, found_inf):
            return False
        torch.autograd.graph.increment_version([*self._changed, *tables[2:]])
        return True

    def _check(self, grads: list[Tensor], settings: list[Any], scaling: list[Tensor | None]) -> None:
        """The op's checks of all but the lists of tensors."""
        raise NotImplementedError


class BoundSgd(BoundSweep):
    """regularized_sgd_ with momentum, after its first step."""

    kernel = "bound_sgd_"
    rule = "lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"

    def _check(self, grads: list[Tensor], settings: list[Any], scaling: list[Tensor | None]) -> None:
        lists = [self.weights, grads, *self.states, [], []]
        regularized_sgd.check(*lists, self.scopes, *settings, False, None, *scaling, tensors=False)  # type: ignore


class BoundAdamw(BoundSweep):
    """regularized_adamw_, but that the steps are counted here, where found_inf does not skip this one."""

    kernel = "bound_adamw_"
    rule = "lr", "beta1", "beta2", "eps", "weight_decay", "maximize"

    def _check(self, grads: list[Tensor], settings: list[Any], scaling: list[Tensor | None]) -> None:
        lists = [self.weights, grads, [], [], [], self.steps, [], []]
        regularized_adamw.check(*lists, self.scopes, *settings, None, *scaling, tensors=False)  # type: ignore
