"""A short run of any method: networks, optimisers, settings, and what must hold of its masks."""

import inspect
import math

import numpy as np
import torch
from small_networks import NETWORKS, batches
from torch import nn

from sparse_ops import optim

OPTIMIZERS = {
    "ours sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "torch sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "ours adamw": lambda p: optim.AdamW(p, lr=3e-3, weight_decay=1e-2),
    "torch adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=1e-2),
}
GROWTH = {"update_every": 2, "stabilize_steps": 2, "d_lambda": 0.4, "tau": 1.0, "regularize_lr": 0.02}
SHORT = {
    "art": {"pretrain_epochs": 1, "max_regularize_epochs": 3, "finetune_epochs": 2, "lambda_init": 1e-3, "eta": 2.0},
    "gmp": {"pretrain_epochs": 1, "prune_epochs": 3, "finetune_epochs": 2, "every": 3},
    "greg1": {"pretrain_epochs": 2, "max_regularize_epochs": 3, "finetune_epochs": 2} | GROWTH,
    "greg2": {"pretrain_epochs": 2, "max_regularize_epochs": 3, "finetune_epochs": 2, "d_pick": 0.03, "tau_pick": 0.06}
    | GROWTH
    | {"kept": "code"},  # "paper" has no meaning with AdamW
    "oneshot": {"pretrain_epochs": 2, "finetune_epochs": 3},
    "acdc": {
        "total_epochs": 7,
        "warmup_epochs": 1,
        "compressed_epochs": 1,
        "decompressed_epochs": 1,
        "last_dense_epochs": 1,
        "last_sparse_epochs": 2,
    },
    "rigl": {"total_epochs": 5, "delta_t": 3, "alpha": 0.5},
    "set": {"total_epochs": 5, "delta_t": 3, "alpha": 0.5},
}
SHORT["str"] = {"epochs": 4, "initial_threshold": -3.0, "threshold_decay": 0.05}
SHORT["differentiable"] = {"epochs": 4, "strength": 3e-3, "initial_share": 0.5}
# Of methods that can: settings with which the constructor prunes by magnitude, and the run is short from there.
AT_ONCE = {
    "art": {"pretrain_epochs": 0, "max_regularize_epochs": 0, "finetune_epochs": 0},
    "gmp": {"pretrain_epochs": 0, "prune_epochs": 0, "finetune_epochs": 0},
    "greg1": {"pretrain_epochs": 0, "max_regularize_epochs": 0, "finetune_epochs": 0},
    "greg2": {"pretrain_epochs": 0, "max_regularize_epochs": 0, "finetune_epochs": 0},
    "oneshot": {"pretrain_epochs": 0, "finetune_epochs": 0},
    "acdc": {"total_epochs": 1, "warmup_epochs": 0, "last_dense_epochs": 0, "last_sparse_epochs": 1},
}
SPARSITY = 0.75
STEPS = 4  # of an epoch


def make(info, net, optimizer, **options):
    """The method with these options, and with the steps of the whole run where it asks for them."""
    if info.total_steps:
        defaults = {p.name: p.default for p in inspect.signature(info.cls).parameters.values()}
        lengths = [value for key, value in (defaults | options).items() if key.endswith("epochs")]
        known = all(isinstance(value, int) for value in lengths)
        an_epoch = STEPS if any(key.endswith("epochs") for key in options) else 1000
        options = {"total_steps": max(0, an_epoch * sum(lengths)) if known else 0} | options
    if info.needs_trained:
        options = {"pretrained": True} | options
    return info.cls(net, optimizer, **options)


class Run:
    """A network on its way through a method; every epoch has its own batches, the same for each run of a kind."""

    def __init__(self, info, make_optimizer, kind="cnn", net=None, prepare=None, sparsity=SPARSITY, **options):
        self.kind, self.net = kind, NETWORKS[kind]() if net is None else net
        if prepare is not None:
            prepare(self.net)
        self.optimizer = make_optimizer(self.net.parameters())
        self.method = make(info, self.net, self.optimizer, sparsity=sparsity, **(SHORT[info.name] | options))
        self.number = 0

    def backward(self, x, y, scale=1.0):
        loss = nn.functional.cross_entropy(self.net(x), y)
        (scale * loss).backward()

    def step(self, x, y):
        self.backward(x, y)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def epoch(self, step=None):
        for x, y in batches(self.kind, STEPS, self.number):
            (step or self.step)(x, y)
        self.number += 1
        return self.method.end_epoch(lambda model: 0.5 + 0.01 * self.number, train_accuracy=0.9)

    def until(self, phase):
        while self.method.phase != phase:
            self.epoch()
        return self

    def until_phase(self, index):
        while self.method.state_dict()["phase_index"] < index:
            self.epoch()
        return self

    def until_masked(self):
        while not self.method.masks:
            self.epoch()
        return self

    def finish(self, step=None):
        while not self.method.finished:
            self.epoch(step)
        return self

    def zeros(self):
        return {name: w.detach() == 0 for name, w in self.method._effective().items()}


def check_zeros(run, info):
    """Zeros where the masks are, and nothing in the optimiser's state there; masks of the budget when it is due."""
    masks = run.method.masks
    if info.exact_budget and run.method.finished:
        assert sum(m.zeros for m in masks.values()) == math.floor(SPARSITY * run.method.selection.numel + 0.5)
    for name, mask in masks.items():
        parameter, weight, dead = run.method.weights[name], run.method._effective()[name], ~mask.to_dense()
        assert weight.detach()[dead].count_nonzero() == 0
        assert info.live_zeros or torch.equal(weight.detach() == 0, dead)
        if info.masked_state_zero and run.optimizer.state:
            tensors = [t for t in run.optimizer.state[parameter].values() if t.shape == weight.shape]
            assert tensors
            assert all(t[dead].count_nonzero() == 0 for t in tensors)


def same(a, b, tolerance=0.0):
    for (name, p), q in zip(a.net.state_dict().items(), b.net.state_dict().values(), strict=True):
        assert (p.double() - q.double()).norm() <= tolerance * q.double().norm(), name


def by_sorting(weight, mask, growth, fraction):
    """drop_and_grow with two sorts of everything, as in the authors' code, without the noise that they add."""
    n = weight.size
    live = int(mask.sum())
    dropped = int(live * fraction)
    score = np.where(mask, np.abs(weight), -1.0).ravel()
    kept = np.zeros(n, bool)
    kept[np.argsort(-score, kind="stable")[: live - dropped]] = True
    score = np.abs(growth).ravel()
    lifted = np.where(kept, score.min() - 1, score)
    kept[np.argsort(-lifted, kind="stable")[:dropped]] = True
    return kept.reshape(weight.shape)
