"""The op sparse_ops::soft_threshold and its gradient: weights shrunk towards zero by one threshold a group."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sparse_ops import checks, extension, launch
from sparse_ops.reference import soft_threshold as reference

Leaky = Literal["relu", "elu"]

torch.library.define(
    "sparse_ops::soft_threshold", "(Tensor weight, Tensor thresholds, bool relative, bool elu) -> (Tensor, Tensor)"
)
torch.library.define(
    "sparse_ops::soft_threshold_backward",
    "(Tensor grad, Tensor weight, Tensor levels, bool relative, bool elu) -> (Tensor, Tensor)",
)


def _in_storage(weight: Tensor, groups: int) -> Tensor:
    """The weight, or a contiguous copy where a group is not one run of its memory."""
    if not checks.is_dense(weight):
        return weight.contiguous()
    rows = groups == 1 or weight.numel() == 0 or weight.stride(0) == weight.numel() // weight.shape[0]
    return weight if rows else weight.contiguous()


def _outputs(weight: Tensor, thresholds: Tensor, relative: bool, elu: bool) -> tuple[Tensor, Tensor]:
    """Check the operands and allocate (y, levels): the first half of the op and all of its fake."""
    for name, t in (("weight", weight), ("thresholds", thresholds)):
        if t.dtype not in checks.FLOATS:
            raise TypeError(f"soft_threshold: {name} is {t.dtype}, expected a floating point tensor")
    if thresholds.device != weight.device:
        raise ValueError(f"soft_threshold: weight is on {weight.device}, thresholds on {thresholds.device}")
    groups = thresholds.numel()
    if groups != 1 and (weight.dim() == 0 or groups != weight.shape[0]):
        raise ValueError(
            f"soft_threshold: {groups} thresholds for a weight of shape {tuple(weight.shape)}, expected one, or one "
            "for each of its first dimension"
        )
    w = _in_storage(weight, groups)
    y = torch.empty_strided(w.shape, w.stride(), dtype=w.dtype, device=w.device)
    return y, weight.new_empty(groups, 3, dtype=torch.float64)


@torch.library.register_fake("sparse_ops::soft_threshold")
def _fake(weight: Tensor, thresholds: Tensor, relative: bool, elu: bool) -> tuple[Tensor, Tensor]:
    return _outputs(weight, thresholds, relative, elu)


@torch.library.impl("sparse_ops::soft_threshold", ("cpu", "cuda"))
def _soft_threshold(weight: Tensor, thresholds: Tensor, relative: bool, elu: bool) -> tuple[Tensor, Tensor]:
    y, levels = _outputs(weight, thresholds, relative, elu)
    w, given = _in_storage(weight, levels.shape[0]), thresholds.reshape(-1).double().contiguous()
    match launch.backend(weight.device):
        case "native":
            extension.native().soft_threshold(w, given, relative, y, levels)
        case "triton":
            from sparse_ops.kernels import soft_threshold as kernel

            with launch.on(weight.device):
                work = levels.new_empty(kernel.programs(w.numel(), levels.shape[0]))
                kernel.soft_threshold(w, given, relative, y, levels, work)
        case "reference":
            levels.copy_(reference.levels(weight, given, relative))
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            y.copy_(reference.soft_threshold(weight.to(wide), levels[:, 0].to(wide)))
    return y, levels


def _gradients(grad: Tensor, weight: Tensor, levels: Tensor, relative: bool, elu: bool) -> tuple[Tensor, Tensor]:
    """Check the operands and allocate (gradient by the weight, by each group's threshold in force)."""
    if grad.dtype != weight.dtype or grad.shape != weight.shape:
        raise ValueError(
            f"soft_threshold: the gradient is {grad.dtype} {tuple(grad.shape)}, the weight {weight.dtype} "
            f"{tuple(weight.shape)}"
        )
    w = _in_storage(weight, levels.shape[0])
    return torch.empty_strided(w.shape, w.stride(), dtype=w.dtype, device=w.device), levels.new_empty(levels.shape[0])


@torch.library.register_fake("sparse_ops::soft_threshold_backward")
def _fake_backward(grad: Tensor, weight: Tensor, levels: Tensor, relative: bool, elu: bool) -> tuple[Tensor, Tensor]:
    return _gradients(grad, weight, levels, relative, elu)


@torch.library.impl("sparse_ops::soft_threshold_backward", ("cpu", "cuda"))
def _soft_threshold_backward(
    grad: Tensor, weight: Tensor, levels: Tensor, relative: bool, elu: bool
) -> tuple[Tensor, Tensor]:
    grad_weight, sums = _gradients(grad, weight, levels, relative, elu)
    w = _in_storage(weight, sums.numel())
    dy = checks.like_storage(grad, w)
    match launch.backend(weight.device):
        case "native":
            extension.native().soft_threshold_backward(dy, w, levels, relative, elu, grad_weight, sums)
        case "triton":
            from sparse_ops.kernels import soft_threshold as kernel

            with launch.on(weight.device):
                work = levels.new_empty(kernel.programs(w.numel(), levels.shape[0]))
                kernel.soft_threshold_backward(dy, w, levels, relative, elu, grad_weight, sums, work)
        case "reference":
            for out, value in zip(
                (grad_weight, sums), reference.soft_threshold_backward(grad, weight, levels, elu), strict=True
            ):
                out.copy_(value)
    return grad_weight, sums


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    weight, thresholds, ctx.relative, ctx.elu = inputs
    ctx.save_for_backward(weight, output[1])
    ctx.shape, ctx.dtype = thresholds.shape, thresholds.dtype
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    weight, levels = ctx.saved_tensors
    grad_weight, sums = torch.ops.sparse_ops.soft_threshold_backward(grad, weight, levels, ctx.relative, ctx.elu)
    return grad_weight, (sums * levels[:, 2]).reshape(ctx.shape).to(ctx.dtype), None, None


def _backward_twice(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "soft_threshold: the gradient has no gradient of its own, but the backward pass of a graph made with "
        "create_graph=True asks for it"
    )


torch.library.register_autograd("sparse_ops::soft_threshold", _backward, setup_context=_setup_context)
torch.library.register_autograd("sparse_ops::soft_threshold_backward", _backward_twice)


def soft_threshold(weight: Tensor, thresholds: Tensor, relative: bool = False, leaky: Leaky = "relu") -> Tensor:
    """y = sign(w) relu(|w| - t_g) with one threshold t_g >= 0 a group; exact zeros where |w| <= t_g, sign(0) = 0.

    weight: any shape, float16, bfloat16, float32 or float64, computed in float32 (float64). thresholds: one for the
    whole tensor, or one for each of its first dimension (a filter), of any floating dtype. relative: t_g =
    thresholds[g] * sum |w| over the group. Differentiable once in both; with d_g = -sum over the group of
    dy sign(w) [|w| > t_g]: dw = dy [|w| > t_g], dt_g = d_g; relative: dw + thresholds[g] d_g sign(w), and d_g sum |w|.
    leaky="elu": where [|w| > t_g] would be 0 it is exp(|w| - t_g), so that dead weights come back. Sums are float64
    over chunks of fixed size in fixed order: the same bits for any number of threads. Of STR (arXiv 2002.03231) and
    differentiable sparsification (arXiv 1910.03201). ValueError for another number of thresholds, devices that differ,
    a wrong leaky; TypeError for integers.
    """
    if leaky not in get_args(Leaky):
        raise ValueError(f"soft_threshold: leaky is {leaky!r}; it may be one of {', '.join(get_args(Leaky))}")
    return torch.ops.sparse_ops.soft_threshold(weight, thresholds, relative, leaky == "elu")[0]
