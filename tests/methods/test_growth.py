"""Growth: how often lambda grows, when it is done, and how it is fitted to a number of steps."""

import math

import pytest
import torch

from sparse_ops.methods.growth import Growth


def test_growths_are_counted_as_float32_adds():
    """The authors' constants: 10,000 growths of 1e-4 give 1.0000535, and 1001 of 1e-5 are at least 1e-2."""
    greg1, greg2 = Growth(10, 10000, 1e-4, 1.0), Growth(10, 10000, 1e-4, 1.0, 1e-5, 1e-2)
    for growth, start_at, d, top, index in ((greg1, 0.0, 1e-4, 1.0, 1), (greg2, greg2.picked(), 1e-4, 1.0, 1)):
        lam, n = torch.full((2,), start_at), 0
        while not lam.max() > top:
            lam += d
            n += 1
        assert growth.counts[index] == n
    assert (greg1.counts, greg2.counts[0]) == ((0, 10000), 1001)
    assert (greg1.grown_after(), greg1.steps()) == (99_991, 109_991)
    assert greg2.steps() == 10 * (sum(greg2.counts) - 1) + 1 + 10000


@pytest.mark.parametrize("steps", [2, 3, 17, 100, 3000, 54_321, 109_991, 109_992, 119_001, 1_000_000])
@pytest.mark.parametrize("growth", [Growth(10, 10000, 1e-4, 1.0), Growth(10, 10000, 1e-4, 1.0, 1e-5, 1e-2)])
def test_a_growth_fits_any_number_of_steps(growth, steps):
    fitted = growth.fitted(steps)
    assert fitted.steps() == steps
    assert fitted.every == max(1, math.floor(10 * steps / growth.steps()))
    share = fitted.stabilize_steps - 10000 * steps / growth.steps()
    assert -1 <= share <= 2 * fitted.every + 0.01 * steps
    if growth.tau_pick and steps > 100:
        picking, growing = growth.counts
        assert fitted.counts[0] / sum(fitted.counts) == pytest.approx(picking / (picking + growing), rel=0.1)
    if steps == growth.steps():
        assert fitted == growth


def test_corners_of_the_growth():
    assert Growth(7, 0, 2.0, 1.0).steps() == 1  # d_lambda above tau, nothing to stabilise: one step
    assert Growth(7, 3, 2.0, 1.0).steps() == 4
    assert Growth(1, 0, 0.1, 0.05, 0.1, 0.1).counts == (1, 0)  # the picking is beyond tau already
    with pytest.raises(ValueError, match=r"d_lambda is 1e-09: tau = 1\.0 is more than a million of it"):
        Growth(1, 0, 1e-9, 1.0)
    with pytest.raises(ValueError, match="max_regularize_epochs has 1 steps, too few"):
        Growth(10, 10000, 1e-4, 1.0, 1e-5, 1e-2).fitted(1)
