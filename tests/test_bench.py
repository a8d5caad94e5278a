"""The benchmarks run, leave one record a line with the agreed fields, and say what they skip."""

import argparse
import json
import sys

import pytest
import torch
from torch import nn

from bench import common, conv, fixed_mask, linear, network, select, speedups, step, train_step
from sparse_ops import save
from sparse_ops.nn import SparseLinear
from sparse_ops.train import networks

FIELDS = {"op", "shape", "dtype", "sparsity", "contender", "ms", "spread", "gflops", "gbs", "threads", "device"}
FIELDS |= {"versions", "commit", "isa"}


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
    names = ["inplace", "torch-fused", "sweep-none", "authors"]
    lines = records(monkeypatch, tmp_path, step, "--size", "resnet20", "--contenders", *names)
    skipped = {line["contender"]: line.get("skipped") for line in lines}
    assert "are free" in skipped.pop("authors") and not any(skipped.values())
    picture = tmp_path / "step.svg"
    step.plot(tmp_path / "bench.step.jsonl", picture)
    drawing = picture.read_text()
    assert drawing.lstrip().startswith("<?xml") and len(drawing) > 5000
    for said in ("inplace (memory floor: one in-place pass)", "sweep-none (sparse_ops)", "Solid: sparse_ops"):
        assert said in drawing  # matplotlib writes each text as a comment beside its outlines


def test_select(monkeypatch, tmp_path):
    lines = records(monkeypatch, tmp_path, select, "--size", "20000")
    assert {"sparse_ops", "torch.kthvalue", "torch.topk", "numpy.partition"} <= {line["contender"] for line in lines}
    assert all(set(line) >= FIELDS for line in lines)


def test_linear(monkeypatch, tmp_path, capsys):
    names = ["--size", "48x32", "--batch", "5", "--sparsity", "0.5", "0.9", "--mask", "erk", "--no-compile"]
    lines = [r for r in records(monkeypatch, tmp_path, linear, *names) if r["ms"]]
    assert all(set(r) >= FIELDS and r["mask"] == "erk" for r in lines)
    assert {r["work"] for r in lines} == {"forward", "training", "prepare"}
    forward = {r["contender"]: r for r in lines if r["work"] == "forward" and r["sparsity"] == 0.9}
    assert {"dense float32", "dense bfloat16", "torch CSR", "sparse_ops float32 batch-last"} <= set(forward)
    assert forward["sparse_ops float32"]["tolerance"] == "float32"
    assert forward["sparse_ops bfloat16"]["tolerance"] == "half" and forward["sparse_ops bfloat16"]["error"] > 0
    prepared = [r for r in lines if r["work"] == "prepare"]
    assert prepared[0]["bytes_held"] > prepared[1]["bytes_held"] > 0
    assert "forward 48x32 batch 5, erk mask" in capsys.readouterr().out
    picture = tmp_path / "linear.svg"
    linear.main(["--plot", str(picture), "--json", str(tmp_path / "bench.linear.jsonl")])
    assert picture.read_text().lstrip().startswith("<?xml")


