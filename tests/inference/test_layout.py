"""Pools and means of batch-last images, which torch sees in another shape."""

import pytest
import torch
from torch.nn import functional as F

from sparse_ops.inference import layout
from sparse_ops.layouts import is_batch_last

SHAPES = [(5, 3, 8, 6), (1, 4, 5, 5), (17, 2, 4, 9)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dim", [(2, 3), (-1, -2), (1,), (0, 2), (3,)], ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
def test_mean(shape, dim, keepdim):
    x = torch.randn(shape)
    expected = x.double().mean(dim, keepdim)
    y = layout.mean(layout.batch_last(x), dim, keepdim)
    assert y.shape == expected.shape and torch.allclose(y.double(), expected, atol=1e-6)
    assert layout.mean(layout.batch_last(x), dim, keepdim, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pools(shape):
    x = torch.randn(shape)
    last = layout.batch_last(x)
    for pool, own, arguments in (
        (F.max_pool2d, layout.max_pool2d, (3, 2, 1)),
        (F.max_pool2d, layout.max_pool2d, ((2, 3), (1, 2))),
        (F.avg_pool2d, layout.avg_pool2d, (2, 2)),
        (F.adaptive_avg_pool2d, layout.adaptive_avg_pool2d, ((2, 3),)),
        (F.adaptive_avg_pool2d, layout.adaptive_avg_pool2d, (1,)),
    ):
        y = own(last, *arguments)
        assert is_batch_last(y) and torch.allclose(y, pool(x, *arguments), atol=1e-6)
