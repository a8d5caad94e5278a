"""ImageNet and Tiny ImageNet from small files in their real layout: labels, windows, determinism, errors."""

import io
import random
import sys
import zipfile

import pytest
import torch

from sparse_ops.train import data, data_tiny_imagenet, deploy, image_files
from sparse_ops.train.augment import Augmentation, FileBatches, batches_of
from sparse_ops.train.data_files import DataFile
from sparse_ops.train.job import Job, Options
from sparse_ops.train.loop import Stopped
from sparse_ops.train.progress import Plain
from sparse_ops.train.recipe import parse

Image = pytest.importorskip("PIL.Image")
WNIDS = ["n01440764", "n02123045", "n03000134"]
CPU = torch.device("cpu")


def picture(path, width, height, seed=0, mode="RGB", format="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (5, 5, 3), generator=rng, dtype=torch.uint8)
    image = Image.frombytes("RGB", (5, 5), bytes(small.flatten().tolist())).resize((width, height)).convert(mode)
    image.save(path, format)
    return path


@pytest.fixture
def imagenet(tmp_path):
    """Three classes of four training and two validation images of several sizes; one is grey, one a PNG by contents."""
    seed = 0
    for wnid in reversed(WNIDS):
        for i in range(4):
            seed += 1
            mode, format = ("L", "JPEG") if i == 1 else ("RGB", "PNG" if i == 2 else "JPEG")
            picture(tmp_path / "train" / wnid / f"{wnid}_{i}.JPEG", 60 + 7 * seed, 48 + 5 * i, seed, mode, format)
        for _ in range(2):
            seed += 1
            picture(tmp_path / "val" / wnid / f"ILSVRC2012_val_{seed:08}.JPEG", 70, 50, seed)
    (tmp_path / "train" / "notes.txt").write_text("no class")
    return tmp_path


def load(path, **options):
    return data.load("imagenet", path, resolution=32, resize=40, **options)


def test_imagenet_is_found_and_labelled(imagenet):
    loaded = load(imagenet)
    assert loaded.classes == 3 and loaded.shape == (3, 32, 32)
    assert len(loaded.train) == 12 and len(loaded.test) == 6
    for files in (loaded.train, loaded.test):
        assert [WNIDS.index(path.parent.name) for path in files.paths] == files.labels.tolist()
    assert loaded.mean == pytest.approx((123.675, 116.28, 103.53))


def test_flat_validation_images_are_labelled_by_the_solution(imagenet):
    expected = {}
    for path in sorted((imagenet / "val").rglob("*.JPEG")):
        expected[path.stem] = path.parent.name
        path.rename(imagenet / "val" / path.name)
    lines = ["ImageId,PredictionString", *(f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for name, wnid in expected.items())]
    with pytest.raises(ValueError, match=r"LOC_val_solution.csv is missing; put the file that says their classes"):
        load(imagenet)
    solution = imagenet / "LOC_val_solution.csv"
    solution.write_text("\n".join(lines) + "\n")
    test = load(imagenet).test
    assert {path.stem: WNIDS[label] for path, label in zip(test.paths, test.labels, strict=True)} == expected
    solution.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"ILSVRC2012_val_\d+.JPEG: .* says '' of it, which is no class of train/"):
        load(imagenet)


def test_what_is_missing_is_named(imagenet, tmp_path):
    with pytest.raises(ValueError, match=r"imagenet/train is missing; put a folder for each class there"):
        load(imagenet / "elsewhere")
    (imagenet / "val" / WNIDS[0]).rename(imagenet / "val" / "n99999999")
    with pytest.raises(ValueError, match=r"n99999999: train/ has no class of this name"):
        load(imagenet)
    (imagenet / "val" / "n99999999").rename(imagenet / "moved")
    with pytest.raises(ValueError, match=r"val/n01440764 is missing; put the JPEG files of this class there"):
        load(imagenet)


