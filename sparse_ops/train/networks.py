"""Networks by name, each built for (channels, height, width) and a number of classes."""

import difflib
import inspect
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from sparse_ops.train.networks_cifar import resnet20, resnet56, vgg19_bn
from sparse_ops.train.networks_hub import HUBS, PRETRAINED
from sparse_ops.train.networks_imagenet import resnet18, resnet50


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


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet50": resnet50,
    "resnet56": resnet56,
    "resnet8": resnet8,
    "vgg19_bn": vgg19_bn,
}


def check_name(name: str) -> None:
    """ValueError with the nearest name where a network is unknown; a hub is asked only when its network is built."""
    hub, _, inside = name.partition(":")
    if name in NETWORKS or (hub in HUBS and inside):
        return
    near = difflib.get_close_matches(name, NETWORKS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    known = ", ".join([*NETWORKS, *(f"{hub}:NAME" for hub in HUBS)])
    raise ValueError(f"network.name is {name!r}{hint} (known: {known})")


def build(
    name: str, shape: tuple[int, int, int], classes: int, *, width: int = 0, stride: int = 0, weights: str = ""
) -> nn.Module:
    """The network `name` for images of `shape`.

    width and stride (of a ResNet's stem) are the network's own where they are 0. weights: a file of torch.save or of
    safetensors, or "pretrained" for a hub's published weights.
    """
    check_name(name)
    options = {key: value for key, value in (("width", width), ("stride", stride)) if value}
    hub, _, inside = name.partition(":")
    taken = [] if inside else list(inspect.signature(NETWORKS[name]).parameters)
    for key, value in options.items():
        if key not in taken:
            raise ValueError(f"network.{key} is {value}, but {name} has no {key}")
    if inside:
        network = HUBS[hub](inside, shape, classes, weights == PRETRAINED)
    elif weights == PRETRAINED:
        raise ValueError(f"network.weights is {weights!r}, but {name} is not published with weights; give a file")
    else:
        network = NETWORKS[name](shape, classes, **options)
    if weights not in ("", PRETRAINED):
        load_weights(network, Path(weights))
    return network


def load_weights(network: nn.Module, path: Path) -> None:
    """Weights from a file: a state dict, or one under "state_dict" or "model"; ValueError where they do not fit."""
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"network.weights: {path} cannot be read ({reason})") from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ValueError(f"network.weights: {path} holds a {type(state).__name__}, expected a state dict")
    found = {name.removeprefix("module."): value for name, value in state.items()}
    wanted = network.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # older files lack them
    for name in (*sorted(wanted.keys() - found.keys() - counters), *sorted(found.keys() - wanted.keys())):
        side = "lacks" if name in wanted else "has an unknown"
        raise ValueError(f"network.weights: {path} {side} {name}: it is of another network")
    for name, value in wanted.items():
        if name in found and found[name].shape != value.shape:
            shapes = f"{tuple(found[name].shape)}, expected {tuple(value.shape)}"
            raise ValueError(f"network.weights: {name} in {path} is {shapes}")
    network.load_state_dict(found, strict=False)
