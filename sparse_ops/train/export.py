"""sparse-ops export: the network of a finished run as a torch.export file for inference."""

from pathlib import Path

import torch

import sparse_ops
from sparse_ops.inference import InferenceReport
from sparse_ops.train import data, networks, recipe, run_folder
from sparse_ops.train.augment import batches_of
from sparse_ops.train.run_folder import RunFolder


def write(run: Path, out: Path, *, batch: int, dtype: str, data_dir: Path) -> InferenceReport:
    """Write the sparse network of a run to `out`; what was chosen, measured on `batch` of its test images.

    The recipe in the run's folder says which network; the data set, below data_dir, which images it takes. They are to
    be normalised as in training. Raises ValueError where the run is not finished.
    """
    folder = RunFolder(run)
    if not (folder / run_folder.MODEL).is_file():
        raise ValueError(f"{run} holds no {run_folder.MODEL}: it is no folder of a finished run")
    read = recipe.read(folder / run_folder.RECIPE, {})
    wanted = ("images", "validation", "normalization", "resolution", "resize", "workers")
    images = data.load(read.data.name, data_dir, **{name: getattr(read.data, name) for name in wanted})
    own = {key: value for key, value in vars(read.network).items() if key not in ("name", "weights")}
    model = networks.build(read.network.name, images.shape, images.classes, **own)
    model = sparse_ops.load(folder / run_folder.MODEL, model).eval()
    example = next(batches_of(images.test, images, batch, device=torch.device("cpu")).plain())[0]
    return sparse_ops.export(model, example, out, dtype=dtype).report()
