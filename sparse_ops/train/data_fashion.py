"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017) from its canonical gzipped idx files."""

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from sparse_ops.train.data_files import DataFile, Report, fetch, missing, verify

_BASE = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
# As published: the gzipped file (what a download must be) and its contents (verified however they were packed).
_PUBLISHED = """
train-images-idx3-ubyte 26421880 8d4fb7e6c68d591d4c3dfef9ec88bf0d 47040016 f4a8712d7a061bf5bd6d2ca38dc4d50a
train-labels-idx1-ubyte 29515 25c81989df183df01b3e8a0aad5dffbe 60008 9018921c3c673c538a1fc5bad174d6f9
t10k-images-idx3-ubyte 4422102 bef4ecab320f06d8554ea6380940ec79 7840016 8181f5470baa50b63fa0f6fddb340f0a
t10k-labels-idx1-ubyte 5148 bb300cfdad3c16e7a12a480ee83cd310 10008 15d484375f8d13e6eb1aabb0c3f46965
"""
FILES = tuple(
    (DataFile(f"{name}.gz", int(packed), packed_md5, f"{_BASE}{name}.gz"), DataFile(name, int(size), md5))
    for name, packed, packed_md5, size, md5 in map(str.split, _PUBLISHED.split("\n")[1:-1])
)


def load(
    data_dir: Path, *, fold: int = 0, download: bool = False, report: Report | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels (60,000 of 1x28x28), test images and labels (10,000).

    Looked for in data_dir itself and in its folder fashion_mnist.
    """
    if fold != 0:
        raise ValueError(f"fashion_mnist has a fixed test set: fold is {fold}, expected 0")
    folder = next((f for f in (data_dir, data_dir / "fashion_mnist") if (f / FILES[0][0].name).is_file()), None)
    folder = folder or data_dir / "fashion_mnist"
    parts = []
    for packed, contents in FILES:
        path = folder / packed.name
        if not path.is_file():
            if not download:
                raise missing(path, "the gzipped idx file of Fashion-MNIST")
            fetch(packed, folder, report)
        raw = _unpack(path, packed)
        verify(path, raw, contents)
        parts.append(read_idx(path, raw))
    x, y, x_test, y_test = parts
    for images, labels in ((x, y), (x_test, y_test)):
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            raise ValueError(f"{folder}: images {tuple(images.shape)} and labels {tuple(labels.shape)} do not fit")
    return x[:, None], y.long(), x_test[:, None], y_test.long()


def _unpack(path: Path, published: DataFile) -> bytes:
    packed = path.read_bytes()
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: damaged gzip file of {len(packed)} bytes ({error}); the published one has {published.size}"
        ) from None


def read_idx(path: Path, raw: bytes) -> Tensor:
    """uint8 tensor of an idx file: magic 0 0 8 rank, big-endian sizes, then the values; path is for errors."""
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an idx file of bytes, it begins with {raw[:4].hex()}")
    rank = raw[3]
    header = 4 + 4 * rank
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    if len(raw) != header + math.prod(shape):
        raise ValueError(f"{path}: {len(raw) - header} bytes of values, expected {math.prod(shape)} for shape {shape}")
    return torch.frombuffer(bytearray(raw[header:]), dtype=torch.uint8).view(shape)
