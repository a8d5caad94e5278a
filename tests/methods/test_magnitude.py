"""OneShot: where its one pruning falls, and what it prunes."""

import pytest
import torch
from method_runs import OPTIMIZERS, Run

from sparse_ops import methods
from sparse_ops.masks import magnitude_mask

pytestmark = pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")


def test_half_of_the_epochs_are_dense_the_odd_one_too():
    halves = {epochs: tuple(methods.OneShot.for_epochs(epochs).values()) for epochs in (1, 2, 5, 320)}
    assert halves == {1: (1, 0), 2: (1, 1), 5: (3, 2), 320: (160, 160)}


def test_the_smallest_magnitudes_of_the_last_dense_epoch_are_pruned_and_the_optimiser_starts_anew():
    run = Run(methods.get("oneshot"), OPTIMIZERS["ours sgd"]).until("finetune")
    twin = Run(methods.get("oneshot"), OPTIMIZERS["ours sgd"], pretrain_epochs=3)
    twin.epoch(), twin.epoch()
    dense = {name: weight.detach() for name, weight in twin.method.weights.items()}
    for (name, weight), mask in zip(dense.items(), magnitude_mask(dense.values(), 0.75), strict=True):
        assert torch.equal(run.method.weights[name], torch.where(mask.to_dense(), weight, 0.0))
    assert len(run.optimizer.state) == 0 and twin.method.masks == {}
