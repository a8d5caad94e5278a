"""drop_and_grow: by hand, and against two sorts of everything."""

import numpy as np
import pytest
import torch
from method_runs import by_sorting

from sparse_ops.methods.drop_and_grow import drop_and_grow


def test_drop_and_grow_by_hand():
    weight = torch.tensor([[5.0, 0.0, -1.0], [0.0, -2.0, 3.0], [0.0, 1.0, 0.0]])
    mask = weight != 0
    growth = torch.tensor([[9.0, 1.0, -7.0], [2.0, 9.0, 9.0], [-4.0, 3.0, 4.0]])
    # of five live weights int(0.5 * 5) drop, -1 and 1; then -7 of the dropped grows, and of -4 and 4 the first
    after = drop_and_grow(weight, mask, growth, 0.5)
    assert after.tolist() == [[True, False, True], [False, True, True], [True, False, False]]
    # int(0.39 * 5) drops: of the equal magnitudes -1 and 1 the first is kept; 6 grows, whatever live weights have
    growth = torch.tensor([[0.0, 6.0, 0.0], [2.0, 9.0, 9.0], [0.0, 3.0, 0.0]])
    after = drop_and_grow(weight, mask, growth, 0.39)
    assert after.tolist() == [[True, True, True], [False, True, True], [False, False, False]]
    # all five drop, the five largest grow
    growth[1, 1:] = 0
    after = drop_and_grow(weight, mask, growth, 1.0)
    assert after.tolist() == [[True, True, True], [True, False, False], [False, True, False]]
    assert drop_and_grow(weight, mask, growth, 0.19) is mask
    everything = torch.ones(3, 3, dtype=torch.bool)
    assert torch.equal(drop_and_grow(weight, everything, growth, 1.0), everything)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_drop_and_grow_against_sorting(dtype, layout):
    rng = torch.Generator().manual_seed(0)
    for fraction in (0.0, 0.07, 0.3, 0.999, 1.0):
        for density in (0.02, 0.5, 1.0):
            mask = torch.rand(6, 5, 3, 3, generator=rng) < density
            weight = (torch.randn(mask.shape, generator=rng) * 4).round().to(dtype) * mask  # many ties, live zeros
            growth = (torch.randn(mask.shape, generator=rng) * 4).round().to(dtype)
            expected = by_sorting(weight.double().numpy(), mask.numpy(), growth.double().numpy(), fraction)
            laid = (t.to(memory_format=layout) for t in (weight, mask, growth))
            assert np.array_equal(drop_and_grow(*laid, fraction).numpy(), expected)
