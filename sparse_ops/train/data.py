"""Image data sets as whole tensors in memory, found by name."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from sparse_ops.train import data_cifar, data_cifar100, data_digits, data_fashion, data_imagenet, data_tiny_imagenet
from sparse_ops.train.data_files import Report
from sparse_ops.train.image_files import ImageFiles

NORMALIZATIONS = ("own", "imagenet")
# mean and deviation of ImageNet's channels, as they are used everywhere, in units of the uint8 values
IMAGENET = tuple(255 * m for m in (0.485, 0.456, 0.406)), tuple(255 * s for s in (0.229, 0.224, 0.225))
_SUBSET_SEED = 0  # part of what a subset is: data.images = 10000 means the same images everywhere

SOURCES: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]] = {
    "cifar10": data_cifar.load,
    "cifar100": data_cifar100.load,
    "digits": data_digits.load,
    "fashion_mnist": data_fashion.load,
    "tiny_imagenet": data_tiny_imagenet.load,
}
NAMES = (*SOURCES, "imagenet")


@dataclass(frozen=True)
class Images:
    """images uint8 (n, channels, height, width) and labels int64 (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, c, h, w = self.images.shape
        return c, h, w

    def take(self, index: Tensor) -> "Images":
        """The images of these numbers."""
        return Images(self.images[index], self.labels[index])


@dataclass(frozen=True)
class DataSet:
    """A training and a test set; mean and std are the training images', per channel, in units of the uint8 values.

    validation: images held out of the training set, on which an epoch may be selected.
    """

    name: str
    train: Images | ImageFiles
    test: Images | ImageFiles
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: Images | ImageFiles | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self.train.shape


def load(
    name: str,
    data_dir: Path,
    *,
    fold: int = 0,
    images: int = 0,
    validation: int = 0,
    normalization: str = "own",
    resolution: int = 224,
    resize: int = 256,
    workers: int = 0,
    download: bool = False,
    report: Report | None = None,
) -> DataSet:
    """The data set `name`, read from files under data_dir and verified.

    fold (0 to 4) chooses the test fifth of `digits`, which has no official split; the others have a fixed test set
    and take fold 0 only. images, validation: see `divide`. normalization: by mean and deviation of the images to train
    on ("own"), or by ImageNet's ("imagenet"), as many published weights need it. resolution, resize, workers: of
    ImageNet's batches, see `ImageFiles`; it is always normalised by its own. Raises ValueError with one sentence
    where a file is missing, of a wrong size, or damaged.
    """
    if name == "imagenet":
        files, test_files, classes = data_imagenet.load(data_dir, resolution=resolution, resize=resize, workers=workers)
        chosen, held = divide(files, images, validation)
        return DataSet(name, chosen, test_files, classes, *IMAGENET, held)
    if name not in SOURCES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"data set {name!r} is unknown{hint} (known: {', '.join(NAMES)})")
    x, y, x_test, y_test = SOURCES[name](data_dir, fold=fold, download=download, report=report)
    train, held_out = divide(Images(x, y), images, validation)
    mean, std = channel_statistics(train.images) if normalization == "own" else IMAGENET
    if len(mean) != train.images.shape[1]:
        raise ValueError(f"data.normalization is {normalization!r}, but {name} has {train.images.shape[1]} channel")
    return DataSet(name, train, Images(x_test, y_test), int(y.max()) + 1, mean, std, held_out)


Kind = TypeVar("Kind", Images, ImageFiles)


def divide(train: Kind, images: int, validation: int) -> tuple[Kind, Kind | None]:
    """The training images to train on and those held out.

    All are shuffled with a fixed seed, the same for every seed of a run. The last `validation` are held out, whatever
    `images` is; the first `images` are for training, with images = 0 all that are left.
    """
    n = len(train)
    if images + validation > n or validation == n:
        raise ValueError(f"data.images is {images} and data.validation {validation}; there are {n:,} training images")
    if images == validation == 0:
        return train, None
    order = torch.randperm(n, generator=torch.Generator().manual_seed(_SUBSET_SEED))
    held_out = train.take(order[n - validation :]) if validation else None
    return train.take(order[: images or n - validation]), held_out


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images, exactly, from counts of the 256 values."""
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in images.unbind(1):
        counts = torch.zeros(256, dtype=torch.int64)
        for part in channel.split(4096):  # bincount widens its input to int64
            counts += torch.bincount(part.flatten(), minlength=256)
        share = counts.double() / counts.sum()
        mean = float(share @ values)
        means.append(mean)
        stds.append(max(float(share @ (values - mean) ** 2), 1e-12) ** 0.5)
    return tuple(means), tuple(stds)
