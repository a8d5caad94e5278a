"""The benchmarks run, leave one record a line with the agreed fields, and say what they skip."""

import json
import sys

import pytest

from bench import select, step, train_step

FIELDS = {"op", "shape", "dtype", "sparsity", "contender", "ms", "spread", "gflops", "gbs", "threads", "device"}
FIELDS |= {"versions", "commit"}


def records(monkeypatch, tmp_path, module, *arguments):
    path = tmp_path / f"{module.__name__}.jsonl"
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(path), "--rounds", "2", "--seconds", "0", *arguments])
    module.main()
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_step(monkeypatch, tmp_path, rule):
    prefix = "" if rule == "sgd" else "adamw-"
    names = ["inplace", "torch-fused", "sweep-none", "sweep-hypersparse", "sweep-hypersparse-masked"]
    names = [prefix + name for name in names] + (["authors"] if rule == "sgd" else [])
    options = ["--size", "resnet20", "--rule", rule, "--pairs", "4", "--contenders", *names]
    lines = records(monkeypatch, tmp_path, step, *options)
    assert [line["contender"] for line in lines] == [*names, f"{prefix}threshold-share"]
    assert all(set(line) >= FIELDS and line["ms"] > 0 for line in lines)
    assert all(line["weights"] == 269_722 and line["gbs"] > 0 for line in lines[:-1])
    assert lines[-1]["low"] <= lines[-1]["share"] <= lines[-1]["high"] < 1


def test_step_says_what_does_not_fit_and_draws_the_rest(monkeypatch, tmp_path):
    monkeypatch.setattr(step, "free_bytes", lambda device: 4e6)  # room for 12 bytes a weight, not for 48
    names = ["inplace", "torch-fused", "authors"]
    lines = records(monkeypatch, tmp_path, step, "--size", "resnet20", "--contenders", *names)
    skipped = {line["contender"]: line.get("skipped") for line in lines}
    assert "are free" in skipped.pop("authors") and not any(skipped.values())
    picture = tmp_path / "step.svg"
    step.plot(tmp_path / "bench.step.jsonl", picture)
    drawing = picture.read_text()
    assert drawing.lstrip().startswith("<?xml") and len(drawing) > 5000


def test_select(monkeypatch, tmp_path):
    lines = records(monkeypatch, tmp_path, select, "--size", "20000")
    assert {"sparse_ops", "torch.kthvalue", "torch.topk", "numpy.partition"} <= {line["contender"] for line in lines}
    assert all(set(line) >= FIELDS for line in lines)


@pytest.mark.filterwarnings("ignore:ART")
def test_train_step(monkeypatch, tmp_path):
    lines = records(monkeypatch, tmp_path, train_step, "--batch-size", "2")
    assert [line["contender"] for line in lines] == [
        "dense-torch",
        "dense-sparse_ops",
        "art-regularize",
        "art-finetune",
    ]
    assert all(set(line) >= FIELDS and line["ratio_low"] <= line["ratio"] <= line["ratio_high"] for line in lines)


@pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")
@pytest.mark.parametrize(
    "method, own", [("acdc", ["dense", "sparse"]), ("rigl", ["dense", "dense-change", "sparse", "sparse-change"])]
)
def test_train_step_of_both_executions(monkeypatch, tmp_path, method, own):
    options = ["--method", method, "--network", "resnet8", "--batch-size", "2", "--sparsity", "0.9"]
    lines = records(monkeypatch, tmp_path, train_step, *options)
    names = ["dense-torch", "dense-sparse_ops", *(f"{method}-{name}" for name in own)]
    assert [line["contender"] for line in lines] == names
    assert all(set(line) >= FIELDS and line["sparsity"] == 0.9 and line["shape"] == "resnet8 batch 2" for line in lines)
