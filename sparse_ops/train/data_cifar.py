"""CIFAR-10 (Krizhevsky 2009) from its canonical files: the binary version or the python batches."""

import io
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_ops.train.data_files import DataFile, Report, fetch, missing, read_verified

ARCHIVE = DataFile(
    "cifar-10-binary.tar.gz",
    170052171,
    "c32a1d4ab5d03f1284b67883e8d87530",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
)
BINARY = (
    DataFile("data_batch_1.bin", 30730000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
    DataFile("data_batch_2.bin", 30730000, "5ea93a67294ea407fff1d09f752e9692"),
    DataFile("data_batch_3.bin", 30730000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
    DataFile("data_batch_4.bin", 30730000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
    DataFile("data_batch_5.bin", 30730000, "53f37980c15c3d472c316c40844f3f0d"),
    DataFile("test_batch.bin", 30730000, "803d5f7f4d78ea53de84dbe85f74fb6d"),
)
PYTHON = (
    DataFile("data_batch_1", 31035704, "c99cafc152244af753f735de768cd75f"),
    DataFile("data_batch_2", 31035320, "d4bba439e000b95fd0a9bffe97cbabec"),
    DataFile("data_batch_3", 31035999, "54ebc095f3ab1f0389bbae665268c751"),
    DataFile("data_batch_4", 31035696, "634d18415352ddfa80567beed471001a"),
    DataFile("data_batch_5", 31035623, "482c414d41f54cd18b22e5b47cb7c3cb"),
    DataFile("test_batch", 31035526, "40351d587109b95175f43aff81a1287e"),
)
BINARY_FOLDER, PYTHON_FOLDER = "cifar-10-batches-bin", "cifar-10-batches-py"
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


def load(
    data_dir: Path, *, fold: int = 0, download: bool = False, report: Report | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels (50,000), test images and labels (10,000).

    Looked for in data_dir itself and in its folders cifar-10-batches-bin and cifar-10-batches-py.
    """
    if fold != 0:
        raise ValueError(f"cifar10 has a fixed test set: fold is {fold}, expected 0")
    what = "the binary version of CIFAR-10 (six .bin files) or its python batches"
    versions = {BINARY_FOLDER: BINARY, PYTHON_FOLDER: PYTHON}
    folder, files = locate(data_dir, versions, what, ARCHIVE if download else None, report)
    read = read_binary if files is BINARY else read_python
    batches = []
    for file in files:
        path = folder / file.name
        if not path.is_file():
            raise missing(path, "the batch that belongs to its neighbours")
        batches.append(read(path, read_verified(path, file)))
    *train, (x_test, y_test) = batches
    return torch.cat([x for x, _ in train]), torch.cat([y for _, y in train]), x_test, y_test


def locate(
    data_dir: Path,
    versions: Mapping[str, tuple[DataFile, ...]],
    what: str,
    archive: DataFile | None,
    report: Report | None,
) -> tuple[Path, tuple[DataFile, ...]]:
    """Where one of the versions is, and its files; the first one is unpacked from the archive where none is.

    MissingData, saying what has to lie there, where there is none and no archive is given.
    """
    found = find(data_dir, versions)
    folder, files = next(iter(versions.items()))
    if found is None and archive is not None:
        extract(fetch(archive, data_dir, report), data_dir / folder, files)
        found = find(data_dir, versions)
    if found is None:
        raise missing(data_dir / folder / files[0].name, what)
    return found


def find(data_dir: Path, versions: Mapping[str, tuple[DataFile, ...]]) -> tuple[Path, tuple[DataFile, ...]] | None:
    """The first version of which a file lies in data_dir or in the version's folder: where, and its files."""
    for name, files in versions.items():
        for folder in (data_dir, data_dir / name):
            if any((folder / file.name).is_file() for file in files):
                return folder, files
    return None


def extract(archive: Path, folder: Path, files: tuple[DataFile, ...]) -> None:
    """Only these files, by name, from the archive's folder of that name; each written beside and renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{folder.name}/{file.name}": file.name for file in files}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name in wanted and (source := tar.extractfile(member)) is not None:
                partial = folder / (wanted[member.name] + ".part")
                partial.write_bytes(source.read())
                partial.replace(folder / wanted[member.name])


def read_binary(path: Path, content: bytes, label_bytes: int = 1, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Records of label bytes, of which the last counts, and 3072 bytes of pixels (red, green, blue planes, row by row).

    path is for errors.
    """
    raw = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)
    size = label_bytes + _PIXELS
    if raw.numel() == 0 or raw.numel() % size:
        raise ValueError(f"{path}: {raw.numel()} bytes are not a whole number of records of {size} bytes")
    records = raw.view(-1, size)
    return records[:, label_bytes:].reshape(-1, *_SHAPE), _labels(path, records[:, label_bytes - 1].long(), classes)


def read_python(path: Path, content: bytes, key: bytes = b"labels", classes: int = 10) -> tuple[Tensor, Tensor]:
    """A pickled dictionary, its labels under `key`, read without running what the file names; path is for errors."""
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        data, labels = batch[b"data"], batch[key]
        n, width = data.shape
        raw = torch.frombuffer(bytearray(data.raw), dtype=torch.uint8)
        if width != _PIXELS or raw.numel() != n * width or len(labels) != n or data.code not in {b"u1", "u1"}:
            raise ValueError(f"data {data.shape} of {data.code}, {raw.numel()} bytes, {len(labels)} labels")
        return raw.view(n, *_SHAPE), _labels(path, torch.tensor([int(label) for label in labels]), classes)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a python batch of CIFAR ({error})") from None


def _labels(path: Path, labels: Tensor, classes: int) -> Tensor:
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"{path}: label {int(labels.max())}, expected 0 to {classes - 1}")
    return labels


class _Array:
    """Stands in for numpy's array while unpickling: keeps shape, element code and bytes."""

    shape: tuple[int, ...] = ()
    code: Any = None
    raw: bytes = b""

    def __init__(self, *ignored: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, self.shape, dtype, _, self.raw = state
        self.code = dtype.code


class _Dtype:
    """Stands in for numpy's dtype while unpickling."""

    def __init__(self, code: Any, *ignored: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Knows the four names that a batch of arrays needs and maps them to the stand-ins; refuses every other name."""

    _known = {  # noqa: RUF012
        "_reconstruct": _Array,
        "ndarray": _Array,
        "dtype": _Dtype,
        "encode": _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in {"numpy", "_codecs"} and name in self._known:
            return self._known[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")
