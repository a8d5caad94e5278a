"""Under-training: figures against formulas, slopes and the rule on numbers by hand, the command over real runs."""

import dataclasses
import json
import math
import re
import warnings

import pytest
import torch
from torch import nn

from sparse_ops import cli
from sparse_ops.train import budget, budget_report, deploy, fit, report, run_folder
from sparse_ops.train.budget import Fit, Point
from sparse_ops.train.data import Images
from sparse_ops.train.job import Job, Options
from sparse_ops.train.progress import Plain
from sparse_ops.train.recipe import parse


def test_figures_of_a_network():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-90.0, 90.0, 0.0]])
    labels = torch.tensor([0, 2, 1])
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.9))  # eval mode: dropout does nothing
    model.train()
    batches = iter([(logits[:2], labels[:2]), (logits[2:], labels[2:])])
    found = fit.measure(model, batches, "float32")
    e = [math.exp(2), 1.0, math.exp(-1)]
    p = [x / sum(e) for x in e]
    assert found["images"] == 3 and found["accuracy"] == pytest.approx(2 / 3)
    assert found["loss"] == pytest.approx((-math.log(p[0]) + math.log(3)) / 3)
    assert found["entropy"] == pytest.approx((-sum(x * math.log(x) for x in p) + math.log(3)) / 3)
    assert model.training


def test_samples_are_evenly_spread_and_the_same():
    images = Images(torch.arange(20_001, dtype=torch.int64).view(-1, 1, 1, 1), torch.arange(20_001))
    sample = fit.sample(images)
    assert len(sample) == 5000 and sample.labels[0] == 0 and sample.labels[-1] == 20_000
    assert set(sample.labels.diff().tolist()) == {4, 5} or set(sample.labels.diff().tolist()) == {4}
    assert fit.sample(images.take(torch.arange(7))).labels.tolist() == list(range(7))


def test_slopes_are_per_doubling():
    a, b = Fit(1.0, 0.5, 0.0, 0.80), Fit(0.25, 0.5, 0.0, 0.84)
    found = budget.slope((1, a), (4, b))
    assert found.train_loss == pytest.approx(0.5)  # two doublings, each to a half
    assert found.train_entropy == 0 and found.accuracy == pytest.approx(0.02)
    assert budget.slope((1, a), (3, b)).accuracy == pytest.approx(0.04 / math.log2(3))


DENSE = Fit(0.1, 0.1, 0.0, 0.9)


def points(*sparse, dense=DENSE):
    return [Point(2.0**i, 10.0 * 2**i, 1, figures, dense, 0.5) for i, figures in enumerate(sparse)]


@pytest.mark.parametrize(
    "first, second, wanted, why",
    [
        ((0.10, 0.10, 0.90), (0.05, 0.05, 0.95), False, "neither"),  # not above the dense network
        ((0.20, 0.05, 0.90), (0.19, 0.05, 0.90), True, "training loss by 5.0 %"),
        ((0.05, 0.20, 0.90), (0.01, 0.19, 0.90), True, "training entropy by 5.0 %"),
        ((0.20, 0.05, 0.90), (0.197, 0.01, 0.90), False, "changes too little"),  # entropy falls, but is not above
        ((0.20, 0.05, 0.90), (0.20, 0.05, 0.903), True, "raises its accuracy by 0.30 points"),
        ((0.20, 0.05, 0.90), (0.20, 0.05, 0.9015), False, "changes too little"),
        ((0.20, 0.20, 0.90), (0.10, 0.10, 0.95), True, "loss by 50.0 % and lowers its training entropy by 50.0 % and"),
    ],
)
def test_the_rule(first, second, wanted, why):
    a, b = (Fit(loss, entropy, 0.0, accuracy) for loss, entropy, accuracy in (first, second))
    found = points(a, b)
    slopes = budget.slopes(found)
    assert slopes[0] == slopes[1] == budget.slope((1, a), (2, b))  # the last budget is judged by the step before it
    answer, sentence = budget.verdict(found[0], slopes[0])
    assert answer is wanted and why in sentence


