"""Data sets from small files of their own: verified, read exactly, and refused with a sentence."""

import gzip
import hashlib
import pickle
import tarfile

import numpy as np
import pytest
import torch

from sparse_ops.train import data, data_cifar, data_cifar100, data_fashion, data_files
from sparse_ops.train.data_files import DataFile

RNG = np.random.default_rng(0)


def published(name: str, content: bytes, url: str = "") -> DataFile:
    return DataFile(name, len(content), hashlib.md5(content).hexdigest(), url)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Six batches of four images each, in both versions, and the tables that describe them."""
    pixels = RNG.integers(0, 256, (6, 4, 3072), dtype=np.uint8)
    labels = RNG.integers(0, 10, (6, 4), dtype=np.uint8)
    labels[0, 0] = 9
    binary, python = [], []
    for folder in (data_cifar.BINARY_FOLDER, data_cifar.PYTHON_FOLDER):
        (tmp_path / folder).mkdir()
    for i, (b, p) in enumerate(zip(data_cifar.BINARY, data_cifar.PYTHON, strict=True)):
        raw = np.concatenate([labels[i][:, None], pixels[i]], 1).tobytes()
        (tmp_path / data_cifar.BINARY_FOLDER / b.name).write_bytes(raw)
        binary.append(published(b.name, raw))
        raw = pickle.dumps({b"data": pixels[i], b"labels": labels[i].tolist(), b"batch_label": b"x"}, protocol=2)
        (tmp_path / data_cifar.PYTHON_FOLDER / p.name).write_bytes(raw)
        python.append(published(p.name, raw))
    monkeypatch.setattr(data_cifar, "BINARY", tuple(binary))
    monkeypatch.setattr(data_cifar, "PYTHON", tuple(python))
    return tmp_path, torch.from_numpy(pixels).view(6, 4, 3, 32, 32), torch.from_numpy(labels).long()


@pytest.mark.parametrize("folder", [data_cifar.BINARY_FOLDER, data_cifar.PYTHON_FOLDER])
def test_cifar_reads_both_versions(cifar, folder):
    root, pixels, labels = cifar
    for place in (root, root / folder):
        if place == root and folder == data_cifar.PYTHON_FOLDER:
            continue  # where both are, the binary version is read
        loaded = data.load("cifar10", place)
        assert torch.equal(loaded.train.images, pixels[:5].flatten(0, 1))
        assert torch.equal(loaded.train.labels, labels[:5].flatten())
        assert torch.equal(loaded.test.images, pixels[5])
        assert torch.equal(loaded.test.labels, labels[5])
        assert loaded.train.images.dtype == torch.uint8 and loaded.classes == 10
        x = loaded.train.images.double()
        assert loaded.mean == pytest.approx(x.mean((0, 2, 3)).tolist(), rel=1e-12)
        assert loaded.std == pytest.approx(x.std((0, 2, 3), correction=0).tolist(), rel=1e-12)


def test_a_wrong_size_is_an_error_that_names_both(cifar):
    path = cifar[0] / data_cifar.BINARY_FOLDER / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3.bin: 12291 bytes, expected 12292"):
        data.load("cifar10", cifar[0])


def test_another_checksum_is_a_warning_that_names_both(cifar):
    path = cifar[0] / data_cifar.BINARY_FOLDER / "test_batch.bin"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(raw)
    found, expected = hashlib.md5(raw).hexdigest(), data_cifar.BINARY[5].md5
    with pytest.warns(UserWarning, match=f"test_batch.bin: md5 is {found}, the published file has {expected}"):
        loaded = data.load("cifar10", cifar[0])
    assert len(loaded.test) == 4


def test_a_missing_batch_is_named(cifar):
    (cifar[0] / data_cifar.BINARY_FOLDER / "data_batch_5.bin").unlink()
    with pytest.raises(ValueError, match=r"data_batch_5.bin is missing; put .* there"):
        data.load("cifar10", cifar[0])


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_missing_files_say_where_they_go(name, tmp_path):
    with pytest.raises(ValueError, match=r"is missing; put .* there, or fetch it with --download") as error:
        data.load(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    """Five training and three test images in both versions; coarse labels that are not the fine ones."""
    sets = []
    tables = {"BINARY": [], "PYTHON": []}
    folders = {"BINARY": data_cifar100.BINARY_FOLDER, "PYTHON": data_cifar100.PYTHON_FOLDER}
    for folder in folders.values():
        (tmp_path / folder).mkdir()
    for i, n in enumerate((5, 3)):
        pixels = RNG.integers(0, 256, (n, 3072), dtype=np.uint8)
        fine, coarse = RNG.integers(0, 100, n, dtype=np.uint8), RNG.integers(0, 20, n, dtype=np.uint8)
        fine[0] = 99
        columns = [coarse[:, None], fine[:, None], pixels]
        table = {b"data": pixels, b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}
        raws = {"BINARY": np.concatenate(columns, 1).tobytes(), "PYTHON": pickle.dumps(table, protocol=2)}
        for version, raw in raws.items():
            name = getattr(data_cifar100, version)[i].name
            (tmp_path / folders[version] / name).write_bytes(raw)
            tables[version].append(published(name, raw))
        sets.append((torch.from_numpy(pixels).view(n, 3, 32, 32), torch.from_numpy(fine).long()))
    tables["PYTHON"][1] = DataFile("test", 0, tables["PYTHON"][1].md5)  # its size is not published
    for version, files in tables.items():
        monkeypatch.setattr(data_cifar100, version, tuple(files))
    return tmp_path, sets


@pytest.mark.parametrize("folder", [data_cifar100.BINARY_FOLDER, data_cifar100.PYTHON_FOLDER])
def test_cifar100_reads_both_versions(cifar100, folder):
    root, ((x, y), (x_test, y_test)) = cifar100
    loaded = data.load("cifar100", root / folder)
    assert torch.equal(loaded.train.images, x) and torch.equal(loaded.train.labels, y)
    assert torch.equal(loaded.test.images, x_test) and torch.equal(loaded.test.labels, y_test)
    assert loaded.classes == 100 and loaded.shape == (3, 32, 32)


def test_a_damaged_cifar100_is_refused(cifar100):
    root, _ = cifar100
    path = root / data_cifar100.BINARY_FOLDER / "test.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"test.bin: 9221 bytes, expected 9222"):
        data.load("cifar100", root)
    path.unlink()
    with pytest.raises(ValueError, match=r"test.bin is missing; put the file that belongs"):
        data.load("cifar100", root)
    path = root / data_cifar100.PYTHON_FOLDER / "test"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="md5"), pytest.raises(ValueError, match="test: not a python batch"):
        data.load("cifar100", path.parent)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Evil(), protocol=2),
        pickle.dumps({b"data": Evil()}, protocol=2),
        pickle.dumps({b"labels": [1]}, protocol=2),
        pickle.dumps({b"data": np.zeros((2, 3072), dtype=np.float32), b"labels": [1, 2]}, protocol=2),
        pickle.dumps({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [1]}, protocol=2),
        pickle.dumps({b"data": np.zeros((2, 3072), dtype=np.uint8), b"labels": [1, 10]}, protocol=2),
        b"",
        b"no pickle",
    ],
)
def test_a_foreign_python_batch_is_refused_and_never_run(content, tmp_path):
    with pytest.raises(ValueError, match="x"):
        data_cifar.read_python(tmp_path / "x", content)


def idx(values: np.ndarray) -> bytes:
    header = b"\x00\x00\x08" + bytes([values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return header + values.tobytes()


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    arrays, table = [], []
    for (packed, contents), shape in zip(data_fashion.FILES, [(7, 28, 28), (7,), (3, 28, 28), (3,)], strict=True):
        values = RNG.integers(0, 10, shape, dtype=np.uint8)
        raw = idx(values)
        zipped = gzip.compress(raw)
        (tmp_path / packed.name).write_bytes(zipped)
        table.append((published(packed.name, zipped, packed.url), published(contents.name, raw)))
        arrays.append(torch.from_numpy(values))
    monkeypatch.setattr(data_fashion, "FILES", tuple(table))
    return tmp_path, arrays


def test_fashion_mnist(fashion):
    root, (x, y, x_test, y_test) = fashion
    loaded = data.load("fashion_mnist", root)
    assert torch.equal(loaded.train.images[:, 0], x) and torch.equal(loaded.test.images[:, 0], x_test)
    assert torch.equal(loaded.train.labels, y.long()) and torch.equal(loaded.test.labels, y_test.long())
    assert loaded.shape == (1, 28, 28)
    path = root / data_fashion.FILES[0][0].name  # packed otherwise, with the same contents
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
    assert torch.equal(data.load("fashion_mnist", root).train.images[:, 0], x)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda raw: gzip.compress(raw + b"1"), r"5505 bytes, expected 5504"),
        (lambda raw: gzip.compress(raw)[:-20], r"damaged gzip file of \d+ bytes"),
        (lambda raw: raw, "damaged gzip file"),
    ],
)
def test_damaged_fashion_files(fashion, damage, message):
    path = fashion[0] / data_fashion.FILES[0][0].name
    path.write_bytes(damage(gzip.decompress(path.read_bytes())))
    with pytest.raises(ValueError, match=f"{path.name}.*{message}"):
        data.load("fashion_mnist", fashion[0])


def test_idx_headers_are_checked(tmp_path):
    with pytest.raises(ValueError, match="not an idx file of bytes, it begins with 00000d01"):
        data_fashion.read_idx(tmp_path / "f", b"\x00\x00\x0d\x01" + bytes(8))
    with pytest.raises(ValueError, match=r"3 bytes of values, expected 4 for shape \[4\]"):
        data_fashion.read_idx(tmp_path / "f", idx(np.zeros(4, dtype=np.uint8))[:-1])


def test_download_verifies_and_renames(tmp_path):
    content = RNG.bytes(3_000_000)
    source = tmp_path / "served"
    source.write_bytes(content)
    steps = []
    file = published("file.bin", content, source.as_uri())
    path = data_files.fetch(file, tmp_path / "data", lambda done, total: steps.append((done, total)))
    assert path.read_bytes() == content
    assert steps[-1] == (len(content), len(content)) and len(steps) > 2
    source.write_bytes(content[:-1] + b"?")
    with pytest.raises(ValueError, match=r"got 3000000 bytes with md5 \w+, expected 3000000 with"):
        data_files.fetch(file, tmp_path / "data")
    assert path.read_bytes() == content  # the good file stays
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["file.bin"]


def test_no_network_is_one_sentence(tmp_path):
    file = DataFile("file.bin", 1, "0" * 32, (tmp_path / "nowhere").as_uri())
    with pytest.raises(ValueError, match=r"file.bin is missing and file://.* cannot be fetched .*; put it there"):
        data_files.fetch(file, tmp_path / "data")


def test_cifar_archive_gives_only_its_batches(cifar, tmp_path, monkeypatch):
    root, pixels, _ = cifar
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / data_cifar.BINARY_FOLDER, data_cifar.BINARY_FOLDER)
        tar.add(__file__, "../outside.py")
    content = archive.read_bytes()
    monkeypatch.setattr(data_cifar, "ARCHIVE", published("cifar-10-binary.tar.gz", content, archive.as_uri()))
    loaded = data.load("cifar10", tmp_path / "fresh" / "data", download=True)
    assert torch.equal(loaded.test.images, pixels[5])
    assert not (tmp_path / "fresh" / "outside.py").exists()


def test_digits_folds_are_a_partition():
    pytest.importorskip("sklearn")
    folds = [data.load("digits", None, fold=k) for k in range(5)]
    tests = torch.cat([f.test.images.flatten(1) for f in folds])
    assert tests.shape == (1797, 64)
    everything = torch.cat([folds[0].train.images, folds[0].test.images]).flatten(1)
    assert torch.equal(torch.unique(tests, dim=0), torch.unique(everything, dim=0))
    for f in folds:
        assert len(f.train) + len(f.test) == 1797 and f.shape == (1, 8, 8) and f.classes == 10
    assert torch.equal(folds[2].test.images, data.load("digits", None, fold=2).test.images)
    with pytest.raises(ValueError, match="fold is 5, expected 0 to 4"):
        data.load("digits", None, fold=5)


def test_subsets_are_always_the_same_and_never_overlap(cifar):
    root, pixels, labels = cifar
    whole = data.load("cifar10", root)
    assert whole.validation is None and len(whole.train) == 20

    def numbers(images):
        found = (pixels[:5].flatten(0, 1).flatten(1)[None] == images.images.flatten(1)[:, None]).all(2)
        assert (found.sum(1) == 1).all() and torch.equal(labels[:5].flatten()[found.int().argmax(1)], images.labels)
        return found.int().argmax(1).tolist()

    large, small = (data.load("cifar10", root, images=n, validation=4) for n in (12, 5))
    assert [len(x) for x in (large.train, large.validation, small.train)] == [12, 4, 5]
    assert numbers(large.train)[:5] == numbers(small.train)
    assert numbers(large.validation) == numbers(small.validation)
    assert not set(numbers(large.train)) & set(numbers(large.validation))
    rest = data.load("cifar10", root, validation=4)
    assert sorted(numbers(rest.train) + numbers(rest.validation)) == list(range(20))
    assert torch.equal(rest.test.images, whole.test.images) and small.classes == whole.classes
    assert small.mean == pytest.approx(small.train.images.double().mean((0, 2, 3)).tolist(), rel=1e-12)
    for images, validation in ((17, 4), (0, 20), (0, 21)):
        message = f"data.images is {images} and data.validation {validation}; there are 20 training images"
        with pytest.raises(ValueError, match=message):
            data.load("cifar10", root, images=images, validation=validation)


def test_normalization_by_imagenet(cifar, fashion):
    loaded = data.load("cifar10", cifar[0], normalization="imagenet")
    assert loaded.mean == pytest.approx((123.675, 116.28, 103.53)) and loaded.std == pytest.approx(
        (58.395, 57.12, 57.375)
    )
    with pytest.raises(ValueError, match=r"data.normalization is 'imagenet', but fashion_mnist has 1 channel"):
        data.load("fashion_mnist", fashion[0], normalization="imagenet")


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"'cifar_10' is unknown; did you mean 'cifar10'\?"):
        data.load("cifar_10", tmp_path)
