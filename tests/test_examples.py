"""The examples run and do what they say."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


def run(name: str):
    path = next(p for p in EXAMPLES if p.stem == name)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main()


@pytest.mark.filterwarnings("ignore::sparse_ops.methods.collapse.CollapseWarning")
def test_plain_loop_reaches_its_accuracy(capsys):
    assert run("plain_loop") > 0.9
    assert "90" in capsys.readouterr().out


def test_a_pruned_model_runs_sparse_and_comes_back_from_its_file(capsys):
    assert run("pruned_to_cpu") < 1e-4


def test_every_example_is_run():
    assert {p.stem for p in EXAMPLES} == {"plain_loop", "pruned_to_cpu"}
