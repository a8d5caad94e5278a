"""The op sparse_ops::hypersparse_loss: HyperSparse's penalty with s and A taken from the weights themselves."""

import math
import numbers
import sys
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from sparse_ops import checks
from sparse_ops.ops import hypersparse_penalty as penalty
from sparse_ops.ops import kth_magnitude  # noqa: F401  defines the op that the loss calls

torch.library.define("sparse_ops::hypersparse_loss", "(Tensor[] weights, SymInt k) -> (Tensor, Tensor)")

KNEE = 0.6585  # atanh(1 / sqrt(3)), where the third derivative of tanh is 0


@torch.library.register_fake("sparse_ops::hypersparse_loss")
def _fake(weights: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    checks.floating("hypersparse_loss", "weights", weights)
    checks.same_device("hypersparse_loss", "weights", weights)
    first = weights[0]
    return first.new_empty((), dtype=penalty.value_dtype(weights)), first.new_empty(3, dtype=torch.float64)


@torch.library.impl("sparse_ops::hypersparse_loss", ("cpu", "cuda"))
def _hypersparse_loss(weights: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    value, coefficients = _fake(weights, k)
    threshold = torch.ops.sparse_ops.kth_magnitude(weights, k).double()
    scale = KNEE / threshold
    n, t0, _, _ = torch.ops.sparse_ops.hypersparse_sums(weights, scale).unbind()
    strength = scale * n / t0
    finite = scale.isfinite() & strength.isfinite()
    torch.stack([torch.zeros_like(scale), strength, scale], out=coefficients).masked_fill_(~finite, 0.0)
    if not finite:
        _warn()
    return value.zero_(), coefficients


def _warn() -> None:
    """Warn in the name of the first frame outside torch and this package.

    The text is constant, since Python says the same text just once for each line of code.
    """
    frame, level = sys._getframe(), 1
    while frame.f_globals.get("__name__", "").partition(".")[0] in ("torch", "sparse_ops") and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(
        "hypersparse_loss: no penalty, since the magnitude at the target sparsity is 0 (more weights than that are "
        "exactly zero), or it or the sum of the magnitudes or the inverse of the two is not finite",
        stacklevel=level,
    )


torch.library.register_autograd("sparse_ops::hypersparse_loss", penalty.backward, setup_context=penalty.setup_context)


def hypersparse_loss(weights: Iterable[Tensor], sparsity: float) -> Tensor:
    """HyperSparse's penalty (arXiv 2308.07163): its value is exactly 0, its gradient is what counts.

    d/dw = sign(w) s sech^2(s|w|) ||w||_1 / A with s = 0.6585 / a_k and A = sum tanh(s|w|), where a_k is the
    (floor(sparsity n) + 1)-th smallest of the n magnitudes; s and A are constants. Add strength * hypersparse_loss(...)
    to the task's loss. weights: the prunable weights, any shapes, float16, bfloat16, float32 or float64, on one device;
    those without requires_grad count but get no gradient. sparsity: the target, in [0, 1). Returns 0 as a 0-dim tensor,
    float64 if any weight is, else float32. Gradients of half weights are computed in float32 and rounded once, to a
    relative 2^-9 in bfloat16 and 2^-12 in float16 (an absolute 2^-25 below its normal range). Weights may be subnormal.
    Too large gradients, as a subnormal a_k beside large weights gives, saturate: at 65504 in float16, at 2^126 in
    bfloat16 and float32. Where a_k is 0 or anything is not finite the gradient is 0 and a UserWarning says so, once per
    call site. Differentiable once: a second backward pass through the gradient raises RuntimeError. Raises ValueError
    for a sparsity outside [0, 1), no weights, or weights on several devices.
    """
    weights = checks.tensor_list("hypersparse_loss", "weights", weights)
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real):
        raise TypeError(f"hypersparse_loss: sparsity is {sparsity!r}, expected a number in [0, 1)")
    if not 0 <= sparsity < 1:
        raise ValueError(f"hypersparse_loss: sparsity is {sparsity}, expected 0 <= sparsity < 1")
    n = sum(w.numel() for w in weights)
    if n == 0:
        raise ValueError(f"hypersparse_loss: {len(weights)} weights without a single element")
    return torch.ops.sparse_ops.hypersparse_loss(weights, min(math.floor(sparsity * n) + 1, n))[0]
