"""Selection: the best complete epoch's weights and masks come back, exactly, also over a resume."""

import json

import pytest
import torch
from torch import nn

import sparse_ops
from sparse_ops import methods
from sparse_ops.train import deploy, report, run_folder
from sparse_ops.train.job import Job, Options
from sparse_ops.train.loop import Stopped
from sparse_ops.train.progress import Plain
from sparse_ops.train.recipe import parse
from sparse_ops.train.run_folder import RunFolder
from sparse_ops.train.selection import Selection, complete


def oneshot(pretrain=1, finetune=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = sparse_ops.methods.OneShot(model, optimizer, 0.5, pretrain_epochs=pretrain, finetune_epochs=finetune)
    return model, optimizer, method


def epoch(model, optimizer):
    model(torch.randn(4, 6)).pow(2).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_best_complete_epoch_comes_back():
    model, optimizer, method = oneshot()
    selection, seen = Selection("validation"), []
    for number, score in enumerate((0.9, 0.3, 0.8, 0.8), start=1):
        epoch(model, optimizer)
        assert complete(method) == (number > 1)  # the dense epoch has no zeros yet
        selection.offer(score, number, model, method)
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        method.end_epoch()
    assert selection.restore(model, method) == 3  # 0.9 was dense; of two equal scores the first wins
    model = method.finalize()
    assert all(torch.equal(value, seen[2][name]) for name, value in model.state_dict().items())
    assert sum(int((w == 0).sum()) for w in method.weights.values()) == 36
    assert not torch.equal(seen[2]["0.weight"], seen[3]["0.weight"])


@pytest.mark.parametrize("rule, scores", [("last", [0.9, 0.9]), ("test", [None, None])])
def test_nothing_is_kept_where_nothing_is_compared(rule, scores):
    model, optimizer, method = oneshot(0, 2)
    selection = Selection(rule)
    for number, score in enumerate(scores, start=1):
        epoch(model, optimizer)
        selection.offer(score, number, model, method)
        method.end_epoch()
    assert selection.best is None and selection.restore(model, method) is None


TABLE = {
    "data": {"name": "digits", "batch_size": 128, "crop": 1, "images": 600, "validation": 200},
    "network": {"name": "mlp", "width": 32},
    "method": {"name": "oneshot", "sparsity": 0.8, "pretrain_epochs": 2, "finetune_epochs": 5},
}


def run(path, select, test_every=1, **options):
    training = {"select": select, "test_every": test_every, "oneshot": False}
    return Job(parse(TABLE | {"training": training}), Options(run=path, **options), Plain()).run()


@pytest.fixture(autouse=True)
def short_timings(monkeypatch):
    pytest.importorskip("sklearn")
    for name, value in {"ROUNDS": 3, "SAMPLE_SECONDS": 1e-4, "THREADS": 1}.items():
        monkeypatch.setattr(deploy, name, value)


@pytest.mark.parametrize("select", ["validation", "test"])
def test_a_run_reports_the_selected_epoch(tmp_path, select):
    summary = run(tmp_path / "whole", select)
    records = [json.loads(line) for line in (tmp_path / "whole" / run_folder.METRICS).read_text().splitlines()]
    for stage, key, name in (("oneshot", "method", "sparse"), ("dense", "dense", "dense")):
        own = [r for r in records if r["stage"] == f"fold0-{stage}"]
        scores = [r[f"{select}_accuracy"] if r["phase"] != "pretrain" else -1 for r in own]
        best = scores.index(max(scores))
        assert summary[f"{key}_selected_epoch"] == best + 1
        assert summary[f"{name}_accuracy"] == pytest.approx(own[best]["test_accuracy"])
        assert summary[f"{key}_validation_accuracy"] == pytest.approx(own[best]["validation_accuracy"])
        assert summary[f"{key}_last_accuracy"] == pytest.approx(own[-1]["test_accuracy"])
    mark = {"validation": "best epoch on held-out images", "test": "best epoch on the test images"}[select]
    assert mark in report.sentence(summary) and mark in report.text_table(summary)
    with pytest.raises(Stopped):
        run(tmp_path / "halves", select, max_epochs=5)
    run(tmp_path / "halves", select, resume=True)
    for stage in ("oneshot", "dense"):
        a, b = (
            run_folder.load_state(RunFolder(tmp_path / p).stage(f"fold0-{stage}"))["model"] for p in ("whole", "halves")
        )
        assert all(torch.equal(a[name], b[name]) for name in a), stage


def test_test_images_are_looked_at_as_often_as_asked(tmp_path):
    summary = run(tmp_path / "run", "last", test_every=3)
    lines = (tmp_path / "run" / run_folder.METRICS).read_text().splitlines()
    looks = [json.loads(line)["test_accuracy"] is not None for line in lines[:7]]
    assert looks == [False, False, True, False, False, True, False]
    assert summary["sparse_accuracy"] > 0.5 and summary["method_selected_epoch"] == 7
    pytest.importorskip("matplotlib")
    assert "those of the last epoch" in report.write(tmp_path / "run").read_text()


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.filterwarnings("ignore::UserWarning")  # so short a run may lose layers
def test_every_method_may_be_selected_from(tmp_path, name):
    """The weights that come back have the accuracy that they had in their epoch, whatever a method does to a model."""
    info, epochs = methods.get(name), 8
    method = {"name": name, "sparsity": 0.8, **info.cls.for_epochs(epochs)}
    table = TABLE | {
        "method": method,
        "optimizer": {"decay_norms": False},
        "training": {"select": "validation", "dense": False, "oneshot": False},
        "schedule": {"kind": "cosine", "warmup_epochs": 1},
    }
    if not (info.fixed_length or method.get("total_epochs")):
        del table["schedule"]
    job = Job(parse(table), Options(run=tmp_path / "run"), Plain())
    data = job.load()
    assert job.check(data) <= epochs
    outcome = job.train_alone(data, name, job.arguments, job.recipe.to_toml())
    records = [json.loads(line) for line in (tmp_path / "run" / run_folder.METRICS).read_text().splitlines()]
    chosen = records[outcome.selected_epoch - 1]
    assert outcome.test_accuracy == pytest.approx(chosen["test_accuracy"])
    assert outcome.validation_accuracy == pytest.approx(chosen["validation_accuracy"])
    weights = [m.weight for m in outcome.model.modules() if isinstance(m, nn.Linear)]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    if info.exact_budget:
        assert 0.8 - 1e-3 <= zeros <= 0.81  # a weight at a pixel that is always black may still be where it grew, at 0
    if outcome.selected_epoch < len(records):
        assert zeros >= 0.8 - 1e-3 and outcome.validation_accuracy >= records[-1]["validation_accuracy"]
