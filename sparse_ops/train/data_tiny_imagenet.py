"""Tiny ImageNet (Stanford CS231n): 200 classes, 64x64 pixels, from its canonical zip file or from its folder."""

import io
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from sparse_ops.train.data_files import DataFile, Report, fetch, missing, read_verified
from sparse_ops.train.image_files import decode, pillow

ARCHIVE = DataFile(
    "tiny-imagenet-200.zip",
    248100043,
    "90528d7ca1a48142e341f4ef8d21d0de",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
)
FOLDER, SIDE = "tiny-imagenet-200", 64
PER_CLASS = 500


def load(
    data_dir: Path, *, fold: int = 0, download: bool = False, report: Report | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels (100,000), validation images and labels (10,000), which serve as test images.

    Looked for as the folder tiny-imagenet-200 in data_dir (or data_dir itself) or as the zip file there, which is read
    without being unpacked. Classes are numbered by their sorted names; the decoded images take 1.4 GB.
    """
    if fold != 0:
        raise ValueError(f"tiny_imagenet has a fixed test set: fold is {fold}, expected 0")
    pillow()
    folder = next((f for f in (data_dir, data_dir / FOLDER) if (f / "wnids.txt").is_file()), None)
    if folder is not None:
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        return _read(folder, names, lambda name: (folder / name).read_bytes())
    archive = data_dir / ARCHIVE.name
    if not archive.is_file():
        if not download:
            raise missing(archive, "the zip file of Tiny ImageNet, or its folder tiny-imagenet-200")
        fetch(ARCHIVE, data_dir, report)
    content = read_verified(archive, ARCHIVE)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            inside = [n.removeprefix(f"{FOLDER}/") for n in file.namelist() if n.startswith(f"{FOLDER}/")]
            return _read(archive, inside, lambda name: file.read(f"{FOLDER}/{name}"))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive}: damaged zip file ({error})") from None


def _read(where: Path, names: Sequence[str], read: Callable[[str], bytes]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    known = set(names)
    for needed in ("wnids.txt", "val/val_annotations.txt"):
        if needed not in known:
            raise missing(where / needed, "this file of Tiny ImageNet", download=False)
    classes = {name: i for i, name in enumerate(sorted(read("wnids.txt").decode().split()))}
    train: dict[str, list[str]] = {name: [] for name in classes}
    for path in names:
        parts = path.split("/")
        if len(parts) == 4 and (parts[0], parts[2]) == ("train", "images") and parts[1] in classes and parts[3]:
            train[parts[1]].append(path)
    for name, paths in train.items():
        if not paths:
            raise missing(where / "train" / name / "images", "the JPEG files of this class", download=False)
        if len(paths) != PER_CLASS:
            warnings.warn(
                f"{where}: class {name} has {len(paths)} training images, the published set {PER_CLASS}", stacklevel=2
            )
    pairs = [(path, classes[name]) for name, paths in train.items() for path in sorted(paths)]
    held = []
    for line in read("val/val_annotations.txt").decode().splitlines():
        name, label = line.split("\t")[:2]
        if f"val/images/{name}" not in known:
            raise missing(where / "val" / "images" / name, "the image that val_annotations.txt names", download=False)
        if label not in classes:
            raise ValueError(f"{where}: val_annotations.txt says {label!r} of {name}, which wnids.txt does not know")
        held.append((f"val/images/{name}", classes[label]))
    x, y = _decode(where, pairs, read)
    x_test, y_test = _decode(where, held, read)
    return x, y, x_test, y_test


def _decode(where: Path, pairs: list[tuple[str, int]], read: Callable[[str], bytes]) -> tuple[Tensor, Tensor]:
    images = torch.empty(len(pairs), 3, SIDE, SIDE, dtype=torch.uint8)

    def whole(width: int, height: int) -> tuple[float, float, float, float]:
        if (width, height) != (SIDE, SIDE):
            raise ValueError(f"{width}x{height} pixels, expected {SIDE}x{SIDE}")
        return 0, 0, SIDE, SIDE

    def one(number: int) -> None:
        path = pairs[number][0]
        images[number] = decode(where / path, SIDE, whole, read(path))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(one, range(len(pairs)), chunksize=64):
            pass
    return images, torch.tensor([label for _, label in pairs])
