"""Sparse weights to measure on: random masks, ERK's shares of a network, matrices of trained models and of files."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sparse_ops import encodings, formats, masks
from sparse_ops.nn.base import matrix_shape

# (out_features, in_features), how often in the network
NETWORKS = {
    "minilm": [((384, 384), 24), ((1536, 384), 6), ((384, 1536), 6)],
    "resnet50-1x1": [
        ((64, 64), 1), ((256, 64), 4), ((64, 256), 2), ((128, 256), 1), ((512, 128), 4), ((512, 256), 1),
        ((128, 512), 3), ((256, 512), 1), ((1024, 256), 6), ((1024, 512), 1), ((256, 1024), 5), ((512, 1024), 1),
        ((2048, 512), 3), ((2048, 1024), 1), ((512, 2048), 2), ((1000, 2048), 1),
    ],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Weight:
    """A dense tensor with zeros, the sparsity that was asked for (its own where it comes from a file) and a name."""

    dense: Tensor
    sparsity: float
    mask: str


def draw(shape: Sequence[int], zeros: int, seed: int = 0) -> Tensor:
    """A normal weight, scaled for unit outputs, with exactly `zeros` zeros at random places."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(*shape, generator=rng) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
    gone = torch.randperm(weight.numel(), generator=rng)[:zeros]
    weight.view(-1)[gone] = 0
    return weight


def made(shapes: Sequence[Sequence[int]], sparsities: Iterable[float], mask: str) -> Iterator[list[Weight]]:
    """For each sparsity a weight of each shape: `random` zeros alike in all, or `erk`, spread as over one network."""
    for sparsity in sparsities:
        scope: masks.Scope = "erk" if mask == "erk" else "uniform"
        zeros = masks.layer_zeros([tuple(s) for s in shapes], sparsity, scope)
        yield [Weight(draw(s, z), sparsity, mask) for s, z in zip(shapes, zeros, strict=True)]


def trained(path: Path) -> list[Weight]:
    """The sparse matrices of a file: .smtx (a pattern in text, values are drawn), or a model of `sparse_ops.save`."""
    weights = [_smtx(path)] if path.suffix == ".smtx" else list(_model(path))
    found = [Weight(w, 1 - int(w.count_nonzero()) / w.numel(), path.stem) for w in weights]
    if not found:
        raise SystemExit(f"{path}: holds no sparse matrix")
    return found


def _smtx(path: Path) -> Tensor:
    size, offsets, columns = path.read_text().splitlines()[:3]
    rows, width, _ = (int(n) for n in size.replace(",", " ").split())
    starts = torch.tensor([int(n) for n in offsets.split()])
    weight = torch.zeros(rows, width)
    places = torch.arange(rows).repeat_interleave(starts.diff())
    weight[places, torch.tensor([int(n) for n in columns.split()], dtype=torch.long)] = 1.0
    return weight * draw((rows, width), 0)


def _model(path: Path) -> Iterator[Tensor]:
    """Weights of two dimensions and more, also stored compressed, of which at least half is zero."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if encodings.ENTRY not in metadata:
        raise SystemExit(f"{path}: not a file of sparse_ops.save ({json.dumps(sorted(metadata))})")
    for item in encodings.stored(tensors, encodings.Header.loads(metadata[encodings.ENTRY])):
        item.check()
        if item.encoding is None:
            weight = item.values
        elif isinstance(item.encoding, encodings.Encoding):
            weight = item.decode()[item.name]
        else:
            places = item.parts["row_offsets"].int(), item.parts["columns"].int()
            weight = formats.scatter(matrix_shape(item.shape), *places, item.values).view(item.shape)
        if weight.dim() >= 2 and int(weight.count_nonzero()) <= weight.numel() / 2:
            yield weight.float()
