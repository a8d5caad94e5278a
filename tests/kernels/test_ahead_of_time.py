"""Every Triton kernel compiles for every target without a spill, and the sweep is one pass over memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from sparse_ops import launch
from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.ops.sweep_finish import sweep_finish_

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942"}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What `python -m bench kernels` says; in a child process, since the interpreter replaces the compiler."""
    path = tmp_path_factory.mktemp("kernels") / "kernels.jsonl"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench", "kernels", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_kernel_is_compiled_for_every_target(records):
    kernels = {
        (path.stem, name)
        for path in (ROOT / "kernels").glob("*.py")
        for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.MULTILINE)
    }
    assert kernels
    assert {(r["file"], r["op"], r["target"]) for r in records} == {(*k, target) for k in kernels for target in TARGETS}


def test_nothing_spills(records):
    assert [(r["op"], r["variant"], r["target"], r["spills"]) for r in records if r["spills"]] == []
    assert all(0 < r["registers"] <= 512 for r in records)
    assert max(r["shared"] for r in records) <= 48 * 1024


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_the_sweep_reads_three_times_and_writes_twice(records, target):
    """Per thread and four weights: three 128-bit loads, a byte of the mask, two 128-bit stores; no other load."""
    variant = "fp32 hypersparse masked"
    [record] = [r for r in records if (r["file"], r["variant"], r["target"]) == ("regularized_sgd", variant, target)]
    assert record["loop_loads"] == {"v4.b32": 3, "b8": 1}
    assert record["loop_stores"] == {"v4.b32": 2, "b32": 4}, "the narrow ones are the candidates"
    assert record["loads"]["v4.b32"] == 3 and record["stores"]["v4.b32"] == 2, "the loop is all there is"


def test_the_adamw_sweep_reads_four_times_and_writes_three(records):
    variant = "fp32 hypersparse masked"
    [record] = [r for r in records if (r["file"], r["variant"], r["target"]) == ("regularized_adamw", variant, "sm_90")]
    assert record["loop_loads"] == {"v4.b32": 4, "b8": 1}
    assert record["loop_stores"] == {"v4.b32": 3, "b32": 4}, "the narrow ones are the candidates"


def test_half_precision_moves_128_bits_too(records):
    [record] = [r for r in records if (r["variant"], r["target"]) == ("bf16 growing_l2", "sm_90")]
    assert record["loads"]["v4.b32"] == 3 and record["stores"]["v4.b32"] == 2


def test_launches_of_a_step_do_not_grow_with_the_tensors(device, monkeypatch):
    """The sweep and its sums; then the proof, three digit counts, sums and the result of the fall-back."""
    if device.type == "cuda":
        pytest.skip("counts launches of the interpreter")
    from triton.runtime import interpreter

    launches = []
    call = interpreter.GridExecutor.__call__
    monkeypatch.setattr(
        interpreter.GridExecutor,
        "__call__",
        lambda self, *a, **k: (launches.append(self.fn.__name__), call(self, *a, **k)),
    )
    f64 = {"dtype": torch.float64}
    for count in (1, 12):
        weights, grads, momenta = ([torch.randn(16, 8) for _ in range(count)] for _ in range(3))
        tables = [torch.zeros(1, 4, **f64), torch.zeros(1, 2, **f64), torch.zeros(1, 7, **f64), torch.zeros(1, 256)]
        report, scopes = torch.zeros(1, 8, **f64), [0] * count
        for step in range(3):
            launches.clear()
            with launch.forced("triton"):
                regularized_sgd_(
                    weights, grads, momenta, [], [], scopes, *tables, penalty="hypersparse", lr=1e-4, momentum=0.9,
                    first_step=step == 0,
                )  # fmt: skip
                sweep_finish_(weights, scopes, [100 * count], *tables, report)
        names = [re.sub(r"^_|_kernel$", "", name) for name in launches]
        finish = ["prove", "count_digit", "count_digit", "count_digit", "hypersparse_sums", "write_exact"]
        assert names == ["regularized_sgd", "add_partials", *finish]
        assert report[0, 2] == 1, "in the steady state the bracket proves the threshold"
