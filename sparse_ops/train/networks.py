"""Networks by name, each built for (channels, height, width) and a number of classes."""

import difflib
import inspect
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation; a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """The CIFAR form of He et al. 2016: a 3x3 stem, len(planes) stages of residual blocks, average pooling, Linear.

    The stem divides the sides of the image by stride, every stage but the first halves them. Convolutions are
    initialised Kaiming fan-out, the classifier N(0, 0.01).
    """

    def __init__(self, channels: int, classes: int, planes: Sequence[int], blocks: int, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, planes[0], 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(planes[0])
        stages, inputs = [], planes[0]
        for i, width in enumerate(planes):
            for j in range(blocks):
                stages.append(ResidualBlock(inputs, width, stride=2 if i > 0 and j == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(torch.relu(self.bn(self.stem(x))))
        return self.classifier(y.mean((2, 3)))


def resnet32(shape: tuple[int, int, int], classes: int, *, width: int = 32, stride: int = 1) -> nn.Module:
    """ResNet-32 of planes width, 2 width, 4 width; width 32 is ART's, twice that of He et al."""
    return ResNet(shape[0], classes, (width, 2 * width, 4 * width), 5, stride)


def resnet8(shape: tuple[int, int, int], classes: int, *, width: int = 32, stride: int = 1) -> nn.Module:
    """One residual block per stage of planes width, 2 width, 4 width: nine convolutions."""
    return ResNet(shape[0], classes, (width, 2 * width, 4 * width), 1, stride)


def mlp(shape: tuple[int, int, int], classes: int, *, width: int = 512) -> nn.Module:
    """Two hidden layers of width units with batch normalisation."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "resnet32": resnet32, "resnet8": resnet8}


def build(name: str, shape: tuple[int, int, int], classes: int, *, width: int = 0, stride: int = 1) -> nn.Module:
    """The network `name` for images of `shape`; width 0 is the network's own, stride is that of a ResNet's stem."""
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"network {name!r} is unknown{hint} (known: {', '.join(NETWORKS)})")
    own = {"width": width or None, "stride": stride if stride != 1 else None}
    options = {key: value for key, value in own.items() if value is not None}
    taken = inspect.signature(NETWORKS[name]).parameters
    for key, value in options.items():
        if key not in taken:
            raise ValueError(f"network.{key} is {value}, but {name} has no {key}")
    return NETWORKS[name](shape, classes, **options)
