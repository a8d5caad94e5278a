"""Networks for small images as their papers have them: the thin ResNets of He et al., and VGG-19 with normalisation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ThinBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes the shortcut takes every second pixel and adds zero channels."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.padding = stride, planes - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.padding or self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.padding // 2, self.padding - self.padding // 2))
        return torch.relu(y + x)


class ThinResNet(nn.Module):
    """He et al. 2016 for CIFAR, shortcuts without parameters (their option A): 6 blocks + 2 layers of width, 2 and 4.

    Modules bear the usual names (conv1, bn1, layer1.0.conv1, ..., linear), so that published weights can be loaded.
    """

    def __init__(self, channels: int, classes: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, 1)
        self.layer2 = _stage(width, 2 * width, blocks, 2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2)
        self.linear = nn.Linear(4 * width, classes)
        kaiming(self)
        nn.init.kaiming_normal_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        return self.linear(y.mean((2, 3)))


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = ThinBlock(inputs, planes, stride)
    return nn.Sequential(first, *(ThinBlock(planes, planes, 1) for _ in range(blocks - 1)))


def resnet20(shape: tuple[int, int, int], classes: int, *, width: int = 16, stride: int = 1) -> nn.Module:
    """The thin ResNet-20: 269,722 parameters for CIFAR-10."""
    return ThinResNet(shape[0], classes, width, 3, stride)


def resnet56(shape: tuple[int, int, int], classes: int, *, width: int = 16, stride: int = 1) -> nn.Module:
    """The thin ResNet-56: 853,018 parameters for CIFAR-10."""
    return ThinResNet(shape[0], classes, width, 9, stride)


class VGG(nn.Module):
    """Simonyan and Zisserman's configuration E, with batch normalisation, global average pooling and one Linear.

    Four max poolings halve the image, so that an average over 2x2 is left of 32x32 pixels and over 4x4 of 64x64. The 16
    convolutions have biases, and begin Kaiming fan-out; the classifier begins N(0, 0.01).
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for stage, (factor, count) in enumerate(((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [nn.Conv2d(inputs, factor * width, 3, 1, 1), nn.BatchNorm2d(factor * width), nn.ReLU()]
                inputs = factor * width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)
        kaiming(self)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def vgg19_bn(shape: tuple[int, int, int], classes: int, *, width: int = 64) -> nn.Module:
    """VGG-19 for images of at least 16x16 pixels: 20,040,522 parameters for CIFAR-10."""
    if min(shape[1:]) < 16:
        raise ValueError(f"vgg19_bn halves an image four times: it is {shape[1]}x{shape[2]}, expected 16x16 or more")
    return VGG(shape[0], classes, width)


def kaiming(network: nn.Module) -> None:
    """Every convolution Kaiming fan-out, its bias 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
