"""magnitude_mask against a full lexicographic sort of (magnitude, position)."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparse_ops.ops.magnitude_mask import magnitude_mask

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def is_dense(t):
    """Every cell between the first and the last element is used once: an independent count of memory cells."""
    offsets = torch.arange(t.untyped_storage().nbytes() // t.element_size()).as_strided(t.shape, t.stride()).flatten()
    return offsets.unique().numel() == t.numel() and (t.numel() == 0 or offsets.max() - offsets.min() < t.numel())


def unpack(mask, t):
    """The mask as bools in the logical shape of t."""
    assert mask.dtype == torch.uint8 and mask.shape == ((t.numel() + 7) // 8,)
    bits = torch.from_numpy(np.unpackbits(mask.numpy(), bitorder="little")).bool()
    assert bits[t.numel() :].all(), "padding must be ones"
    bits = bits[: t.numel()]
    return bits.as_strided(t.shape, t.stride()) if is_dense(t) else bits.view(t.shape)


def check(tensors, *counts, prune_ties=False):
    """Masks with each count of zeros against one sort."""
    a = torch.cat([t.double().abs().flatten() for t in tensors]).numpy()
    order = np.lexsort((-np.arange(a.size), a))  # smallest first, of equals the last position first
    for zeros in counts:
        keep = np.ones(a.size, dtype=bool)
        keep[order[:zeros]] = False
        if prune_ties and zeros:
            keep = a > a[order[zeros - 1]]
        expected = torch.from_numpy(keep).split([t.numel() for t in tensors])
        masks = magnitude_mask(tensors, zeros, prune_ties)
        for t, mask, part in zip(tensors, masks, expected, strict=True):
            assert torch.equal(unpack(mask, t), part.view(t.shape))
        assert prune_ties or (~keep).sum() == zeros


def check_random(data, strategy):
    tensors = data.draw(strategy)
    n = sum(t.numel() for t in tensors)
    zeros = data.draw(st.sampled_from([0, 1, n, n // 2]) | st.integers(0, n))
    check(tensors, zeros, prune_ties=data.draw(st.sampled_from([False, False, True])))


@settings(max_examples=1000, **QUIET)
@given(data=st.data())
def test_random_lists_on_every_instruction_set(data, isa, adversarial_weights):
    check_random(data, adversarial_weights)


@settings(max_examples=30, **QUIET)
@given(data=st.data())
def test_random_lists_on_every_backend(data, backend, adversarial_weights):
    check_random(data, adversarial_weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_that_straddle_chunks_and_tensors(dtype, isa, adversarial_values):
    kinds, values = adversarial_values
    rng = torch.Generator().manual_seed(1)
    for kind in kinds:
        t = values(140_000, kind, dtype, rng)
        check([t[:70_000], t[70_000:70_001], t[70_001:]], 1, 69_999, 100_000, 139_999)


def test_ties_of_channels_last_follow_the_logical_index(isa):
    t = torch.full((32, 32, 8, 9), 0.5).to(memory_format=torch.channels_last)
    t[3, 5] = 1.0
    check([torch.full((3,), 0.5), t, torch.full((1000,), -0.5)], 30_000)


def test_any_number_of_threads(isa):
    t = torch.randint(-50, 50, (200_000,), generator=torch.Generator().manual_seed(3)) / 50
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            check([t], 123_456)
    finally:
        torch.set_num_threads(threads)


def test_is_a_lawful_torch_op(device, backend):
    tensors = [torch.randn(6, 5, device=device).t(), torch.randn(3, device=device, dtype=torch.float64)]
    torch.library.opcheck(torch.ops.sparse_ops.magnitude_mask.default, (tensors, 7))


def test_names_the_culprit(device, backend):
    t = torch.randn(4, device=device)
    for zeros in (-1, 5):
        with pytest.raises(ValueError, match=f"zeros is {zeros}, expected 0 to 4"):
            magnitude_mask([t], zeros)
    with pytest.raises(ValueError, match="without a single element"):
        magnitude_mask([t[:0]], 0)
    with pytest.raises(TypeError, match=r"tensors\[1\] is torch.int64"):
        magnitude_mask([t, torch.arange(3, device=device)], 1)
    bad = torch.ones(2, 3, device=device)
    bad[1, 2] = torch.nan
    for zeros in (0, 3):
        with pytest.raises(ValueError, match=r"tensors\[1\], of shape \(2, 3\), holds a NaN"):
            magnitude_mask([t, bad, bad], zeros)
