"""The op sparse_ops::kth_magnitude: the exact k-th smallest magnitude of a list of tensors."""

import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from sparse_ops import checks, extension, launch, tables
from sparse_ops.reference import kth_magnitude as reference

torch.library.define("sparse_ops::kth_magnitude", "(Tensor[] tensors, SymInt k) -> Tensor")


def _output(tensors: list[Tensor], k: int) -> Tensor:
    """Check the operands and allocate the result: the first half of the op and all of its fake."""
    checks.floating("kth_magnitude", "tensors", tensors)
    checks.same_device("kth_magnitude", "tensors", tensors)
    n = sum(t.numel() for t in tensors)
    if not 1 <= k <= n:
        raise ValueError(f"kth_magnitude: k is {k}, expected 1 to {n}, the number of elements of all tensors")
    return tensors[0].new_empty((), dtype=reference.promoted_dtype(tensors))


@torch.library.register_fake("sparse_ops::kth_magnitude")
def _fake(tensors: list[Tensor], k: int) -> Tensor:
    return _output(tensors, k)


@torch.library.impl("sparse_ops::kth_magnitude", ("cpu", "cuda"))
def _kth_magnitude(tensors: list[Tensor], k: int) -> Tensor:
    out = _output(tensors, k)
    match launch.backend(out.device):
        case "native":
            extension.native().kth_magnitude([checks.dense(t) for t in tensors], k, out)
            return out
        case "triton":
            from sparse_ops.kernels import kth_magnitude as kernel

            with launch.on(out.device):
                dense = [checks.dense(t) for t in tensors]
                plan = tables.plan(dense, scopes=[0] * len(dense))
                nan = torch.zeros(1, dtype=torch.int32, device=out.device)
                kernel.kth_magnitude(plan, plan.histograms(1, out.dtype), tables.integers([k], out.device), nan, out)
            return out
        case "reference":
            return reference.kth_magnitude(tensors, k)


def kth_magnitude(tensors: Iterable[Tensor], k: int) -> Tensor:
    """The k-th smallest of |w| over all tensors together, exactly: sort(cat(|w|))[k - 1], without the sort or the cat.

    tensors: any shapes and strides, float16, bfloat16, float32 or float64, on one device; k: 1 (the smallest) to the
    number of elements. Returns a 0-dim tensor on that device in the promoted dtype, NaN where any element is NaN. -0.0
    counts as 0, denormals as what they are. Not differentiable. Raises ValueError for k out of range, TypeError for
    other dtypes and a k that is no integer.
    """
    if not isinstance(k, torch.SymInt):
        try:
            k = operator.index(k)
        except TypeError:
            raise TypeError(f"kth_magnitude: k is {k!r}, expected an integer") from None
    detached = [t.detach() for t in checks.tensor_list("kth_magnitude", "tensors", tensors)]
    return torch.ops.sparse_ops.kth_magnitude(detached, k)
