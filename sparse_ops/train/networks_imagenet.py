"""The ResNets of He et al. 2016 for ImageNet; bottlenecks stride in their 3x3 convolution, as is usual today."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_ops.train.networks_cifar import kaiming


class Block(nn.Module):
    """Convolutions with batch normalisation, all but the last with ReLU, and a shortcut, 1x1 where shapes differ."""

    def __init__(self, inputs: int, planes: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * planes if bottleneck else planes
        if bottleneck:  # (inputs, outputs, kernel, stride)
            sizes = [(inputs, planes, 1, 1), (planes, planes, 3, stride), (planes, outputs, 1, 1)]
        else:
            sizes = [(inputs, planes, 3, stride), (planes, planes, 3, 1)]
        for i, (a, b, kernel, step) in enumerate(sizes, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        self.count = len(sizes)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ImageNetResNet(nn.Module):
    """A 7x7 stem, max pooling, four stages, global average pooling, Linear; modules bear the usual names.

    Convolutions begin Kaiming fan-out, the classifier N(0, 0.01).
    """

    def __init__(
        self, channels: int, classes: int, blocks: Sequence[int], bottleneck: bool, width: int, stride: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 7, stride, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            layers = []
            for i in range(count):
                layers.append(Block(inputs, planes, 2 if stage and i == 0 else 1, bottleneck))
                inputs = 4 * planes if bottleneck else planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(blocks)
        self.fc = nn.Linear(inputs, classes)
        kaiming(self)
        nn.init.normal_(self.fc.weight, 0.0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            y = getattr(self, f"layer{stage}")(y)
        return self.fc(y.mean((2, 3)))


def resnet18(shape: tuple[int, int, int], classes: int, *, width: int = 64, stride: int = 2) -> nn.Module:
    """ResNet-18: 11,689,512 parameters for 1000 classes."""
    return ImageNetResNet(shape[0], classes, (2, 2, 2, 2), False, width, stride)


def resnet50(shape: tuple[int, int, int], classes: int, *, width: int = 64, stride: int = 2) -> nn.Module:
    """ResNet-50: 25,557,032 parameters for 1000 classes."""
    return ImageNetResNet(shape[0], classes, (3, 4, 6, 3), True, width, stride)