@pytest.mark.parametrize(
    "change, wanted",
    [
        ((0.02, 0.0, 0.0), False),  # more than 2 %, not 2 %
        ((math.nextafter(0.02, 1), 0.0, 0.0), True),
        ((0.0, 0.02, 0.0), False),
        ((0.0, math.nextafter(0.02, 1), 0.0), True),
        ((0.0, 0.0, 0.002), False),
        ((0.0, 0.0, math.nextafter(0.002, 1)), True),
        ((-0.5, -0.5, -0.5), False),
    ],
)
def test_the_rule_at_its_boundaries(change, wanted):
    (point,) = points(Fit(0.2, 0.2, 0.0, 0.9))
    assert budget.verdict(point, budget.Slope(*change))[0] is wanted


@pytest.mark.parametrize("last, answer", [(0.10, "yes"), (0.20, "no"), (0.05, "yes")])
def test_a_verdict_on_test_images_is_marked(last, answer):
    mark = "on test images: no decision may rest on it"
    held = points(Fit(0.2, 0.2, 0.0, 0.9), Fit(last, last, 0.0, 0.9))
    tested = [dataclasses.replace(point, held_out="test") for point in held]
    assert budget.table(held)[2][-1] == answer and budget.table(tested)[2][-1] == f"{answer} ({mark})"
    assert mark not in budget_report.text(held) and "validation accuracy" in budget_report.text(held)
    words = "under-trained" if answer == "yes" else "not under-trained"
    assert f"budget x1 (10 epochs): {words} ({mark}): " in budget_report.text(tested)
    assert "test accuracy" in budget_report.text(tested)
    assert mark not in budget_report.text(tested[:1])  # where nothing can be said, nothing is marked


def test_what_cannot_be_said():
    above = Fit(0.2, 0.2, 0.0, 0.9)
    (single,) = points(above)
    assert budget.slopes([single]) == [None]
    answer, why = budget.verdict(single, None)
    assert answer is None and why.endswith("a run at another budget is needed to say whether longer training helps")
    (alone,) = points(above, dense=None)
    assert budget.verdict(alone, None) == (None, "there is no dense run to compare with (training.dense is false)")
    assert len(budget.table([alone])) == 2 and len(budget.table([single])) == 3


