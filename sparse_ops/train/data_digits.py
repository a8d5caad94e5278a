"""The handwritten digits that scikit-learn ships: 1797 images of 8x8 pixels, no download."""

from pathlib import Path

import torch
from torch import Tensor

from sparse_ops.train.data_files import Report

FOLDS = 5
_SPLIT_SEED = 0  # the split is part of the data set: the same for every seed of a run


def load(
    data_dir: Path, *, fold: int = 0, download: bool = False, report: Report | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; fold k of five is the test set, the rest is for training."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("the digits come with scikit-learn: pip install 'sparse_ops[train]'") from None
    if not 0 <= fold < FOLDS:
        raise ValueError(f"digits: fold is {fold}, expected 0 to {FOLDS - 1}")
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.uint8)[:, None]  # values 0 to 16
    y = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    parts = list(order.tensor_split(FOLDS))
    test = parts.pop(fold)
    train = torch.cat(parts)
    return x[train], y[train], x[test], y[test]
