"""Networks: shapes, sizes that recipes promise, initialisation."""

import pytest
import torch
from torch import nn

from sparse_ops.train import networks

PRUNABLE = (nn.Conv2d, nn.Linear)


@pytest.mark.parametrize(
    "name, shape, weights, convolutions",
    [("resnet32", (3, 32, 32), 1_855_584, 33), ("resnet8", (1, 8, 8), 306_720, 9), ("mlp", (1, 8, 8), 300_032, 0)],
)
def test_sizes(name, shape, weights, convolutions):
    network = networks.build(name, shape, 10)
    assert sum(w.numel() for m in network.modules() if isinstance(m, PRUNABLE) for w in [m.weight]) == weights
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == convolutions
    assert network(torch.randn(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet8", "resnet32"])
def test_the_stride_of_the_stem_changes_the_images_alone(name):
    sizes = []
    for stride in (1, 2):
        network = networks.build(name, (1, 28, 28), 10, width=8, stride=stride)
        stem = network.stem(torch.randn(2, 1, 28, 28))
        assert stem.shape == (2, 8, 28 // stride, 28 // stride) and network(torch.randn(2, 1, 28, 28)).shape == (2, 10)
        sizes.append(sum(p.numel() for p in network.parameters()))
    assert sizes[0] == sizes[1]


def test_what_a_network_has_not_is_an_error():
    with pytest.raises(ValueError, match=r"network.stride is 2, but mlp has no stride"):
        networks.build("mlp", (1, 8, 8), 10, stride=2)


def test_initialisation():
    torch.manual_seed(0)
    network = networks.resnet32((3, 32, 32), 10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert network.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not network.classifier.bias.any()


def test_unknown_network():
    with pytest.raises(ValueError, match=r"'resnet23' is unknown; did you mean 'resnet32'\?"):
        networks.build("resnet23", (1, 8, 8), 10)
