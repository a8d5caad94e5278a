"""Batch-last tensors are told by their strides."""

import torch

from sparse_ops.layouts import batch_last, is_batch_last


def test_images_and_matrices():
    for shape in ((5, 4, 3, 2), (5, 4), (5, 4, 3)):
        x = torch.randn(shape)
        y = batch_last(x)
        assert torch.equal(x, y) and y.shape == x.shape
        order = (2, 3, 1, 0) if len(shape) == 4 else (*range(1, len(shape)), 0)
        assert is_batch_last(y) and not is_batch_last(x) and y.permute(order).is_contiguous()
        assert batch_last(y) is y and is_batch_last(torch.relu(y) + y)


def test_layouts_may_coincide():
    assert is_batch_last(torch.randn(1, 4, 3, 2).contiguous(memory_format=torch.channels_last))
    assert is_batch_last(torch.randn(7, 1)) and not is_batch_last(torch.randn(1, 4, 3, 2))
    assert not is_batch_last(torch.randn(5, 4, 3, 2).contiguous(memory_format=torch.channels_last))
    assert not is_batch_last(torch.tensor(1.0))
    assert is_batch_last(torch.randn(0, 4, 3, 2))
