"""Radix selection and packed masks of the Triton kernels against a stable sort."""

import math

import pytest
import torch

pytest.importorskip("triton")

from sparse_ops import tables
from sparse_ops.kernels.kth_magnitude import kth_magnitude
from sparse_ops.kernels.magnitude_mask import magnitude_mask
from sparse_ops.reference.apply_masks import unpack_bits

SIZES = [1500, 0, 1, 4100, 17]


def normal(dtype, rng):
    return [torch.randn(n, generator=rng).to(dtype) for n in SIZES]


def tied(dtype, rng):
    return [(torch.randint(-3, 4, (n,), generator=rng) * 0.25).to(dtype) for n in SIZES]


def all_equal(dtype, rng):
    return [torch.full((n,), -0.5, dtype=dtype) for n in SIZES]


def extreme(dtype, rng):
    """Zeros of both signs, denormals, infinity, the largest number."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps
    choices = torch.tensor([0.0, -0.0, tiny, -3 * tiny, info.smallest_normal, info.max, -math.inf, 1.0], dtype=dtype)
    return [choices[torch.randint(0, len(choices), (n,), generator=rng)] for n in SIZES]


def mixed(dtype, rng):
    return [
        t.to(d) for t, d in zip(tied(dtype, rng), [torch.bfloat16, dtype, dtype, torch.float16, dtype], strict=True)
    ]


def buffers(tensors, masks, k, dtype, device, chunk=2048):
    plan = tables.plan(tensors, masks=masks, scopes=[0] * len(tensors), chunk=chunk)
    return (
        plan,
        plan.histograms(1, dtype),
        torch.tensor([k], device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
    )


def select(tensors, k, dtype, device):
    plan, histograms, ranks, nan = buffers(tensors, [], k, dtype, device)
    out = torch.full((), 7.0, dtype=dtype, device=device)
    kth_magnitude(plan, histograms, ranks, nan, out)
    return out


@pytest.mark.parametrize("make", [normal, extreme])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_kth_magnitude(make, dtype, device):
    tensors = [t.to(device) for t in make(dtype, torch.Generator().manual_seed(0))]
    ordered = torch.cat(tensors).abs().sort().values
    for k in (1, 2800, sum(SIZES)):
        got = select(tensors, k, dtype, device)
        assert torch.equal(got, ordered[k - 1]) and not torch.signbit(got)


def test_a_nan_anywhere_gives_nan(device):
    tensors = [t.to(device) for t in normal(torch.float32, torch.Generator().manual_seed(0))]
    tensors[3][4000] = math.nan
    assert select(tensors, 1, torch.float32, device).isnan()


@pytest.mark.parametrize("prune_ties", [False, True])
@pytest.mark.parametrize("make", [tied, all_equal, extreme, mixed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_magnitude_mask(make, dtype, prune_ties, device):
    tensors = [t.to(device) for t in make(dtype, torch.Generator().manual_seed(1))]
    a = torch.cat([t.to(dtype) for t in tensors]).abs()
    zeros = 3001
    order = a.flip(0).argsort(stable=True)  # of equal ones the last comes first
    want = torch.ones(len(a), dtype=torch.bool, device=device)
    want[len(a) - 1 - order[:zeros]] = False
    if prune_ties:
        want &= a > a.sort().values[zeros - 1]

    masks = [torch.full(((n + 7) // 8,), 0xAA, dtype=torch.uint8, device=device) for n in SIZES]
    plan, histograms, ranks, nan = buffers(tensors, masks, zeros, dtype, device)
    ties = torch.full((plan.chunk_scopes.numel(),), -(2**60), dtype=torch.int64, device=device)
    magnitude_mask(plan, histograms, ranks, nan, ties, prune_ties)
    got = [unpack_bits(m, n) for m, n in zip(masks, SIZES, strict=True)]
    assert torch.equal(torch.cat(got), want)
    for mask, n in zip(masks, SIZES, strict=True):
        assert unpack_bits(mask, len(mask) * 8)[n:].all(), "padded with ones"
    assert nan.item() == 0
