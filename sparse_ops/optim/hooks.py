"""attach: gives an optimiser a sweep, inside its step where it has one, by step hooks where it has not."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from sparse_ops.optim.fused import SweepInside
from sparse_ops.optim.sweep import Sweep

_MARK = "_sparse_ops_attachment"


class Attachment:
    """A sweep on an optimiser, until `detach`."""

    def __init__(self, optimizer: torch.optim.Optimizer, sweep: Sweep) -> None:
        self.optimizer, self.sweep = optimizer, sweep
        self._skips, self._begun = False, False
        self._put_aside: list[tuple[torch.Tensor, torch.Tensor]] = []  # gradients of a step without an update
        self._handles: list[Any] = []
        if isinstance(optimizer, SweepInside):
            optimizer.sweep = sweep
        else:
            self._handles = [
                optimizer.register_step_pre_hook(self._before),
                optimizer.register_step_post_hook(self._after),
            ]
        sweep.optimizer = optimizer
        setattr(optimizer, _MARK, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Attachment":
        """The copied sweep on the copied optimiser: a copy of a sparsifier goes on pruning its own network."""
        memo[id(self)] = made = Attachment(copy.deepcopy(self.optimizer, memo), copy.deepcopy(self.sweep, memo))
        return made

    def detach(self) -> None:
        """Take the sweep off again; the optimiser goes on as before."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.sweep.forget_added()
        if isinstance(self.optimizer, SweepInside):
            self.optimizer.sweep = None
        if getattr(self.optimizer, _MARK, None) is self:
            delattr(self.optimizer, _MARK)

    @torch.no_grad()
    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Bring the penalty into the gradients, or into each evaluation of a closure."""
        found_inf = getattr(optimizer, "found_inf", None)
        here = found_inf is not None and (found_inf.device.type == "cpu" or self.sweep.hooks is not None)
        self._skips = here and found_inf.item() != 0  # type: ignore[union-attr]
        if self._skips:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            if self._begins():
                self.sweep.join_gradients(getattr(optimizer, "grad_scale", None))
            return None
        self._begun = False
        wrapped = self._wrap(closure)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _wrap(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def with_penalty() -> Any:
            self.sweep.forget_added()
            loss = closure()
            with torch.no_grad():
                if self._begun or self._begins():
                    self.sweep.join_gradients()
            return loss

        return with_penalty

    def _begins(self) -> bool:
        """Begin the sweep's step; False, with the gradients put aside, where a method leaves the weights alone."""
        self._begun = self.sweep.begin_step()
        if not self._begun:
            held = [p for group in self.optimizer.param_groups for p in group["params"]]
            self._put_aside = [(p, p.grad) for p in held if p.grad is not None]
            for p, _ in self._put_aside:
                p.grad = None  # what has no gradient, torch.optim passes over
        return self._begun

    @torch.no_grad()
    def _after(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Masks on weights and state, then the statistics of the new weights."""
        for p, grad in self._put_aside:
            p.grad = grad
        self._put_aside = []
        if self._skips or not self._begun:
            return
        self.sweep.mask_state(optimizer.state)
        self.sweep.observe()
        self.sweep.finish()


def check_free(optimizer: torch.optim.Optimizer) -> None:
    """ValueError where the optimiser has a sweep already."""
    if getattr(optimizer, _MARK, None) is not None:
        raise ValueError(
            f"this {type(optimizer).__name__} has a sparsifier already; call its finalize() before starting another"
        )


def attach(optimizer: torch.optim.Optimizer, sweep: Sweep) -> Attachment:
    """Put a sweep on an optimiser that updates all of the sweep's weights.

    sparse_ops.optim's optimisers take it into their own pass. Any other optimiser of torch.optim's kind gets hooks
    around `step`: before it the penalty is added to .grad (after each evaluation, for a closure) and masked gradients
    are zeroed; after it the masks are applied to the weights and to all state of their shapes, and one light pass takes
    the statistics. ValueError when the optimiser has a sweep already or does not hold one of the weights.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"the optimizer is {type(optimizer).__name__}, expected a torch.optim.Optimizer")
    if not isinstance(sweep, Sweep):
        raise TypeError(f"attach: sweep is of type {type(sweep).__name__}, expected a Sweep")
    check_free(optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, w in sweep.weights.items() if id(w) not in held]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"the optimizer does not update {missing[0]}{more}: optimizer and model do not match; give the optimizer "
            "all of model.parameters(), or leave such weights out with exclude="
        )
    return Attachment(optimizer, sweep)


def reset_state(optimizer: torch.optim.Optimizer) -> None:
    """Forget momentum and moments, as a new optimiser with the same groups would start."""
    optimizer.state.clear()


@torch.no_grad()
def zero_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Momentum buffers to zero, the rest of their state as it is; other state is forgotten.

    With dampening that is not a new optimiser: this one has begun, and dampens its next gradient. Adam's moments
    cannot be zeroed alone, since their bias correction follows the count of steps.
    """
    for parameter, state in list(optimizer.state.items()):
        if "momentum_buffer" not in state:
            del optimizer.state[parameter]
        elif state["momentum_buffer"] is not None:
            state["momentum_buffer"].zero_()
