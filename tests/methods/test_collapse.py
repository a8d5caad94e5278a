"""The guard against layer collapse, on the known case: global magnitude on an untrained ResNet-18."""

import pytest
import torch

from sparse_ops import methods
from sparse_ops.train.networks import resnet18


def test_global_magnitude_on_an_untrained_resnet18():
    """Wide layers begin with small weights, so the last stage goes first, and with it all that the network says."""
    torch.manual_seed(0)
    net = resnet18((3, 32, 32), 10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    message = r"no weight survives in .*layer4\.1\.conv2\.weight, .*: they give the same output for any input"
    with pytest.raises(ValueError, match=message):
        methods.OneShot(net, optimizer, 0.998, 0, 0, strict=True)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    with pytest.warns(methods.CollapseWarning) as seen:
        method = methods.OneShot(net, optimizer, 0.998, 0, 0)  # the refused one has left the optimiser free
    layers, outputs = (str(warning.message) for warning in seen)
    assert "no weight survives in" in layers and "layer3.0.conv1.weight (" in outputs
    dead = [name for name, mask in method.masks.items() if mask.zeros == mask.numel]
    assert dead and layers.partition("survives in ")[2].partition(":")[0] == ", ".join(dead)
    method.finalize()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.eval()(x), net(2 * x + 1))
