"""Batches for training and evaluation: shuffling, random crop, flip and normalisation."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_ops.train.data import DataSet, Images
from sparse_ops.train.image_files import ImageFiles


@dataclass(frozen=True)
class Augmentation:
    """crop: pixels of zero padding around an image before a crop of its own size; flip: mirror half of the images."""

    crop: int = 0
    flip: bool = False


def steps_per_epoch(images: int, batch_size: int) -> int:
    """How many batches of an epoch train: a last one of a single image does not."""
    return -(-images // batch_size) - (images % batch_size == 1 and images > 1 and batch_size > 1)


class Normalized:
    """Float batches (x, y) of images, (x - mean) / std, on one device.

    An epoch's order and augmentation depend on (seed, epoch) alone, so that a resumed run sees the same batches.
    The last batch is smaller; one image alone is dropped in training, where batch normalisation cannot use it.
    """

    def __init__(
        self,
        count: int,
        data: DataSet,
        batch_size: int,
        *,
        device: torch.device,
        augmentation: Augmentation | None = None,
        channels_last: bool = False,
    ) -> None:
        self.count, self.batch_size, self.device = count, batch_size, device
        self.augmentation = augmentation or Augmentation()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # (x - mean) / std as x * scale + shift
        std = torch.tensor(data.std, device=device).view(-1, 1, 1)
        self.scale, self.shift = 1 / std, -torch.tensor(data.mean, device=device).view(-1, 1, 1) / std

    def __len__(self) -> int:
        return steps_per_epoch(self.count, self.batch_size)

    def epoch(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in random order, augmented."""
        raise NotImplementedError

    def plain(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, without augmentation."""
        raise NotImplementedError

    def _order(self, generator: torch.Generator) -> Iterator[Tensor]:
        for index in torch.randperm(self.count, generator=generator).split(self.batch_size):
            if len(index) > 1 or self.count == 1 or self.batch_size == 1:
                yield index

    def _normalize(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale).contiguous(memory_format=self.memory_format)


class Batches(Normalized):
    """Batches of images in memory: a gather of windows, made on the device."""

    def __init__(self, images: Images, data: DataSet, batch_size: int, **options: Any) -> None:
        super().__init__(len(images), data, batch_size, **options)
        self.labels = images.labels.to(self.device)
        p = self.augmentation.crop
        h, w = images.images.shape[2:]
        padded = F.pad(images.images.to(self.device), (p, p, p, p))
        # windows[i, :, y, x] is image i cropped at (y, x): a view, so that a batch of crops is one gather
        self.windows = padded.unfold(2, h, 1).unfold(3, w, 1)

    def epoch(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in random order, augmented."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for index in self._order(generator):
            yield self._take(index, generator)

    def plain(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, without augmentation."""
        p = self.augmentation.crop
        for index in torch.arange(self.count, device=self.device).split(self.batch_size):
            yield self._normalize(self.windows[index, :, p, p]), self.labels[index]

    def _take(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        n, p = len(index), self.augmentation.crop
        offsets = torch.randint(0, 2 * p + 1, (2, n), generator=generator)
        mirrored = torch.rand(n, generator=generator) < 0.5
        index, (top, left) = index.to(self.device), offsets.to(self.device)
        x = self.windows[index, :, top, left]
        if self.augmentation.flip:
            x = torch.where(mirrored.to(self.device).view(-1, 1, 1, 1), x.flip(3), x)
        return self._normalize(x), self.labels[index]


class FileBatches(Normalized):
    """Batches of image files: windows of random size and place, decoded by threads while the last batch is in use."""

    def __init__(self, images: ImageFiles, data: DataSet, batch_size: int, **options: Any) -> None:
        super().__init__(len(images), data, batch_size, **options)
        self.images = images

    def epoch(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in random order, a random window of it."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)

        def load(number: int) -> Tensor:
            return self.images.random_crop(number, seed, epoch, self.augmentation.flip)

        return self._ready(self.images.decoded(self._order(generator), load))

    def plain(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, its centre."""
        return self._ready(
            self.images.decoded(torch.arange(self.count).split(self.batch_size), self.images.central_crop)
        )

    def _ready(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            yield self._normalize(images.to(self.device)), labels.to(self.device)


def batches_of(images: Images | ImageFiles, data: DataSet, batch_size: int, **options: Any) -> Normalized:
    """Batches of images in memory or of image files; options: device, augmentation, channels_last."""
    if isinstance(images, ImageFiles):
        return FileBatches(images, data, batch_size, **options)
    return Batches(images, data, batch_size, **options)
