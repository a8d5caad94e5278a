"""Products with a sparse weight under the transforms of torch.func and in forward-mode AD.

`torch.library.register_autograd` gives an op a backward pass and nothing else: torch.func.grad refuses such an op, and
for torch.func.jvp it is a constant, whose tangent is 0 without a word. There the same formulas go into an
autograd.Function, which has rules for tangents and batches too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.nn import functional as F

from sparse_ops import checks

# (arguments, the dimension of each that is a batch or None) -> (arguments of one call, how its result is batched)
Fold = Callable[[list[Any], list[int | None]], tuple[list[Any], Callable[[Tensor], tuple[Tensor, int]]] | None]


@dataclass(frozen=True, eq=False)
class Rule:
    """An op that is linear in each of two arguments, both of them tensors.

    op: the registered op; call: the public function over it; plain: the reference with the arguments of op.
    setup_context, backward: as register_autograd has them.
    linear: the two positions. fold: how a batch becomes one call, None where it does not; then it is a call for each.
    """

    name: str
    op: Callable[..., Tensor]
    call: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    setup_context: Callable[..., None]
    backward: Callable[..., tuple[Any, ...]]
    linear: tuple[int, int]
    fold: Fold


def apply(rule: Rule, *arguments: Any) -> Tensor:
    """rule.op(*arguments), all of its arguments given, for any transform and any level of forward-mode AD.

    torch.compile takes no autograd.Function inside a transform; ops of torch with the weight made dense it does.
    """
    if torch.compiler.is_compiling():
        return rule.plain(*arguments)
    levels = torch._C._functorch.get_interpreter_stack() or []
    functional = [level.key() == TransformType.Functionalize for level in levels]
    if levels and all(functional):
        return rule.op(*arguments)
    if any(functional):
        raise NotImplementedError(f"{rule.name}: torch.func.functionalize around or inside another transform")
    return _Function.apply(*arguments, rule)


def finish(name: str, y: Tensor, dim: int, bias: Tensor | None, addend: Tensor | None, activation: str) -> Tensor:
    """activation(y + bias along dim + addend) by ops of torch, which have rules of their own.

    In half precision each of them rounds, where the kernels round once.
    """
    operands = {"the product": y} | {n: t for n, t in (("bias", bias), ("addend", addend)) if t is not None}
    checks.one_float_dtype(name, operands)
    if bias is not None:
        if bias.shape != (y.shape[dim],):
            raise ValueError(f"{name}: bias is {tuple(bias.shape)}, expected ({y.shape[dim]},)")
        y = y + bias.view(-1, *[1] * (y.dim() - 1 - dim))
    if addend is not None:
        if addend.shape != y.shape:
            raise ValueError(f"{name}: addend is {tuple(addend.shape)}, expected {tuple(y.shape)}")
        y = y + addend
    match activation:
        case "none":
            return y
        case "relu":
            return torch.relu(y)
        case "gelu":
            return F.gelu(y)
    raise ValueError(f"{name}: activation is {activation!r}; it may be one of none, relu, gelu")


class _Function(torch.autograd.Function):
    """forward(*arguments of the op, rule)."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        *arguments, rule = inputs
        y: Tensor = rule.op(*arguments)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *arguments, ctx.rule = inputs
        ctx.rule.setup_context(ctx, tuple(arguments), output)
        ctx.set_materialize_grads(False)
        ctx.places = [i for i, a in enumerate(arguments) if isinstance(a, Tensor)]
        ctx.fixed = [None if isinstance(a, Tensor) else a for a in arguments]
        ctx.save_for_forward(*[arguments[i] for i in ctx.places])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * (len(ctx.fixed) + 1)
        return *ctx.rule.backward(ctx, dy), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        arguments = list(ctx.fixed)
        for i, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            arguments[i] = tensor
        one, *more = [
            ctx.rule.call(*arguments[:i], tangents[i], *arguments[i + 1 :])
            for i in ctx.rule.linear
            if tangents[i] is not None
        ]
        return one + more[0] if more else one

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        *arguments, rule = inputs
        dims = [d if isinstance(a, Tensor) else None for a, d in zip(arguments, in_dims[:-1], strict=True)]
        if (folded := rule.fold(arguments, dims)) is not None:
            together, unfold = folded
            batched: tuple[Tensor, int] = unfold(rule.call(*together))
            return batched
        each = [
            rule.call(*(a if d is None else a.select(d, i) for a, d in zip(arguments, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return torch.stack(each), 0


def fold_images(arguments: list[Any], dims: list[int | None]) -> Any:
    """Fold of an op on images, its first argument, that gives images: several batches are one."""
    images, dim = arguments[0], dims[0]
    if dim is None or any(d is not None for d in dims[1:]):
        return None
    images = images.movedim(dim, 0)
    return [images.flatten(0, 1), *arguments[1:]], lambda y: (y.unflatten(0, images.shape[:2]), 0)


def no_fold(arguments: list[Any], dims: list[int | None]) -> None:
    """Fold of an op that sums over the batch."""
    return
