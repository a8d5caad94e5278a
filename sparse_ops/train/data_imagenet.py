"""ImageNet (ILSVRC 2012) from its folders: train/<wnid>/*.JPEG, and val/ by class or with LOC_val_solution.csv."""

from pathlib import Path

import torch

from sparse_ops.train.data_files import missing
from sparse_ops.train.image_files import ImageFiles, listed, pillow

SOLUTION = "LOC_val_solution.csv"


def load(data_dir: Path, *, resolution: int, resize: int, workers: int) -> tuple[ImageFiles, ImageFiles, int]:
    """Training images, validation images (which serve as test images), number of classes: the folders of train/.

    Looked for in data_dir itself and in its folder imagenet. Classes are numbered by the sorted names of their folders.
    Validation images lie in folders of the same names, or all in val/ beside a file LOC_val_solution.csv (of lines
    "ILSVRC2012_val_00000001,n01751748 ..."), there or in the folder above.
    """
    pillow()
    root = next((f for f in (data_dir, data_dir / "imagenet") if (f / "train").is_dir()), None)
    if root is None:
        raise missing(data_dir / "imagenet" / "train", "a folder for each class", download=False)
    if not (root / "val").is_dir():
        raise missing(root / "val", "the validation images", download=False)
    classes = sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir())
    if not classes:
        raise missing(root / "train", "a folder for each class", download=False)
    numbers = {name: i for i, name in enumerate(classes)}

    def files(pairs: list[tuple[Path, str]]) -> ImageFiles:
        labels = torch.tensor([numbers[name] for _, name in pairs])
        return ImageFiles([path for path, _ in pairs], labels, resolution, resize, workers)

    return files(_by_class(root / "train", classes)), files(_validation(root, classes)), len(classes)


def _by_class(folder: Path, classes: list[str]) -> list[tuple[Path, str]]:
    pairs = []
    for name in classes:
        images = listed(folder / name) if (folder / name).is_dir() else []
        if not images:
            raise missing(folder / name, "the JPEG files of this class", download=False)
        pairs += [(path, name) for path in images]
    return pairs


def _validation(root: Path, classes: list[str]) -> list[tuple[Path, str]]:
    folder = root / "val"
    images = listed(folder)
    if not images:
        strange = sorted({f.name for f in folder.iterdir() if f.is_dir()} - set(classes))
        if strange:
            raise ValueError(f"{folder / strange[0]}: train/ has no class of this name")
        return _by_class(folder, classes)
    solution = next((f / SOLUTION for f in (folder, root) if (f / SOLUTION).is_file()), None)
    if solution is None:
        where = "the file that says their classes (or move them into folders by class)"
        raise missing(folder / SOLUTION, where, download=False)
    known = {}
    for line in solution.read_text().splitlines():
        name, _, prediction = line.partition(",")
        known[name] = prediction.split(" ")[0]
    pairs = []
    for path in images:
        label = known.get(path.stem, "")
        if label not in classes:
            raise ValueError(f"{path}: {solution} says {label!r} of it, which is no class of train/")
        pairs.append((path, label))
    return pairs