TABLE = {
    "data": {"name": "digits", "batch_size": 128, "images": 600, "validation": 300},
    "network": {"name": "mlp", "width": 32},
    "method": {"name": "oneshot", "sparsity": 0.9, "pretrain_epochs": 1, "finetune_epochs": 1},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    pytest.importorskip("sklearn")
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*lose", UserWarning)
        for name, value in {"ROUNDS": 1, "SAMPLE_SECONDS": 1e-4, "THREADS": 1}.items():
            patch.setattr(deploy, name, value)
        for m in (1, 4):
            Job(parse(TABLE | {"budget": m}), Options(run=root / f"x{m}"), Plain()).run()
        recipe = TABLE | {"method": TABLE["method"] | {"sparsity": 0.8}, "training": {"dense": False}}
        Job(parse(recipe), Options(run=root / "other"), Plain()).run()
        tested = TABLE | {"data": {key: value for key, value in TABLE["data"].items() if key != "validation"}}
        for m in (1, 2):
            Job(parse(tested | {"budget": m}), Options(run=root / f"tested{m}"), Plain()).run()
    return root


def test_runs_are_read_as_points(runs):
    found, _ = budget.read([runs / "x4", runs / "x1"])
    assert [(p.budget, p.epochs, p.runs) for p in found] == [(1.0, 2.0, 1), (4.0, 8.0, 1)]
    for point in found:
        summary = json.loads((runs / f"x{point.budget:g}" / run_folder.SUMMARY).read_text())
        record = summary["fit"]["method"]
        assert record["held_out_are"] == "validation"
        assert (record["train"]["images"], record["held_out"]["images"]) == (600, 300)
        assert record["held_out"]["accuracy"] == pytest.approx(summary["method_validation_accuracy"])
        assert point.sparse.train_loss == record["train"]["loss"] > 0
        assert point.dense.train_entropy == summary["fit"]["dense"]["train"]["entropy"]
    assert found[1].dense.train_loss < found[0].dense.train_loss
    twice, _ = budget.read([runs / "x1", runs / "x1", runs / "x4"])
    assert twice[0].runs == 2 and twice[0].sparse == pytest.approx(found[0].sparse)


def test_the_command_writes_a_page(runs, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["budget", str(runs / "x1"), str(runs / "x4")]) == 0
    out = capsys.readouterr().out
    assert "no decision" not in out
    assert re.search(r"^x1 +2 +dense", out, re.M) and re.search(r"^x4 +8 +sparse", out, re.M)
    assert "budget x4 (8 epochs): " in out
    page = (runs / "budget.html").read_text()
    assert page.count("<svg") == 1 and "training loss" in page and "<script" not in page
    assert budget_report.sentences(budget.read([runs / "x1", runs / "x4"])[0])[0].split(":")[0] in page
    assert cli.main(["budget", str(runs / "x1"), "--out", str(runs / "new" / "one.html")]) == 0
    assert (runs / "new" / "one.html").exists()


def test_runs_that_hold_nothing_out_are_marked_on_the_page(runs, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["budget", str(runs / "tested1"), str(runs / "tested2"), "--out", str(runs / "tested.html")]) == 0
    rows = [row for row in budget.table(budget.read([runs / "tested1", runs / "tested2"])[0]) if row[2] == "sparse"]
    assert [row[-1].split(" (")[1] for row in rows] == ["on test images: no decision may rest on it)"] * 2
    for text in (capsys.readouterr().out, (runs / "tested.html").read_text()):
        assert text.count("(on test images: no decision may rest on it)") >= 4  # two rows, two sentences


def test_lengths_may_differ():
    plain = parse(TABLE | {"method": {"name": "greg1", "sparsity": 0.9, "pretrain_epochs": 1}}).to_dict()
    longer = parse(TABLE | {"method": {"name": "greg1", "sparsity": 0.9, "pretrain_epochs": 1}, "budget": 3}).to_dict()
    assert longer["method"]["stabilize_steps"] == 3 * plain["method"]["stabilize_steps"]
    assert budget._comparable(plain) == budget._comparable(longer)
    longer["method"]["tau"] = 2.0
    assert budget._comparable(plain) != budget._comparable(longer)


def test_art_s_growth_may_differ_as_the_budgets_do(tmp_path):
    figures = {"loss": 1.0, "entropy": 1.0, "accuracy": 0.5}
    fits = {"method": {"train": figures, "held_out": figures, "held_out_are": "validation"}}

    def run(name, **more):
        recipe = parse(TABLE | {"method": {"name": "art", "sparsity": 0.9} | more.pop("method", {})} | more).to_dict()
        summary = {"recipe": recipe, "fit": fits, "epochs": 1, "sparse_accuracy": 0.5}
        (tmp_path / name).mkdir()
        run_folder.RunFolder(tmp_path / name).write_json(run_folder.SUMMARY, summary)
        return tmp_path / name

    x1, x3 = run("x1"), run("x3", budget=3)
    assert [point.budget for point in budget.read([x1, x3])[0]] == [1, 3]
    with pytest.raises(ValueError, match=r"faster has method.eta 1.1, .*x1 1.05: budgets are compared within one"):
        budget.read([x1, run("faster", budget=2, method={"eta": 1.1})])


def test_runs_that_do_not_belong_together(runs, tmp_path):
    with pytest.raises(ValueError, match=r"other has method.sparsity 0.8, .*x1 0.9: budgets are compared within one"):
        budget.read([runs / "x1", runs / "other"])
    with pytest.raises(ValueError, match=r"holds no finished run"):
        budget.read([runs / "x1", tmp_path])
    old = run_folder.RunFolder(tmp_path)
    old.write_json(run_folder.SUMMARY, {"recipe": {}})
    with pytest.raises(ValueError, match=r"has no record of its training loss and entropy; train it again"):
        budget.read([tmp_path])


def test_a_run_s_own_report_shows_them(runs):
    pytest.importorskip("matplotlib")
    page = report.write(runs / "x4").read_text()
    assert "validation entropy" in page and "sparse-ops budget shows whether longer training helps" in page
    assert "validation entropy" in report.write(runs / "other").read_text()  # without a dense run too
