"""Training sparse modules at a fixed mask: the same weights as dense training whose gradients are masked."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sparse_ops import optim, sparsify
from sparse_ops.nn import SparseConv2d, SparseLinear


def network():
    """A small net of both kinds of layers in float64, each with about 80 % zeros."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(72, 40), nn.ReLU(), nn.Linear(40, 5)).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p *= torch.rand_like(p) >= 0.8
    return model


def train(model, make, steps=5):
    """The losses of a few steps on random images; gradients of weights with zeros are masked."""
    optimizer = make(model.parameters())
    rng = torch.Generator().manual_seed(1)
    masks = [(p, p != 0) for p in model.parameters() if p.dim() > 1]
    losses = []
    for _ in range(steps):
        images = torch.randn(6, 3, 8, 8, generator=rng, dtype=torch.float64)
        labels = torch.randint(0, 5, (6,), generator=rng)
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        for p, mask in masks:
            p.grad *= mask
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


OPTIMISERS = {
    "torch SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "torch AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "our SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "our AdamW": lambda p: optim.AdamW(p, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_equals_masked_dense_training(name):
    dense = network()
    sparse = sparsify(copy.deepcopy(dense), policy="all", verbose=False)
    layers = [m for m in sparse if isinstance(m, SparseConv2d | SparseLinear)]
    assert len(layers) == 4 and all(p.dim() == 1 for p in sparse.parameters())
    patterns = [layer.columns.clone() for layer in layers]
    expected, losses = train(dense, OPTIMISERS[name]), train(sparse, OPTIMISERS[name])
    assert losses == pytest.approx(expected, rel=1e-9) and expected[-1] != expected[0]
    for mine, theirs, columns in zip(layers, [m for m in dense if hasattr(m, "weight")], patterns, strict=True):
        torch.testing.assert_close(mine.weight, theirs.weight, rtol=1e-7, atol=1e-9)
        assert torch.equal(mine.columns, columns)
