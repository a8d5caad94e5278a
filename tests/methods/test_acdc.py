"""AC/DC: its phases epoch by epoch against the papers' schedules, and what happens where they change."""

import copy
import math

import pytest
import torch
from method_runs import OPTIMIZERS, SHORT, Run
from small_networks import NETWORKS, batches

from sparse_ops import masks, methods, optim
from sparse_ops.methods import ACDC
from sparse_ops.methods.schedules import alternating

pytestmark = pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")
INFO = methods.get("acdc")


def phases(**options):
    """The phase of each epoch."""
    net = torch.nn.Linear(4, 4)
    method = ACDC(net, torch.optim.SGD(net.parameters(), lr=0.1), 0.5, **options)
    seen = []
    while not method.finished:
        seen.append(method.phase)
        method.end_epoch()
    return seen


def scheduled(total, sparse, dense):
    """The phase of each epoch where sparse and dense phases begin at these epochs, as in a configuration of theirs."""
    begins = dict.fromkeys(sparse, "sparse") | dict.fromkeys(dense, "dense")
    seen, phase = [], "dense"
    for epoch in range(total):
        phase = begins.get(epoch, phase)
        seen.append(phase)
    return seen


@pytest.mark.parametrize(
    "options, total, sparse, dense",
    [
        ({}, 100, [*range(10, 71, 10), 85], range(15, 76, 10)),  # ImageNet, ResNet-50
        ({"total_epochs": 150}, 150, [*range(10, 121, 10), 135], range(15, 126, 10)),  # at 90 %
        (  # CIFAR-100, WideResNet, and CIFAR-10, ResNet-20
            {"compressed_epochs": 20, "decompressed_epochs": 20, "last_dense_epochs": 20, "last_sparse_epochs": 30},
            200,
            range(10, 171, 40),
            range(30, 151, 40),
        ),
        (  # CIFAR-100, WideResNet with short dense phases
            {"compressed_epochs": 20, "decompressed_epochs": 13, "last_dense_epochs": 13, "last_sparse_epochs": 25},
            200,
            range(10, 176, 33),
            range(30, 163, 33),
        ),
    ],
)
def test_the_authors_schedules_epoch_by_epoch(options, total, sparse, dense):
    assert phases(**({"total_epochs": total} | options)) == scheduled(total, sparse, dense)


def test_the_shares_of_a_hundred_epochs():
    for epochs in (100, 20, 40, 60, 200, 1000):
        tenth, half = epochs // 10, epochs // 20
        turns = [("sparse" if i % 2 == 0 else "dense") for i in range(13) for _ in range(half)]
        expected = ["dense"] * tenth + turns + ["dense"] * tenth + ["sparse"] * (epochs - 2 * tenth - 13 * half)
        assert phases(**ACDC.for_epochs(epochs)) == expected


def test_runs_of_one_to_four_epochs():
    for epochs, expected in ((1, "s"), (2, "ds"), (3, "dds"), (4, "dsds")):
        assert "".join(phase[0] for phase in phases(**ACDC.for_epochs(epochs))) == expected


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 9, 10, 11, 17, 25, 33, 50, 87, 150, 333])
def test_any_number_of_epochs_has_phases_in_order_and_none_empty(epochs):
    net = torch.nn.Linear(4, 4)
    course = ACDC(net, torch.optim.SGD(net.parameters(), lr=0.1), 0.5, **ACDC.for_epochs(epochs)).course
    assert sum(length for _, length in course) == epochs and all(length >= 1 for _, length in course)
    names = [name for name, _ in course]
    assert names[-1] == "sparse"
    if epochs >= 4:
        assert names == [("dense", "sparse")[i % 2] for i in range(len(names))] and len(names) >= 4
    if epochs >= 10:
        assert course[-1][1] == max(length for name, length in course if name == "sparse")
    if epochs >= 20:
        ends = torch.tensor([length for _, length in course]).cumsum(0) / epochs
        for share in (0.1, ends[-3].item(), 0.85):
            assert (ends - share).abs().min() <= 1 / epochs
        assert abs(ends[-3] - 0.75) <= 1.25 / epochs and abs(len(course) - 16) <= 2


