"""The loop with dense training: it learns, records, resumes bit for bit, and stops with a sentence."""

import pytest
import torch

from sparse_ops import methods
from sparse_ops.train import run_folder
from sparse_ops.train.augment import Augmentation, Batches
from sparse_ops.train.data import DataSet, Images, channel_statistics
from sparse_ops.train.dense import DenseTraining
from sparse_ops.train.loop import Budget, Stopped, Trainer, accuracy, outputs
from sparse_ops.train.networks import mlp
from sparse_ops.train.progress import Plain
from sparse_ops.train.recipe import parse
from sparse_ops.train.run_folder import RunFolder, load_state
from sparse_ops.train.selection import Selection

CPU = torch.device("cpu")
RECIPE = parse({"data": {"name": "digits"}, "network": {"name": "mlp"}, "method": {"name": "art", "sparsity": 0.9}})


def dataset():
    """Three classes that differ by brightness."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (200,), generator=rng)
    images = torch.randint(0, 120, (200, 1, 4, 4), generator=rng, dtype=torch.uint8)
    images += (40 * labels).to(torch.uint8).view(-1, 1, 1, 1)
    mean, std = channel_statistics(images)
    return DataSet("own", Images(images[:150], labels[:150]), Images(images[150:], labels[150:]), 3, mean, std)


def trainer(folder, epochs=6, lr=0.1, seed=0, make=DenseTraining):
    data = dataset()
    torch.manual_seed(seed)
    network = mlp(data.shape, 3, width=16)
    network.insert(2, torch.nn.Dropout(0.1))  # uses the global generator, which a checkpoint must hold
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    train = Batches(data.train, data, 32, device=CPU, augmentation=Augmentation(1))
    test = Batches(data.test, data, 32, device=CPU)
    method = make(network, optimizer, epochs)
    return Trainer("fold0-dense", network, optimizer, method, train, test, RECIPE, folder, Plain(), seed)


def test_it_learns_and_records(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    run = trainer(folder)
    untrained = accuracy(run.model, run.test.plain(), "float32")
    run.run(Budget())
    records = list(folder.metrics())
    assert [r["epoch"] for r in records] == list(range(1, 7))
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert records[-1]["test_accuracy"] == accuracy(run.model, run.test.plain(), "float32") > max(0.8, untrained)
    assert [r["lr"] for r in records] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.001])
    assert [r["finished"] for r in records] == [False] * 5 + [True]
    for r in records:
        assert 0 < r["seconds_loading"] + r["seconds_optimizer"] < r["seconds"] and r["pruned_accuracy"] is None
    lines = [line for line in capsys.readouterr().out.splitlines() if "epoch" in line]
    assert [line.split("epoch")[1].split()[0] for line in lines] == list("123456")  # also those of milliseconds


def acdc(network, optimizer, epochs):
    lengths = {"warmup_epochs": 1, "last_dense_epochs": 0, "last_sparse_epochs": epochs - 1}
    return methods.ACDC(network, optimizer, 0.8, epochs, **lengths, execution="sparse")


def rigl(network, optimizer, epochs):
    return methods.RigL(network, optimizer, 0.8, epochs, total_steps=5 * epochs, delta_t=3, execution="sparse")


@pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")
@pytest.mark.parametrize("make", [DenseTraining, acdc, rigl])
def test_resume_is_bit_exact(tmp_path, make):
    whole, halves = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "halves")
    whole.path.mkdir()
    halves.path.mkdir()
    first = trainer(whole, make=make)
    first.run(Budget())
    with pytest.raises(Stopped, match="limit of epochs"):
        trainer(halves, make=make).run(Budget(3))
    halves.append_metrics({"epoch": "written after the checkpoint"})
    second = trainer(halves, make=make)
    torch.rand(5)
    second.resume(load_state(halves / run_folder.CHECKPOINT))
    second.run(Budget())
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    timeless = [[{k: v for k, v in r.items() if "second" not in k} for r in f.metrics()] for f in (whole, halves)]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 6


@pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")
@pytest.mark.parametrize("make", [acdc, rigl])
def test_the_best_epoch_comes_back_where_layers_run_sparse(tmp_path, make):
    run = trainer(RunFolder(tmp_path), make=make)
    run.selection = Selection("test")
    run.run(Budget())
    best = run.selection.restore(run.model, run.method)
    model = run.method.finalize()
    accuracies = [r["test_accuracy"] for r in run.folder.metrics()]
    assert accuracy(model, run.test.plain(), "float32") == accuracies[best - 1] == max(accuracies[1:])
    assert sum(mask.zeros for mask in run.method.masks.values()) == round(0.8 * run.method.selection.numel)


def test_a_lost_run_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"fold0-dense, epoch \d: the training loss is (nan|inf)"):
        trainer(RunFolder(tmp_path), lr=1e30).run(Budget())


def test_outputs_leave_the_mode_alone(tmp_path):
    run = trainer(RunFolder(tmp_path))
    run.model.train()
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    y, labels = outputs(run.model, run.test.plain(), "bfloat16")
    assert y.shape == (50, 3) and y.dtype == torch.float32 and len(labels) == 50
    assert run.model.training
    assert all(torch.equal(before[k], v) for k, v in run.model.state_dict().items())
