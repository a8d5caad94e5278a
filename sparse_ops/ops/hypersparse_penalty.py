"""The op sparse_ops::hypersparse_penalty and its gradient: the penalty of HyperSparse with s and A as constants."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparse_ops import checks, extension, launch, tables
from sparse_ops.ops import hypersparse_sums  # noqa: F401  defines the op that the penalty calls
from sparse_ops.reference import hypersparse_penalty as reference

torch.library.define(
    "sparse_ops::hypersparse_penalty", "(Tensor[] weights, Tensor scale, Tensor normalizer) -> (Tensor, Tensor)"
)
torch.library.define("sparse_ops::hypersparse_penalty_backward", "(Tensor[] weights, Tensor coefficients) -> Tensor[]")


FLOAT_LIMIT = 2.0**126  # of base and strength: twice as much is finite in float32 and in bfloat16
HALF_MAX = torch.finfo(torch.float16).max


def value_dtype(weights: list[Tensor]) -> torch.dtype:
    """The dtype of a penalty: the widest among the weights', float32 at least."""
    return torch.float64 if any(w.dtype == torch.float64 for w in weights) else torch.float32


@torch.library.register_fake("sparse_ops::hypersparse_penalty")
def _fake(weights: list[Tensor], scale: Tensor, normalizer: Tensor) -> tuple[Tensor, Tensor]:
    checks.floating("hypersparse_penalty", "weights", weights)
    checks.same_device("hypersparse_penalty", "weights", weights)
    checks.one_float_dtype("hypersparse_penalty", {"scale": scale, "normalizer": normalizer})
    return scale.new_empty((), dtype=value_dtype(weights)), scale.new_empty(3, dtype=torch.float64)


@torch.library.impl("sparse_ops::hypersparse_penalty", ("cpu", "cuda"))
def _hypersparse_penalty(weights: list[Tensor], scale: Tensor, normalizer: Tensor) -> tuple[Tensor, Tensor]:
    _fake(weights, scale, normalizer)
    n, t0, _, _ = torch.ops.sparse_ops.hypersparse_sums(weights, scale).unbind()
    base = t0 / normalizer - 1
    return (n * base).to(value_dtype(weights)), torch.stack([base, scale * n / normalizer, scale])


def _grads(weights: list[Tensor], coefficients: Tensor) -> list[Tensor]:
    """Allocate the gradients, dense in memory: the first half of the op and all of its fake."""
    dense = [checks.dense(w) for w in weights]
    return [torch.empty_strided(w.shape, w.stride(), dtype=w.dtype, device=w.device) for w in dense]


@torch.library.register_fake("sparse_ops::hypersparse_penalty_backward")
def _fake_backward(weights: list[Tensor], coefficients: Tensor) -> list[Tensor]:
    return _grads(weights, coefficients)


@torch.library.impl("sparse_ops::hypersparse_penalty_backward", ("cpu", "cuda"))
def _hypersparse_penalty_backward(weights: list[Tensor], coefficients: Tensor) -> list[Tensor]:
    grads = _grads(weights, coefficients)
    match launch.backend(coefficients.device):
        case "native":
            native = extension.native()
            native.hypersparse_penalty_backward([checks.dense(w) for w in weights], coefficients, grads)
        case "triton":
            from sparse_ops.kernels import hypersparse_penalty as kernel

            with launch.on(coefficients.device):
                dense = [checks.dense(w) for w in weights]
                for table in tables.plan(dense, grads, scopes=[0] * len(dense)).tables:
                    kernel.hypersparse_penalty_backward(table, coefficients)
        case "reference":
            for grad, value in zip(grads, reference.hypersparse_penalty_backward(weights, coefficients), strict=True):
                grad.copy_(value)
    return grads


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """inputs[0] are the weights, output is (value, coefficients of the gradient)."""
    ctx.save_for_backward(*inputs[0], output[1])
    ctx.others = len(inputs) - 1


def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    """grad times the gradient, saturated; nothing for the arguments behind the weights."""
    *weights, coefficients = ctx.saved_tensors
    factors = coefficients[:2] * grad.double()
    if any(w.dtype != torch.float64 for w in weights):
        factors = factors.clamp(-FLOAT_LIMIT, FLOAT_LIMIT)
    # s stays as it is: the kernels take one that float32 cannot hold, as weights below 2e-39 need it
    factors = torch.cat([factors, coefficients[2:]])
    grads = torch.ops.sparse_ops.hypersparse_penalty_backward(weights, factors)
    for g in grads:
        if g.dtype == torch.float16:
            g.clamp_(-HALF_MAX, HALF_MAX)
    return grads, *[None] * ctx.others


def _backward_twice(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "hypersparse_penalty, hypersparse_loss: the gradient has no gradient of its own, but the backward pass of a "
        "graph made with create_graph=True asks for it; leave the penalty out of that loss"
    )


torch.library.register_autograd("sparse_ops::hypersparse_penalty", backward, setup_context=setup_context)
torch.library.register_autograd("sparse_ops::hypersparse_penalty_backward", _backward_twice)


def hypersparse_penalty(weights: Iterable[Tensor], scale: Tensor | float, normalizer: Tensor | float) -> Tensor:
    """L = (1/A) sum|w| sum tanh(s|w|) - sum|w| over all weights together, with s and A as constants.

    Differentiable once in the weights: sign(w) (T0/A - 1 + s sech^2(s|w|) ||w||_1 / A), sign(0) = 0; a second time
    raises RuntimeError. T0/A - 1 and s ||w||_1 / A saturate at 2^126 unless all weights are float64. weights: any
    shapes, float16, bfloat16, float32 or float64, on one device; scale: s, any finite number, beyond float32 too;
    normalizer: A; one number each. Returns a 0-dim tensor, float64 if any weight is, else float32. From HyperSparse
    (arXiv 2308.07163).
    """
    weights = checks.tensor_list("hypersparse_penalty", "weights", weights)
    constants = [
        torch.as_tensor(x, dtype=torch.float64, device=weights[0].device).detach().reshape(())
        for x in (scale, normalizer)
    ]
    return torch.ops.sparse_ops.hypersparse_penalty(weights, *constants)[0]
