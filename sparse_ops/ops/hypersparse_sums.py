"""The op sparse_ops::hypersparse_sums: the four sums from which HyperSparse takes its normaliser."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sparse_ops import checks, extension, launch, tables
from sparse_ops.reference import hypersparse_sums as reference

torch.library.define("sparse_ops::hypersparse_sums", "(Tensor[] weights, Tensor scale) -> Tensor")


def _output(weights: list[Tensor], scale: Tensor) -> Tensor:
    """Check the operands and allocate the sums: the first half of the op and all of its fake."""
    checks.floating("hypersparse_sums", "weights", weights)
    checks.same_device("hypersparse_sums", "weights", weights)
    if scale.dtype != torch.float64 or scale.numel() != 1 or scale.device != weights[0].device:
        raise ValueError(
            f"hypersparse_sums: scale is {scale.dtype} {tuple(scale.shape)} on {scale.device}, "
            f"expected one float64 on {weights[0].device}"
        )
    return weights[0].new_empty(4, dtype=torch.float64)


@torch.library.register_fake("sparse_ops::hypersparse_sums")
def _fake(weights: list[Tensor], scale: Tensor) -> Tensor:
    return _output(weights, scale)


@torch.library.impl("sparse_ops::hypersparse_sums", ("cpu", "cuda"))
def _hypersparse_sums(weights: list[Tensor], scale: Tensor) -> Tensor:
    out = _output(weights, scale)
    match launch.backend(out.device):
        case "native":
            extension.native().hypersparse_sums([checks.dense(w) for w in weights], scale, out)
            return out
        case "triton":
            from sparse_ops.kernels import hypersparse_sums as kernel

            with launch.on(out.device):
                dense = [checks.dense(w) for w in weights]
                statistics = out.new_zeros(1, 7)
                kernel.hypersparse_sums(tables.plan(dense, scopes=[0] * len(dense)), scale, statistics)
            return out.copy_(statistics[0, :4])
        case "reference":
            return reference.hypersparse_sums(weights, scale.reshape(()))


def hypersparse_sums(weights: Iterable[Tensor], scale: Tensor) -> Tensor:
    """(4,) float64: N = sum|w|, T0 = sum tanh(s|w|), T1 = sum |w| sech^2(s|w|), T2 = sum w^2 tanh(s|w|) sech^2(s|w|).

    weights: any shapes, float16, bfloat16, float32 or float64, on one device; scale: s, one float64 on that device.
    tanh is taken in float32 (float64 for float64 weights), the sums in float64 over chunks of fixed size: the same bits
    for any number of threads. T1 and -2 T2 are the first and the second derivative of T0 in s. Not differentiable.
    """
    detached = [w.detach() for w in checks.tensor_list("hypersparse_sums", "weights", weights)]
    return torch.ops.sparse_ops.hypersparse_sums(detached, scale)
