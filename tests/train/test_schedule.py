"""The learning rate of [schedule] at its corners, step by step in a run, and the optimiser of [optimizer]."""

import json
import math

import pytest
import torch
from torch import nn

from sparse_ops import optim
from sparse_ops.train import deploy, optimizers, run_folder
from sparse_ops.train.job import Job, Options
from sparse_ops.train.loop import Stopped
from sparse_ops.train.progress import Plain
from sparse_ops.train.recipe import parse
from sparse_ops.train.run_folder import RunFolder
from sparse_ops.train.schedule import LearningRate, Schedule

CURVES = [  # factors of 5 epochs of 2 steps each, by hand
    (Schedule("constant"), [1.0] * 10),
    (Schedule("constant", warmup_epochs=2), [0.25, 0.5, 0.75] + [1.0] * 7),
    (Schedule("linear"), [1 - i / 10 for i in range(10)]),
    (Schedule("linear", warmup_epochs=1, final=0.2), [0.5, 1.0] + [1 - 0.8 * i / 8 for i in range(8)]),
    (Schedule("cosine"), [math.cos(math.pi * i / 20) ** 2 for i in range(10)]),
    (Schedule("cosine", warmup_epochs=1), [0.5, 1.0] + [math.cos(math.pi * i / 16) ** 2 for i in range(8)]),
    (Schedule("cosine", final=0.1), [0.1 + 0.9 * math.cos(math.pi * i / 20) ** 2 for i in range(10)]),
    (Schedule("steps", milestones=[1, 3], gamma=0.2), [1.0] * 2 + [0.2] * 4 + [0.04] * 4),
    (Schedule("steps", warmup_epochs=2, milestones=[1]), [0.25, 0.5, 0.75, 1.0] + [0.1] * 6),
]


@pytest.mark.parametrize("curve, factors", CURVES, ids=str)
def test_curves(curve, factors):
    assert [curve.factor(step, 2, 5) for step in range(10)] == pytest.approx(factors, abs=1e-15)


def test_every_group_follows_also_one_that_comes_later():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.5}], lr=1.0)
    rate = LearningRate(Schedule("linear"), 1, 4)
    rate.set(optimizer, 1)
    optimizer.add_param_group({"params": [b], "lr": 2.0})
    rate.set(optimizer, 2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 1.0]
    again = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=9.0)
    again.load_state_dict(optimizer.state_dict())
    rate.set(again, 3)
    assert [group["lr"] for group in again.param_groups] == [0.125, 0.5]


def test_lengths_that_do_not_fit_are_errors():
    Schedule("cosine", warmup_epochs=4).check_length(5)
    with pytest.raises(ValueError, match=r"schedule.warmup_epochs is 5, but the whole run has 5 epochs"):
        Schedule("cosine", warmup_epochs=5).check_length(5)
    with pytest.raises(ValueError, match=r"schedule.milestones has 7, but the run ends after 5 epochs"):
        Schedule("steps", milestones=[2, 7]).check_length(5)


@pytest.mark.parametrize("name, cls", [("sgd", optim.SGD), ("adamw", optim.AdamW)])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_optimizers(name, cls, decay_norms):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    settings = optimizers.Optimizer(name, 0.3, 0.05, momentum=0.7, nesterov=True, beta1=0.8, beta2=0.9, eps=1e-3)
    settings.decay_norms = decay_norms
    built = optimizers.build(settings, model)
    assert type(built) is cls
    decays = {id(p): group["weight_decay"] for group in built.param_groups for p in group["params"]}
    assert len(decays) == 6
    for p in model.parameters():
        assert decays[id(p)] == (0.05 if decay_norms or p.dim() > 1 else 0.0)
    own = {"momentum": 0.7, "nesterov": True} if name == "sgd" else {"betas": (0.8, 0.9), "eps": 1e-3}
    assert {key: built.param_groups[0][key] for key in own} == own and built.param_groups[0]["lr"] == 0.3


TABLE = {
    "data": {"name": "digits", "batch_size": 128, "images": 500},
    "network": {"name": "mlp", "width": 32},
    "method": {"name": "oneshot", "sparsity": 0.8, "pretrain_epochs": 2, "finetune_epochs": 2},
    "optimizer": {"name": "adamw", "decay_norms": False},
    "schedule": {"kind": "linear", "warmup_epochs": 1},
    "loss": {"label_smoothing": 0.1},
    "training": {"oneshot": False},
    "budget": 1.5,
}


@pytest.fixture(autouse=True)
def short_timings(monkeypatch):
    for name, value in {"ROUNDS": 3, "SAMPLE_SECONDS": 1e-4, "THREADS": 1}.items():
        monkeypatch.setattr(deploy, name, value)


def test_a_run_with_everything_resumes(tmp_path):
    pytest.importorskip("sklearn")

    def job(name, **options):
        return Job(parse(TABLE), Options(run=tmp_path / name, **options), Plain())

    summary = job("whole").run()
    assert summary["epochs"] == 6 and summary["recipe"]["budgeted"] == 1.5
    lines = [json.loads(line) for line in (tmp_path / "whole" / run_folder.METRICS).read_text().splitlines()]
    factors = [1.0] + [1 - (4 * e + 3 - 8) / 16 for e in range(2, 6)]  # of the last of 4 steps; warm-up: 2 epochs
    for stage in ("oneshot", "dense"):
        rates = [r["lr"] / 1e-3 for r in lines if r["stage"] == f"fold0-{stage}"]
        assert rates == pytest.approx([0.5, *factors])
    first = [next(r for r in lines if r["stage"] == f"fold0-{s}")["loss"] for s in ("oneshot", "dense")]
    assert first[0] == first[1]
    with pytest.raises(Stopped):
        job("halves", max_epochs=2).run()
    job("halves", resume=True).run()
    a, b = (run_folder.load_state(RunFolder(tmp_path / p).stage("fold0-oneshot"))["model"] for p in ("whole", "halves"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_of_unknown_length_takes_no_schedule(tmp_path):
    pytest.importorskip("sklearn")
    art = {"name": "art", "sparsity": 0.8, "pretrain_epochs": 1, "max_regularize_epochs": 1, "finetune_epochs": 1}
    with pytest.raises(ValueError, match=r"a phase of art may end early; give method.total_epochs"):
        Job(parse(TABLE | {"method": art}), Options(run=tmp_path / "run"), Plain()).run()
    table = TABLE | {"method": art | {"total_epochs": 3}, "training": {"oneshot": False, "dense": False}}
    assert Job(parse(table), Options(run=tmp_path / "run"), Plain()).run()["epochs"] == 5


def test_label_smoothing_is_in_the_loss(tmp_path):
    pytest.importorskip("sklearn")
    losses = []
    for smoothing in (0.0, 0.3):
        table = TABLE | {"loss": {"label_smoothing": smoothing}, "optimizer": {"lr": 0}, "budget": 1}
        with pytest.raises(Stopped):
            Job(parse(table), Options(run=tmp_path / str(smoothing), max_epochs=1), Plain()).run()
        losses.append(json.loads((tmp_path / str(smoothing) / run_folder.METRICS).read_text())["loss"])
    assert losses[1] != losses[0]
