"""BoundSgd: a step of regularized_sgd_ over lists that C++ keeps, so that only the gradients are handed over."""

import weakref

import torch
from torch import Tensor

from sparse_ops import extension
from sparse_ops.ops import regularized_sgd


class BoundSgd:
    """Weights on the CPU, their momenta, masks, group bits and scopes, for the C++ kernel alone.

    Handing a list to the dispatcher costs 0.13 us a tensor, and a small network's step is little else. The tensors are
    torch's own: where they lie, their shapes and types are read and checked at each step, so that `.data` may change.
    They are held until this object goes: `torch.utils.swap_tensors` refuses them until then.
    """

    def __init__(
        self,
        weights: list[Tensor],
        momenta: list[Tensor],
        masks: list[Tensor],
        groups: list[Tensor],
        scopes: list[int],
    ) -> None:
        self.weights, self.momenta = list(weights), list(momenta)
        self._scopes = scopes
        self._changed = [*weights, *momenta]
        kernels = extension.native()
        self._step = kernels.bound_sgd_.default
        self._number = kernels.sweep_bind(weights, momenta, masks, groups, scopes)
        weakref.finalize(self, kernels.sweep_release.default, self._number).atexit = False

    def step(
        self,
        grads: list[Tensor],
        coefficients: Tensor,
        brackets: Tensor,
        statistics: Tensor,
        candidates: Tensor,
        *,
        penalty: str,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
        maximize: bool,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> bool:
        """As regularized_sgd_ after its first step. False, and nothing has happened, where a tensor is not plain.

        Then regularized_sgd_ says which, or copies what lies otherwise.
        """
        regularized_sgd.check(
            self.weights, grads, self.momenta, [], [], self._scopes, coefficients, brackets, statistics, candidates,
            penalty, lr, momentum, dampening, weight_decay, nesterov, maximize, False, None, grad_scale, found_inf,
            tensors=False,
        )  # fmt: skip
        if not self._step(
            self._number, grads, coefficients, brackets, statistics, candidates, penalty, lr, momentum, dampening,
            weight_decay, nesterov, maximize, grad_scale, found_inf,
        ):  # fmt: skip
            return False
        torch.autograd.graph.increment_version([*self._changed, statistics, candidates])
        return True
