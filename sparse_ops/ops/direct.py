"""An op's forward and backward pass as an autograd.Function of its own, where nobody watches the dispatcher.

`torch.library.register_autograd` makes such a function too, but each call of it goes through the dispatcher twice and
through Python's layers under it: 120 us on a Zen 3, as long as a layer of 512 x 512 takes for 64 samples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def recorded(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd records an op on these; its function sets up a backward pass even where nothing asks for one."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def function(
    forward: Callable[..., Tensor], setup_context: Callable[..., None], backward: Callable[..., tuple[Any, ...]]
) -> Callable[..., Tensor]:
    """The differentiable form of `forward`; setup_context and backward are those of register_autograd."""

    # torch binds the arguments by inspect.signature, 60 us, for a function that has setup_context as a method
    def forward_with_context(ctx: Any, *arguments: Any) -> Tensor:
        y = forward(*arguments)
        setup_context(ctx, arguments, y)
        return y

    methods = {"forward": staticmethod(forward_with_context), "backward": staticmethod(backward)}
    apply: Callable[..., Tensor] = type(forward.__name__, (torch.autograd.Function,), methods).apply  # type: ignore
    return apply