@pytest.mark.parametrize("workers", [1, 4])
def test_an_epoch_depends_on_seed_and_epoch_alone(imagenet, workers):
    loaded = load(imagenet, workers=workers)
    batches = batches_of(loaded.train, loaded, 5, device=CPU, augmentation=Augmentation(flip=True), channels_last=True)
    assert isinstance(batches, FileBatches) and len(batches) == 3
    epochs = [list(batches.epoch(*key)) for key in ((0, 0), (0, 0), (0, 1), (1, 0))]
    for x, y in epochs[0]:
        assert x.shape == (len(y), 3, 32, 32) and x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(epochs[0], epochs[1], strict=True))
    for other in epochs[2:]:
        assert not torch.equal(epochs[0][0][0], other[0][0])
    for epoch in epochs:
        assert sorted(torch.cat([y for _, y in epoch]).tolist()) == sorted(loaded.train.labels.tolist())
    single = batches_of(loaded.train, loaded, 12, device=CPU, augmentation=Augmentation(flip=True))
    whole, labels = next(single.epoch(0, 0))  # the same images whatever the batches are
    assert torch.equal(labels, torch.cat([y for _, y in epochs[0]]))
    assert torch.equal(whole, torch.cat([x for x, _ in epochs[0]]))


def test_a_central_crop_is_that_of_the_resized_image(imagenet):
    loaded = load(imagenet)
    batches = batches_of(loaded.test, loaded, 4, device=CPU, augmentation=Augmentation(flip=True))
    x = torch.cat([x for x, _ in batches.plain()])
    assert torch.cat([y for _, y in batches.plain()]).tolist() == [0, 0, 1, 1, 2, 2]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (loaded.mean, loaded.std))
    for image, path in zip(x, loaded.test.paths, strict=True):
        resized = Image.open(path).resize((56, 40), Image.Resampling.BILINEAR)  # 70 x 50 with the shorter side at 40
        cropped = resized.crop((12, 4, 44, 36))
        wanted = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)
        assert ((image * std + mean) - wanted).abs().max() <= 2  # rounding of the resampling


def test_windows_have_the_asked_areas_and_shapes():
    rng = random.Random(0)
    areas = []
    for _ in range(2000):
        left, top, right, bottom = image_files.random_window(400, 300, rng)
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        areas.append((right - left) * (bottom - top) / 120_000)
        assert 0.74 <= (right - left) / (bottom - top) <= 1.35
    assert 0.078 <= min(areas) < 0.1 and 0.95 < max(areas) <= 1
    assert image_files.random_window(1000, 10, rng) == (493, 0, 506, 10)  # nothing fits: the central 4:3
    assert image_files.random_window(10, 1000, rng) == (0, 493, 10, 506)


def test_flips_mirror_the_same_window(imagenet):
    files = load(imagenet).train
    flipped = 0
    for number in range(12):
        plain, other = (files.random_crop(number, 0, 0, flip) for flip in (False, True))
        assert torch.equal(plain, other) or torch.equal(plain.flip(2), other)
        flipped += not torch.equal(plain, other)
    assert 2 <= flipped <= 10


def test_a_damaged_image_is_named(imagenet):
    path = imagenet / "train" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG"
    for content in (path.read_bytes()[:150], b"", b"no image"):
        path.write_bytes(content)
        loaded = load(imagenet)
        with pytest.raises(ValueError, match=rf"{path.name}: no image that can be read"):
            list(batches_of(loaded.train, loaded, 4, device=CPU).epoch(0, 0))


def test_subsets_of_files(imagenet):
    loaded = load(imagenet, images=5, validation=3)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (5, 3, 6)
    assert not set(loaded.train.paths) & set(loaded.validation.paths)
    for files in (loaded.train, loaded.validation):
        assert [WNIDS.index(path.parent.name) for path in files.paths] == files.labels.tolist()


def test_pillow_is_asked_for(imagenet, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r"image files are read by Pillow: pip install 'sparse_ops\[images\]'"):
        load(imagenet)


# Eight channels at least: of fewer, on a Zen 3 (AVX2), the weight gradient of torch 2.13.0's own channels-last 1x1
# convolution with stride 2 corrupts the heap.
TABLE = {
    "data": {"name": "imagenet", "batch_size": 4, "flip": True, "resolution": 32, "resize": 40, "workers": 2},
    "network": {"name": "resnet18", "width": 8},
    "method": {"name": "oneshot", "sparsity": 0.5, "pretrain_epochs": 1, "finetune_epochs": 1},
    "training": {"dense": False, "oneshot": False},
}