def test_conv(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(conv.SHAPES, "demo", [conv.Shape(8, 12, 6, 3, 2), conv.Shape(12, 8, 4, 1)])
    names = ["--shapes", "demo", "--batch", "3", "--sparsity", "0.5", "0.9", "--mask", "erk", "--no-compile"]
    lines = [r for r in records(monkeypatch, tmp_path, conv, *names) if r["ms"]]
    assert all(set(r) >= FIELDS and r["mask"] == "erk" for r in lines)
    for work in ("forward", "training"):
        found = {r["contender"]: r for r in lines if r["work"] == work and r["shape"] == "8-12 3x3/2 6x6 batch 3"}
        layouts = {f"{dtype} {layout}" for dtype in conv.DTYPES for layout in conv.LAYOUTS}
        assert {f"sparse_ops {name}" for name in layouts} <= set(found)
        assert {f"dense {name}" for name in layouts if "batch-last" not in name} <= set(found)
        assert found["sparse_ops float32 batch-last"]["tolerance"] == "float32"
        assert found["sparse_ops bfloat16 nchw"]["tolerance"] == "half"
    assert "training 12-8 1x1/1 4x4 batch 3, erk mask" in capsys.readouterr().out
    picture = tmp_path / "conv.svg"
    conv.main(["--plot", str(picture), "--json", str(tmp_path / "bench.conv.jsonl")])
    assert picture.read_text().lstrip().startswith("<?xml")


def test_conv_on_a_trained_model(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(8, 8))
    with torch.no_grad():
        for weight in (model[0].weight, model[1].weight):
            weight *= torch.rand_like(weight) < 0.3
    save(model, tmp_path / "net.safetensors")
    names = ["--model", str(tmp_path / "net.safetensors"), "--side", "5", "--batch", "2", "--no-compile"]
    lines = records(monkeypatch, tmp_path, conv, *names, "--work", "forward")
    assert {(r["shape"], r["mask"]) for r in lines} == {("4-6 3x3/1 5x5 batch 2", "net")}


def test_break_even_lies_between_the_points_around_it():
    assert speedups.break_even([(0.5, 0.5), (0.75, 2.0)]) == pytest.approx(1 - (0.5 * 0.25) ** 0.5)
    assert speedups.break_even([(0.5, 1.5), (0.75, 2.0)]) is None


def test_linear_on_a_trained_model_and_a_pattern_in_text(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 40), nn.Linear(40, 10))
    with torch.no_grad():
        for layer in model[:2]:
            layer.weight *= torch.rand_like(layer.weight) >= 0.8
    model[1] = SparseLinear.from_dense(model[1])
    save(model, tmp_path / "model.safetensors")
    (tmp_path / "layer.smtx").write_text("2, 3, 3\n0 1 3\n1 0 2\n")
    files = [str(tmp_path / name) for name in ("model.safetensors", "layer.smtx")]
    options = ["--model", *files, "--batch", "3", "--no-compile", "--work", "forward"]
    lines = [r for r in records(monkeypatch, tmp_path, linear, *options) if r["contender"] == "sparse_ops float32"]
    assert {(r["shape"], r["mask"]) for r in lines} == {
        ("30x20 batch 3", "model"), ("40x30 batch 3", "model"), ("2x3 batch 3", "layer"),
    }  # fmt: skip
    assert next(r["sparsity"] for r in lines if r["mask"] == "layer") == 0.5


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


@pytest.mark.parametrize("network", ["mlp", "resnet18"])
def test_train_step_at_a_fixed_mask(monkeypatch, tmp_path, capsys, network):
    monkeypatch.setitem(fixed_mask.NETWORKS, "resnet18", lambda: networks.ResNet(3, 10, (16, 32), 1))
    options = ["--fixed-mask", "--network", network, "--batch-size", "2", "--sparsity", "0.95", "--no-compile"]
    lines = records(monkeypatch, tmp_path, train_step, *options)
    names = {line["contender"] for line in lines}
    assert {"dense float32", "dense bfloat16 autocast", "sparse_ops float32", "sparse_ops bfloat16 autocast"} <= names
    assert all(set(line) >= FIELDS and line["sparsity"] == 0.95 for line in lines)
    assert f"fixed mask {network} batch 2, random mask" in capsys.readouterr().out


def test_network(monkeypatch, tmp_path):
    options = ["--model", "mlp", "--batch", "4", "--sparsity", "0.9", "--no-compile", "--threads", "1"]
    lines = records(monkeypatch, tmp_path, network, *options)
    timed = [line for line in lines if line["ms"]]
    assert {"dense float32", "dense bfloat16", "sparse_ops float32", "sparse_ops bfloat16"} <= {
        line["contender"] for line in timed
    }
    assert all(set(line) >= FIELDS | {"error", "tolerance", "kind"} for line in timed)
    ours = [line for line in timed if line["kind"] == "ours"]
    assert all(line["bytes_held"] < line["dense_bytes"] for line in ours)


def test_who_is_hopelessly_slow_is_timed_once(monkeypatch):
    """Also where it is the first; the others are timed in every round."""
    clock = {"slow": 30.0, "quick": 1.4, "quickest": 1.3}
    calls: list[str] = []
    monkeypatch.setattr(common, "seconds", lambda run, repeats, device: clock[run()])
    runs = {name: lambda name=name: calls.append(name) or name for name in clock}
    found = common.measure(runs, argparse.Namespace(rounds=5, seconds=0.02, device="cpu"))
    assert {name: time["ms"] for name, time in found.items()} == {"slow": 3e4, "quick": 1.4e3, "quickest": 1.3e3}
    assert calls.count("slow") == 2 and calls.count("quick") == calls.count("quickest") == 2 + 1 + 5
    assert found["slow"]["spread"] is None
