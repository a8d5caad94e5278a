"""Network, optimiser and sparsifier copied together: the copies go on as the originals do."""

import copy

import pytest
import torch
from small_networks import cnn, gradients

import sparse_ops
from sparse_ops import optim


@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW, torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("phase", ["regularize", "finetune"])
def test_copies_go_on_alike(make, phase):
    net = cnn()
    optimizer = make(net.parameters(), lr=0.01)
    method = sparse_ops.methods.ART(net, optimizer, 0.8, 0, 1, 5, lambda_init=1e-3)
    for number in range(2):
        gradients(net, number)
        optimizer.step()
    if phase == "finetune":
        method.end_epoch(lambda model: 0.5)
    assert method.phase == phase
    trios = [(net, optimizer, method), copy.deepcopy((net, optimizer, method))]
    for model, own, sparsifier in trios:
        for number in range(2, 5):
            gradients(model, number)
            own.step()
        sparsifier.metrics()
    for a, b in zip(net.parameters(), trios[1][0].parameters(), strict=True):
        assert torch.equal(a, b) and a is not b
    if phase == "finetune":
        zeros = [sum(int((w == 0).sum()) for w in m.weights.values()) for _, _, m in trios]
        assert zeros[0] == zeros[1] > 0
    trios[1][2].finalize()
    with pytest.raises(ValueError, match="has a sparsifier already"):
        sparse_ops.methods.OneShot(net, optimizer, 0.5, 0, 1)
