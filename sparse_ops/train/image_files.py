"""Image files that are decoded as they are needed, by several threads: random resized crops, flips, central crops."""

import io
import math
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

AHEAD = 3  # batches that are being decoded while one is in use
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the random window: its share of the area, width to height
SUFFIXES = (".jpeg", ".jpg", ".png")
Window = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class ImageFiles:
    """paths of image files and labels int64 (n,); batches are of resolution x resolution pixels.

    resize: for evaluation the shorter side is scaled to it before the central crop. workers: threads that decode, 0 as
    many as the machine has.
    """

    paths: Sequence[Path]
    labels: Tensor
    resolution: int = 224
    resize: int = 256
    workers: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image as it comes in a batch."""
        return 3, self.resolution, self.resolution

    def take(self, index: Tensor) -> "ImageFiles":
        """The images of these numbers."""
        return replace(self, paths=[self.paths[i] for i in index.tolist()], labels=self.labels[index])

    def random_crop(self, number: int, seed: int, epoch: int, flip: bool) -> Tensor:
        """Image `number` of an epoch, uint8; it depends on (seed, epoch, number) alone, not on threads or order."""
        rng = random.Random(f"{seed} {epoch} {number}")

        def window(width: int, height: int) -> Window:
            return random_window(width, height, rng)

        pixels = decode(self.paths[number], self.resolution, window)
        return pixels.flip(2) if flip and rng.random() < 0.5 else pixels

    def central_crop(self, number: int) -> Tensor:
        """Image `number` for evaluation, uint8."""

        def window(width: int, height: int) -> Window:
            side = self.resolution * min(width, height) / self.resize
            left, top = (width - side) / 2, (height - side) / 2
            return left, top, left + side, top + side

        return decode(self.paths[number], self.resolution, window)

    def decoded(self, batches: Iterable[Tensor], load: Callable[[int], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(images uint8, labels) of each batch of numbers, the next ones being decoded meanwhile."""
        pool = ThreadPoolExecutor(self.workers or os.cpu_count())
        waiting: deque[tuple[Tensor, list[Future[Tensor]]]] = deque()
        try:
            for index in batches:
                waiting.append((index, [pool.submit(load, number) for number in index.tolist()]))
                if len(waiting) > AHEAD:
                    yield self._gather(*waiting.popleft())
            while waiting:
                yield self._gather(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _gather(self, index: Tensor, images: list[Future[Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image.result() for image in images]), self.labels[index]


def random_window(width: int, height: int, rng: random.Random) -> Window:
    """A window of random area and shape at a random place; the largest central one where ten attempts do not fit."""
    for _ in range(10):
        area, ratio = width * height * rng.uniform(*SCALE), math.exp(rng.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def decode(path: Path, side: int, window: Callable[[int, int], Window], content: bytes | None = None) -> Tensor:
    """window(width, height) of an image scaled to side x side pixels, uint8 (3, side, side); ValueError names the file.

    content: the file's bytes where they are at hand.
    """
    image_module = pillow()
    try:
        with image_module.open(path if content is None else io.BytesIO(content)) as image:
            box = window(*image.size)
            rgb = image.convert("RGB")
            if rgb.size != (side, side) or box != (0, 0, side, side):
                rgb = rgb.resize((side, side), image_module.Resampling.BILINEAR, box=box)
            raw = rgb.tobytes()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for some broken headers
        raise ValueError(f"{path}: no image that can be read ({error})") from None
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1).contiguous()


def pillow() -> Any:
    """PIL.Image; ValueError with the line that installs it."""
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("image files are read by Pillow: pip install 'sparse_ops[images]'") from None
    return Image


def listed(folder: Path) -> list[Path]:
    """The image files of a folder by name."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.name.lower().endswith(SUFFIXES))