def test_a_run_from_files_resumes(imagenet, tmp_path, monkeypatch):
    for name, value in {"ROUNDS": 1, "SAMPLE_SECONDS": 1e-4, "THREADS": 1, "MOST_IMAGES": 4}.items():
        monkeypatch.setattr(deploy, name, value)

    def run(name, **options):
        return Job(parse(TABLE), Options(run=tmp_path / name, data_dir=imagenet, **options), Plain()).run()

    summary = run("whole")
    assert summary["epochs"] == 2 and summary["test_images"] == 4 and summary["zeros"] > 0
    with pytest.raises(Stopped):
        run("halves", max_epochs=1)
    run("halves", resume=True)
    a, b = (torch.load(tmp_path / name / "stages" / "fold0-oneshot.pt")["model"] for name in ("whole", "halves"))
    assert all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"crop": 4}, "data.crop is 4, but imagenet is cropped at random"),
        ({"resize": 30}, "data.resize is 30, expected"),
    ],
)
def test_recipes_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        parse(TABLE | {"data": TABLE["data"] | change})


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Three classes of two training images, three validation images, in the layout of the zip file."""
    root = tmp_path / data_tiny_imagenet.FOLDER
    root.mkdir()
    (root / "wnids.txt").write_text("\n".join([WNIDS[2], WNIDS[0], WNIDS[1]]) + "\n")
    (root / "words.txt").write_text("n01440764\ttench\n")
    for c, wnid in enumerate(WNIDS):
        for i in range(2):
            picture(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 64, 64, 10 * c + i, "L" if i else "RGB")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    lines = []
    for i, wnid in enumerate([WNIDS[1], WNIDS[2], WNIDS[0]]):
        picture(root / "val" / "images" / f"val_{i}.JPEG", 64, 64, 100 + i)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    picture(root / "test" / "images" / "test_0.JPEG", 64, 64)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(tmp_path))
    monkeypatch.setattr(data_tiny_imagenet, "PER_CLASS", 2)
    monkeypatch.setattr(data_tiny_imagenet, "ARCHIVE", DataFile("tiny-imagenet-200.zip", len(packed.getvalue()), ""))
    return root, packed.getvalue()


def test_tiny_imagenet_from_folder_and_zip(tiny, tmp_path):
    root, packed = tiny
    folder = data.load("tiny_imagenet", tmp_path)
    assert folder.shape == (3, 64, 64) and folder.classes == 3
    assert folder.train.labels.tolist() == [0, 0, 1, 1, 2, 2] and folder.test.labels.tolist() == [1, 2, 0]
    image = Image.open(root / "train" / WNIDS[1] / "images" / f"{WNIDS[1]}_0.JPEG")
    wanted = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1)
    assert torch.equal(folder.train.images[2], wanted)
    grey = folder.train.images[3]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    elsewhere = tmp_path / "zipped"
    elsewhere.mkdir()
    (elsewhere / "tiny-imagenet-200.zip").write_bytes(packed)
    with pytest.warns(UserWarning, match="md5"):  # that of the stand-in is not published
        zipped = data.load("tiny_imagenet", elsewhere)
    for a, b in ((folder.train, zipped.train), (folder.test, zipped.test)):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def test_tiny_imagenet_that_is_not_whole(tiny, tmp_path):
    root, packed = tiny
    (root / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(ValueError, match=r"val_1.JPEG is missing; put the image that val_annotations.txt names"):
        data.load("tiny_imagenet", tmp_path)
    picture(root / "val" / "images" / "val_1.JPEG", 60, 64)
    with pytest.raises(ValueError, match=r"val_1.JPEG: no image that can be read \(60x64 pixels, expected 64x64\)"):
        data.load("tiny_imagenet", tmp_path)
    picture(root / "val" / "images" / "val_1.JPEG", 64, 64)
    (root / "train" / WNIDS[0] / "images" / f"{WNIDS[0]}_1.JPEG").unlink()
    with pytest.warns(UserWarning, match=r"class n01440764 has 1 training images, the published set 2"):
        data.load("tiny_imagenet", tmp_path)
    with pytest.raises(ValueError, match=r"tiny-imagenet-200.zip is missing; put .*, or fetch it with --download"):
        data.load("tiny_imagenet", tmp_path / "elsewhere")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tiny-imagenet-200.zip").write_bytes(bytes(len(packed)))
    with pytest.warns(UserWarning, match="md5"), pytest.raises(ValueError, match="damaged zip file"):
        data.load("tiny_imagenet", broken)