@pytest.mark.parametrize(
    "epochs, compressed, decompressed, lengths",
    [
        (0, 5, 5, []),
        (5, 5, 5, [5]),
        (7, 5, 5, [7]),  # 5 is nearer than 15
        (13, 5, 5, [4, 5, 4]),  # 15, scaled: ends at 4.33, 8.67
        (13, 4, 1, [6, 1, 6]),  # 14 is nearer than 9, but would shrink one epoch to less
        (20, 3, 1, [3, 1, 3, 1, 4, 1, 3, 1, 3]),  # 19, scaled: ends at 3.16, 4.21, 7.37, 8.42, 11.58, ...
    ],
)
def test_turns_that_do_not_fit(epochs, compressed, decompressed, lengths):
    assert sum(alternating(epochs, compressed, decompressed)) == epochs
    assert alternating(epochs, compressed, decompressed) == lengths


def test_where_phases_change():
    """A mask of the moment at compression, momentum kept; all free at decompression, weights at zero, no momentum."""
    run = Run(INFO, OPTIMIZERS["torch sgd"], compressed_epochs=2, total_epochs=9)
    weights = run.method.weights

    def momentum(name):
        return run.optimizer.state[weights[name]]["momentum_buffer"].clone()

    compressions = 0
    while not run.method.finished:
        phase, bits = run.method.phase, {name: mask.bits for name, mask in run.method.masks.items()}
        for x, y in batches("cnn", 4, run.number):
            run.step(x, y)
        before = {name: (w.detach().clone(), momentum(name)) for name, w in weights.items()}
        run.number += 1
        run.method.end_epoch()
        if (phase, run.method.phase) == ("dense", "sparse"):
            compressions += 1
            expected = masks.magnitude_mask([w for w, _ in before.values()], 0.75)
            for (name, (w, m)), mask in zip(before.items(), expected, strict=True):
                kept = mask.to_dense()
                assert torch.equal(run.method.masks[name].to_dense(), kept)
                assert torch.equal(weights[name].detach(), w * kept) and torch.equal(momentum(name), m * kept)
                assert m[kept].count_nonzero() > 0
        elif (phase, run.method.phase) == ("sparse", "dense"):
            assert run.method.masks == {} and len(run.optimizer.state) == 8
            assert all(not state["momentum_buffer"].any() for state in run.optimizer.state.values())
            assert all(torch.equal(weights[name].detach(), w) for name, (w, _) in before.items())
            assert sum((w == 0).sum().item() for w in weights.values()) == 1530
        else:
            assert {name: mask.bits for name, mask in run.method.masks.items()}.keys() == bits.keys()
            assert all(torch.equal(mask.bits, bits[name]) for name, mask in run.method.masks.items())
    assert compressions == 3


def test_momentum_may_be_kept():
    run = Run(INFO, OPTIMIZERS["torch sgd"], reset_momentum=False).until("sparse")
    run.epoch()
    assert run.method.phase == "dense"
    assert all(state["momentum_buffer"].any() for state in run.optimizer.state.values())


@pytest.mark.parametrize("cls", [optim.SGD, torch.optim.SGD])
def test_momentum_is_zero_and_not_gone(cls):
    """With dampening 0.5 the first step of a dense phase takes half of the gradient, that of a new optimiser all."""
    run = Run(INFO, lambda p: cls(p, lr=0.05, momentum=0.9, dampening=0.5)).until("sparse")
    run.epoch()
    assert run.method.phase == "dense"
    before = [p.detach().clone() for p in run.net.parameters()]
    rate = run.optimizer.param_groups[0]["lr"]
    run.backward(*next(batches("cnn", 1)))
    grads = [p.grad.clone() for p in run.net.parameters()]
    run.optimizer.step()
    for p, old, grad in zip(run.net.parameters(), before, grads, strict=True):
        torch.testing.assert_close(p.detach(), old - rate * 0.5 * grad, rtol=1e-5, atol=1e-7)


