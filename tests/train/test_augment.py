"""Batches against an independent, image by image formula."""

import pytest
import torch
from torch.nn import functional as F

from sparse_ops.train.augment import Augmentation, Batches
from sparse_ops.train.data import DataSet, Images, channel_statistics

CPU = torch.device("cpu")


def dataset(n=37, c=3, h=6, w=5):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, c, h, w), generator=rng, dtype=torch.uint8)
    labels = torch.arange(n)
    mean, std = channel_statistics(images)
    return DataSet("own", Images(images, labels), Images(images, labels), n, mean, std)


def normalized(data, x):
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (data.mean, data.std))
    return (x.double() - mean) / std


@pytest.mark.parametrize("crop, flip", [(0, False), (1, False), (2, True)])
def test_every_image_comes_once_as_a_window_of_itself(crop, flip):
    data = dataset()
    batches = Batches(data.train, data, 8, device=CPU, augmentation=Augmentation(crop, flip))
    seen, chosen = [], []
    for x, y in batches.epoch(0, 3):
        assert x.dtype == torch.float32 and x.shape == (len(y), 3, 6, 5)
        for image, label in zip(x, y, strict=True):
            padded = F.pad(data.train.images[label], (crop,) * 4)
            windows = {
                (top, left, mirrored): padded[:, top : top + 6, left : left + 5].flip(2 if mirrored else ())
                for top in range(2 * crop + 1)
                for left in range(2 * crop + 1)
                for mirrored in ([False, True] if flip else [False])
            }
            near = [k for k, v in windows.items() if torch.allclose(image.double(), normalized(data, v), atol=1e-5)]
            assert len(near) == 1, "the image is none of its windows"
            chosen += near
        seen += y.tolist()
    assert sorted(seen) == list(range(37)) and seen != list(range(37))
    possible = (2 * crop + 1) ** 2 * (1 + flip)
    assert len(set(chosen)) > min(possible, 37) * 0.4  # the choices vary


def test_an_epoch_depends_on_seed_and_epoch_alone():
    data = dataset()
    batches = Batches(data.train, data, 8, device=CPU, augmentation=Augmentation(2, True))
    first = [x for x, _ in batches.epoch(1, 5)]
    torch.rand(7)  # the global generator plays no part
    assert all(map(torch.equal, first, [x for x, _ in batches.epoch(1, 5)]))
    for other in (batches.epoch(1, 6), batches.epoch(2, 5)):
        assert not torch.equal(first[0], next(other)[0])


def test_plain_is_in_order_and_untouched():
    data = dataset()
    batches = Batches(data.test, data, 10, device=CPU, augmentation=Augmentation(2, True), channels_last=True)
    x = torch.cat([x for x, _ in batches.plain()])
    assert torch.cat([y for _, y in batches.plain()]).tolist() == list(range(37))
    torch.testing.assert_close(x.double(), normalized(data, data.test.images), rtol=1e-5, atol=1e-5)
    assert next(batches.plain())[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("n, size", [(17, 8), (16, 8), (18, 8), (1, 8), (3, 1), (1, 1), (5, 4), (2, 5)])
def test_steps_are_counted_as_they_come(n, size):
    data = dataset(n)
    batches = Batches(data.train, data, size, device=CPU)
    assert len(batches) == len(list(batches.epoch(0, 0))) > 0


def test_a_last_image_alone_is_dropped_in_training_only():
    data = dataset(n=17)
    batches = Batches(data.train, data, 8, device=CPU)
    assert [len(y) for _, y in batches.epoch(0, 0)] == [8, 8]
    assert [len(y) for _, y in batches.plain()] == [8, 8, 1]
