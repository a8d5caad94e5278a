"""Networks with what inference has to recognise: residuals, norms in odd places, groups, gates, views, several uses."""

import functools

import torch
from torch import nn

from sparse_ops.train import networks, networks_imagenet


def prune(model, sparsity=0.9, seed=0):
    """Zeros in every weight of a layer, and statistics in every norm as after training."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.copy_(torch.randn(module.weight.shape, generator=rng) / module.weight[0].numel() ** 0.5)
                module.weight *= torch.rand(module.weight.shape, generator=rng) >= sparsity
                module.weight *= (1 / max(1 - sparsity, 0.05)) ** 0.5
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                ranges = {
                    "weight": (0.5, 1.5),
                    "bias": (-0.2, 0.2),
                    "running_mean": (-0.2, 0.2),
                    "running_var": (0.5, 2),
                }
                for name, (low, high) in ranges.items():
                    tensor = getattr(module, name)
                    tensor.copy_(torch.rand(tensor.shape, generator=rng) * (high - low) + low)
    return model.eval()


class Gated(nn.Module):
    """A block as in MobileNetV3: expansion, depthwise convolution, squeeze and excitation, projection, residual."""

    def __init__(self, channels=8, hidden=24):
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish(True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(True)
        )
        self.squeeze, self.excite = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        y = self.depthwise(self.expand(x))
        gate = self.excite(torch.relu(self.squeeze(nn.functional.adaptive_avg_pool2d(y, 1))))
        return x + self.project(y * torch.sigmoid(gate))


class Odd(nn.Module):
    """Even kernels with padding 'same', groups, dilation, a norm in front, pools, cat, a weight used twice."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 16, 4, padding="same")
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, stride=2, padding=2, dilation=2, groups=4, bias=False)
        self.twice = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.fc = nn.Linear(32 * 25, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x, scale=None):
        y = self.norm(torch.relu(self.a(x)))
        y = nn.functional.avg_pool2d(nn.functional.max_pool2d(self.b(y), 2, 1, padding=1), 2, ceil_mode=True)
        y += self.twice(torch.relu_(self.twice(y)))
        y = torch.cat([y, y - 1], 1).flatten(1)
        y = nn.functional.gelu(self.fc(y))
        return {"logits": self.head(y) * (1 if scale is None else scale), "features": y}


@functools.cache
def cases():
    """name -> (pruned model, example)"""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, activation="gelu"), 2)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(48, 40, bias=False), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 7))
    gated = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), Gated(), Gated(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    found = {
        "resnet8": (networks.build("resnet8", (3, 16, 16), 10, width=8), torch.randn(16, 3, 16, 16)),
        "bottleneck": (networks_imagenet.ImageNetResNet(3, 10, (1, 2), True, 8, 2), torch.randn(5, 3, 32, 32)),
        "gated": (gated, torch.randn(6, 3, 16, 16)),
        "odd": (Odd(), {"x": torch.randn(4, 3, 15, 15), "scale": torch.randn(4, 1)}),
        "mlp": (mlp, torch.randn(9, 3, 4, 4)),
        "encoder": (encoder, torch.randn(3, 10, 32)),
    }
    return {name: (prune(model), example) for name, (model, example) in found.items()}
