"""Small networks and gradients for tests of optimisers and methods."""

import torch
from torch import nn


def cnn(seed=0):
    """A convolution in channels_last, a norm, two linear layers: 3 x 6 x 6 images to 4 classes."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(72, 24),
        nn.ReLU(),
        nn.Linear(24, 4),
    )
    return net.to(memory_format=torch.channels_last)


class Transformer(nn.Module):
    """Embedding, one encoder layer, and a head that is tied to the embedding: token sequences to next tokens."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(11, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens))).mean(1)


def batches(kind, count, seed=0):
    """`count` random batches (x, y) for a network."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(count):
        if kind == "cnn":
            yield torch.randn(16, 3, 6, 6, generator=rng), torch.randint(4, (16,), generator=rng)
        else:
            yield torch.randint(11, (16, 5), generator=rng), torch.randint(11, (16,), generator=rng)


NETWORKS = {"cnn": cnn, "transformer": Transformer}


def gradients(net, step, accumulate=False):
    """Random gradients by a backward pass, the same for every network of the same architecture."""
    rng = torch.Generator().manual_seed(step)
    if not accumulate:
        net.zero_grad()
    sum((0.1 * torch.randn(p.shape, generator=rng).to(p.dtype) * p).sum() for p in net.parameters()).backward()


def distance(a, b):
    """The largest relative distance, norm-wise per parameter, of two networks."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(((p - q).norm() / q.norm().clamp_min(1e-30)).item() for p, q in pairs)
