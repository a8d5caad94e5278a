"""python -m bench gpu: its checks in Triton's interpreter, and that failures, crashes and an early end are kept."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def bench_gpu(path, *options):
    command = [sys.executable, "-m", "bench", "gpu", "--device", "cpu", "--json", str(path), *options]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    return done, [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_every_op_is_checked(tmp_path):
    done, records = bench_gpu(tmp_path / "gpu.jsonl", "--minutes", "20")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    states = {r["name"]: r["status"] for r in records if "status" in r}
    assert records[0]["section"] == "environment"
    assert {status for name, status in states.items() if "captured" in name} == {"skipped"}
    passed = " ".join(name for name, status in states.items() if status == "ok")
    ops = {p.stem for p in (ROOT / "sparse_ops" / "ops").glob("*.py")} - {
        "__init__",
        "bound_sweep",  # what regularized_sgd and regularized_adamw keep in C++, for tensors on the CPU
        "conv_operands",
        "csr_operands",
        "direct",  # autograd of the ops
        "sweep_operands",
        "transforms",  # rules of torch.func for the products, which are ops of their own
    }
    aliases = {"regularized_sgd": "sgd ", "regularized_adamw": "adamw "}
    gradients = {"sparse_conv2d_input_grad", "sparse_conv2d_weight_grad"}  # part of the check of sparse_conv2d
    assert [op for op in sorted(ops - gradients) if aliases.get(op, op) not in passed] == []
    assert f"{len([s for s in states.values() if s == 'ok'])} passed, 0 failed" in done.stdout


def test_no_time_is_said_for_each_item(tmp_path):
    done, records = bench_gpu(tmp_path / "gpu.jsonl", "--minutes", "0.0001")
    assert done.returncode == 0, done.stderr[-3000:]
    states = [r for r in records if "status" in r]
    assert len(states) > 100
    assert {(r["status"], r["detail"]) for r in states} == {("skipped", "time")}
    assert f"0 passed, 0 failed, {len(states)} skipped" in done.stdout


# A worker of five items: one passes, one fails, one ends the process, one never ends, one finds no memory.
WORKER = """
import os, sys, time
from bench import gpu

def fails(args):
    raise AssertionError("the threshold is 2, exactly 3")

def memory(args):
    class OutOfMemoryError(RuntimeError):
        pass
    raise OutOfMemoryError

runs = {"passes": lambda args: None, "fails": fails, "crashes": lambda args: os._exit(9),
        "hangs": lambda args: time.sleep(100), "memory": memory}
gpu.work([gpu.Item("check", name, run) for name, run in runs.items()], gpu.parse(sys.argv[1:]))
"""


@pytest.fixture
def supervised(tmp_path):
    """(records, exit status) of the worker above under its supervisor."""
    sys.path.insert(0, str(ROOT))
    try:
        from bench import gpu
    finally:
        sys.path.remove(str(ROOT))
    path = tmp_path / "gpu.jsonl"
    path.write_text('{"of an earlier run": true}\n')
    argv = ["--device", "cpu", "--json", str(path), "--minutes", "5", "--hung", "4"]
    args = gpu.parse(argv)
    environment, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), str(ROOT)
    try:
        gpu.supervise([sys.executable, "-c", WORKER, *argv], args)
    finally:
        os.environ.pop("PYTHONPATH")
        if environment is not None:
            os.environ["PYTHONPATH"] = environment
    records = gpu.records_from(path, len('{"of an earlier run": true}\n'))
    return records, gpu.summary(records)


def test_failures_crashes_and_hangs_are_records_and_the_rest_goes_on(supervised, capsys):
    records, status = supervised
    assert [(r["name"], r["status"]) for r in records] == [
        ("passes", "ok"),
        ("fails", "failed"),
        ("crashes", "failed"),
        ("hangs", "failed"),
        ("memory", "skipped"),
    ]
    assert "exactly 3" in records[1]["detail"] and "exit status 9" in records[2]["detail"]
    assert "hung" in records[3]["detail"] and records[4]["detail"] == "memory"
    assert status == 1


def test_lanes_share_the_checks_and_leave_the_benchmarks_alone(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import gpu

    listed = [gpu.Item("check", str(i), print) for i in range(7)] + [gpu.Item("speed", "b", print)]
    shared = [item.name for i in range(3) for item in gpu.of_lane(listed, f"{i}of3")]
    assert sorted(shared) == [str(i) for i in range(7)]
    assert [item.name for item in gpu.of_lane(listed, "speed")] == ["b"]


def test_a_benchmark_begins_only_where_its_time_is_left(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import gpu

    args = argparse.Namespace(deadline=time.time() + 60, minutes=2.0, device="cuda")  # 12 s of them for checks
    assert gpu.run_item(gpu.Item("speed", "b", lambda args: None, 30.0), args) == ("ok", "")
    assert gpu.run_item(gpu.Item("speed", "b", lambda args: None, 90.0), args) == ("skipped", "time")
    assert gpu.run_item(gpu.Item("check", "c", lambda args: None, 13.0), args) == (
        "skipped",
        "time",
    )  # 12 s are its share


def test_the_summary_compares_with_the_reference(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import gpu

    line = {"op": "step-sgd", "shape": "resnet50", "dtype": "float32", "sparsity": 0.98, "spread": 0.01, "gbs": 9.0}
    records = [line | {"contender": "sweep-none", "ms": 0.5}, line | {"contender": "torch-fused", "ms": 1.0}]
    assert gpu.summary(records) == 0
    said = capsys.readouterr().out
    assert "2.00 x" in said and "step-sgd resnet50 float32 at 98.0%" in said
