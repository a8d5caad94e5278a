"""After training: the sparse network, the proof that it computes the same, its speed and its file."""

import copy
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sparse_ops
from sparse_ops.train import figures, info, run_folder
from sparse_ops.train.augment import batches_of
from sparse_ops.train.data import DataSet
from sparse_ops.train.loop import outputs
from sparse_ops.train.progress import Progress
from sparse_ops.train.run_folder import RunFolder

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
BATCH, THREADS, ROUNDS, SAMPLE_SECONDS = 64, 2, 31, 0.02
MOST_IMAGES = 10_000  # of a test set, over which the networks are compared


def deploy(pruned: nn.Module, dense: nn.Module, data: DataSet, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """The part of the summary about the sparse network; writes its file, and the dense network's for comparison.

    Everything runs on the CPU in float32, in inference mode, with 2 threads and batches of 64 test images.
    """
    images: Any = data.test
    if len(images) > MOST_IMAGES:  # evenly spread, since files come by class
        images = images.take(torch.linspace(0, len(images) - 1, MOST_IMAGES).long())
    test = batches_of(images, data, BATCH, device=torch.device("cpu"))
    example = next(test.plain())[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    used = torch.get_num_threads()
    policy = os.environ.get("OMP_WAIT_POLICY", "default")  # what PyTorch's threads do while they wait for each other
    try:
        sparse = sparse_ops.sparsify(pruned, example)
        table: Any = sparse.sparsify_table
        model_file, dense_file = folder / run_folder.MODEL, folder / run_folder.DENSE
        sparse_ops.save(sparse, model_file)
        sparse_ops.save(dense, dense_file)
        wanted, labels = outputs(pruned, test.plain(), "float32")
        found, _ = outputs(sparse, test.plain(), "float32")
        loaded = sparse_ops.load(model_file, copy.deepcopy(dense)).eval()
        again, _ = outputs(loaded, test.plain(), "float32")
        progress.say("timing the dense and the sparse network ...")
        milliseconds = time_networks({"dense": dense, "sparse": sparse}, example)
    finally:
        torch.set_num_threads(threads)
    zeros, prunable = figures.count_zeros(pruned)
    best = {name: min(ms for (n, _), ms in milliseconds.items() if n == name) for name in ("dense", "sparse")}
    return {
        "sparsity": zeros / prunable,
        "zeros": zeros,
        "prunable": prunable,
        "layers": [layer | {"shape": list(layer["shape"])} for layer in table.to_dict()["layers"]],
        "test_images": len(images),
        "machine": f"{info.processor()}, {os.cpu_count()} logical cores",
        "threads": {"layer_table": used, "networks": used},
        "omp_wait_policy": policy,
        "max_abs_difference_sparse_vs_masked": float((found - wanted).abs().max()),
        "max_abs_difference_loaded_vs_sparse": float((again - found).abs().max()),
        "max_abs_output": float(wanted.abs().max()),
        "sparse_network_accuracy": float((found.argmax(1) == labels).double().mean()),
        "dense_ms": best["dense"],
        "sparse_ms": best["sparse"],
        "ms": {f"{name} {layout}": ms for (name, layout), ms in milliseconds.items()},
        "timing": f"batch {BATCH}, float32, inference mode, {used} thread{'s' * (used > 1)}, "
        f"OMP_WAIT_POLICY {policy}, median of {ROUNDS} interleaved rounds",
        "dense_bytes": dense_file.stat().st_size,
        "sparse_bytes": model_file.stat().st_size,
        "model_file": str(model_file),
    }


@torch.inference_mode()
def time_networks(networks: dict[str, nn.Module], example: Tensor) -> dict[tuple[str, str], float]:
    """(network, layout) -> median milliseconds of one batch, all contenders timed in turn in every round.

    In channels_last both the images and the convolution weights of a (copied) network are laid out so.
    """
    runs: dict[tuple[str, str], Callable[[], Tensor]] = {}
    for name, network in networks.items():
        for layout, memory_format in LAYOUTS.items():
            laid_out = copy.deepcopy(network).eval().to(memory_format=memory_format)  # type: ignore[call-overload]
            runs[name, layout] = functools.partial(laid_out, example.contiguous(memory_format=memory_format))
    once = {key: min(_seconds(run, 1) for _ in range(5)) for key, run in runs.items()}
    repeats = {key: max(1, round(SAMPLE_SECONDS / seconds)) for key, seconds in once.items()}
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    order = list(runs)
    for i in range(ROUNDS):
        for key in order[i % len(order) :] + order[: i % len(order)]:  # nobody always runs after the same neighbour
            samples[key].append(_seconds(runs[key], repeats[key]))
    return {key: 1e3 * statistics.median(values) for key, values in samples.items()}


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats
