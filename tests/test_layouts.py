"""Batch-last tensors are told by their strides."""

import torch

from sparse_ops.layouts import batch_last, is_batch_last


def test_images_and_matrices():
    for shape in ((5, 4, 3, 2), (5, 4), (5, 4, 3)):
        x = torch.randn(shape)
        y = batch_last(x)
        assert torch.equal(x, y) and y.shape == x.shape
        assert is_batch_last(y) and not is_batch_last(x) and y.movedim(0, -1).is_contiguous()
        assert batch_last(y) is y and is_batch_last(torch.relu(y) + y)


def test_layouts_may_coincide():
    assert is_batch_last(torch.randn(1, 4, 3, 2)) and is_batch_last(torch.randn(7, 1))
    assert not is_batch_last(torch.randn(5, 4, 3, 2).contiguous(memory_format=torch.channels_last))
    assert not is_batch_last(torch.tensor(1.0))
    assert is_batch_last(torch.randn(0, 4, 3, 2))