def test_other_optimisers_than_those_with_momentum_begin_anew():
    run = Run(INFO, OPTIMIZERS["torch adamw"]).until("sparse")
    run.epoch()
    assert run.method.phase == "dense" and not run.optimizer.state


@pytest.mark.parametrize("name", ["ours sgd", "torch sgd"])
def test_a_whole_run_against_a_literal_loop(name):
    """Gradients and weights times the mask around each step, as in the authors' code; float64, so rounding is small."""
    run = Run(INFO, OPTIMIZERS[name], prepare=lambda net: net.double())
    net = NETWORKS["cnn"]().double()
    optimizer = OPTIMIZERS["torch sgd"](net.parameters())
    weights = [net[0].weight, net[5].weight, net[7].weight]
    base, kept = optimizer.param_groups[0]["lr"], None
    for epoch, phase in enumerate(["dense", "sparse", "dense", "sparse", "dense", "sparse", "sparse"]):
        optimizer.param_groups[0]["lr"] = base * (1 + math.cos(math.pi * epoch / 7)) / 2
        if phase == "dense" and kept is not None:
            kept = None
            for state in optimizer.state.values():
                state["momentum_buffer"].zero_()
        elif phase == "sparse" and kept is None:
            threshold = torch.cat([w.detach().abs().flatten() for w in weights]).sort().values[1529]
            kept = [w.detach().abs() > threshold for w in weights]
            for w, k in zip(weights, kept, strict=True):
                w.data *= k
        for x, y in batches("cnn", 4, epoch):
            run.step(x.double(), y)
            torch.nn.functional.cross_entropy(net(x.double()), y).backward()
            for w, k in zip(weights, kept or [], strict=kept is not None):
                w.grad *= k
            optimizer.step()
            optimizer.zero_grad()
            for w, k in zip(weights, kept or [], strict=kept is not None):
                w.data *= k
            for w, own in zip(weights, run.method.weights.values(), strict=True):
                assert (w - own).norm() <= 1e-9 * w.norm()
                assert kept is None or torch.equal(own == 0, w == 0)
        run.method.end_epoch()
        run.number += 1
    run.method.finalize()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"total_epochs": 34}, r"total_epochs is 34, less than the 10 \+ 10 \+ 15 of warmup_epochs, last_dense_epochs"),
        ({"total_epochs": 39}, r"compressed_epochs is 5, but the first and the last phases leave 4 of 39 epochs"),
        ({"compressed_epochs": 0}, r"compressed_epochs is 0, expected 1 or more"),
        ({"last_sparse_epochs": 0}, r"last_sparse_epochs is 0, expected 1 or more"),
    ],
)
def test_phases_that_do_not_fit_into_the_run(options, message):
    net = torch.nn.Linear(4, 4)
    with pytest.raises(ValueError, match=f"ACDC: {message}"):
        ACDC(net, torch.optim.SGD(net.parameters(), lr=0.1), 0.5, **options)


def test_without_turns_and_without_dense_phases():
    assert phases(total_epochs=35) == ["dense"] * 20 + ["sparse"] * 15
    assert phases(total_epochs=4, warmup_epochs=0, last_dense_epochs=0, last_sparse_epochs=4) == ["sparse"] * 4


def test_a_copied_state_of_another_course_is_refused():
    run = Run(INFO, OPTIMIZERS["ours sgd"]).until("sparse")
    other = Run(INFO, OPTIMIZERS["ours sgd"], **(SHORT["acdc"] | {"warmup_epochs": 0, "total_epochs": 6})).method
    with pytest.raises(
        ValueError, match=r"the checkpoint has course dense 1, sparse 1, .*, here it is sparse 1, dense 1"
    ):
        other.load_state_dict(copy.deepcopy(run.method.state_dict()))
