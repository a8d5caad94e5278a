"""param_groups: weights decay, biases and norms do not, the values of sparse layers do."""

import pytest
import torch
from small_networks import cnn

from sparse_ops import param_groups
from sparse_ops.nn import SparseLinear


def test_who_decays():
    net = cnn()
    net[5] = SparseLinear.from_dense(net[5])
    decay, plain = param_groups(net, 1e-2)
    assert (decay["weight_decay"], plain["weight_decay"]) == (1e-2, 0.0)
    assert {id(p) for p in decay["params"]} == {id(p) for p in (net[0].weight, net[5].values, net[7].weight)}
    assert len(decay["params"]) + len(plain["params"]) == len(list(net.parameters()))
    torch.optim.AdamW([decay, plain])


def test_exceptions_and_errors():
    net = cnn()
    decay, _ = param_groups(net, 1e-2, no_decay=["7", torch.nn.Conv2d])
    assert [id(p) for p in decay["params"]] == [id(net[5].weight)]
    with pytest.raises(ValueError, match="weight_decay is -1"):
        param_groups(net, -1)
    with pytest.raises(ValueError, match="no_decay='8' matches nothing"):
        param_groups(net, 0.1, no_decay="8")
