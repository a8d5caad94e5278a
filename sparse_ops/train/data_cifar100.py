"""CIFAR-100 (Krizhevsky 2009) from its canonical files: the binary version or the python version; the fine labels."""

from pathlib import Path

from torch import Tensor

from sparse_ops.train.data_cifar import locate, read_binary, read_python
from sparse_ops.train.data_files import DataFile, Report, missing, read_verified

ARCHIVE = DataFile(
    "cifar-100-binary.tar.gz",
    168513733,
    "03b5dce01913d631647c71ecec9e9cb8",
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
)
BINARY = (
    DataFile("train.bin", 153700000, "6172c7755cfe09b2fe270c85cebc1b15"),
    DataFile("test.bin", 30740000, "4499cfba6c016c1be1438163640a0898"),
)
PYTHON = (
    DataFile("train", 155249918, "16019d7e3df5f24257cddd939b257f8d"),
    DataFile("test", 0, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
)
BINARY_FOLDER, PYTHON_FOLDER = "cifar-100-binary", "cifar-100-python"


def load(
    data_dir: Path, *, fold: int = 0, download: bool = False, report: Report | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels (50,000), test images and labels (10,000), 100 classes.

    Looked for in data_dir itself and in its folders cifar-100-binary and cifar-100-python.
    """
    if fold != 0:
        raise ValueError(f"cifar100 has a fixed test set: fold is {fold}, expected 0")
    what = "the binary version of CIFAR-100 (train.bin, test.bin) or its python version"
    versions = {BINARY_FOLDER: BINARY, PYTHON_FOLDER: PYTHON}
    folder, files = locate(data_dir, versions, what, ARCHIVE if download else None, report)
    sets = []
    for file in files:
        path = folder / file.name
        if not path.is_file():
            raise missing(path, "the file that belongs to its neighbour")
        content = read_verified(path, file)
        if files is BINARY:  # a byte for the coarse label, then one for the fine label
            sets.append(read_binary(path, content, label_bytes=2, classes=100))
        else:
            sets.append(read_python(path, content, b"fine_labels", classes=100))
    (x, y), (x_test, y_test) = sets
    return x, y, x_test, y_test
