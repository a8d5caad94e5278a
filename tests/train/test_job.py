"""A whole recipe, small: summary, zeros in the file, resume from any epoch, folds, errors before any training."""

import json
import types

import pytest
import torch

import sparse_ops
from sparse_ops.train import data as data_sets
from sparse_ops.train import deploy, networks, run_folder
from sparse_ops.train.job import Job, Options
from sparse_ops.train.loop import Stopped, Trainer
from sparse_ops.train.progress import Plain
from sparse_ops.train.recipe import parse
from sparse_ops.train.run_folder import RunFolder

pytest.importorskip("sklearn")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*lose.*:UserWarning"
)  # three epochs at 95 % may cost an output its inputs

TABLE = {
    "data": {"name": "digits", "batch_size": 128, "crop": 1},
    "network": {"name": "mlp", "width": 64},
    "method": {
        "name": "art",
        "sparsity": 0.9,
        "pretrain_epochs": 2,
        "max_regularize_epochs": 2,
        "finetune_epochs": 2,
        "lambda_init": 1e-3,
        "eta": 1.5,
    },
}
EPOCHS = {"pretrain_epochs": 1, "max_regularize_epochs": 1, "finetune_epochs": 1}
SHORT = TABLE | {"method": TABLE["method"] | EPOCHS, "training": {"dense": False, "oneshot": False}}
KEYS = """
dense_accuracy sparse_accuracy oneshot_accuracy sparsity zeros prunable max_abs_difference_sparse_vs_masked
dense_ms sparse_ms dense_bytes sparse_bytes seconds_train seconds_total model_file
""".split()  # noqa: SIM905


def job(path, table=TABLE, **options):
    return Job(parse(table), Options(run=path, **options), Plain())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    return RunFolder(path), job(path).run()


def test_summary(finished):
    folder, summary = finished
    assert json.loads((folder / run_folder.SUMMARY).read_text()) == summary
    assert set(KEYS) <= set(summary)
    prunable = 64 * 64 + 64 * 64 + 64 * 10
    assert (summary["prunable"], summary["zeros"]) == (prunable, int(0.9 * prunable + 0.5))
    assert summary["sparsity"] == summary["zeros"] / prunable
    assert 0 < summary["seconds_train"] < summary["seconds_total"]
    assert summary["dense_accuracy"] > 0.8 and summary["sparse_accuracy"] > 0.5
    assert summary["epochs"] <= 6 and summary["test_images"] == 360 and "cores" in summary["machine"]
    assert [layer["name"] for layer in summary["layers"]] == ["1", "4", "7"]


def test_the_summary_says_how_it_was_timed(tmp_path, monkeypatch):
    """Not what was asked for: what torch had when the layers and the networks were timed."""
    seen = {}

    def spy(name, module, attribute):
        original = getattr(module, attribute)

        def noting(*arguments, **options):
            seen[name] = torch.get_num_threads()
            return original(*arguments, **options)

        monkeypatch.setattr(module, attribute, noting)

    spy("layer_table", sparse_ops, "sparsify")
    spy("networks", deploy, "time_networks")
    spy("training", Trainer, "run")
    monkeypatch.setattr(deploy, "THREADS", 2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    threads = torch.get_num_threads()
    try:
        summary = job(tmp_path / "run", SHORT, threads=1).run()
    finally:
        torch.set_num_threads(threads)
    assert summary["threads"] == seen == {"training": 1, "layer_table": 2, "networks": 2}
    assert summary["omp_wait_policy"] == "PASSIVE"
    assert "2 threads, OMP_WAIT_POLICY PASSIVE, " in summary["timing"]
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(deploy, "THREADS", 1)
    summary = job(tmp_path / "run", SHORT).run()
    assert summary["omp_wait_policy"] == "default" and "1 thread, OMP_WAIT_POLICY default, " in summary["timing"]


def test_the_rivals_train_for_as_many_epochs(finished):
    folder, summary = finished
    for stage in ("art", "oneshot", "dense"):
        records = [r for r in folder.metrics() if r["stage"] == f"fold0-{stage}"]
        assert [r["epoch"] for r in records] == list(range(1, summary["epochs"] + 1)) and records[-1]["finished"]
    first = [next(r for r in folder.metrics() if r["stage"] == f"fold0-{s}") for s in ("art", "oneshot", "dense")]
    assert len({r["loss"] for r in first}) == 1  # the same start and the same batches


def test_one_shot_is_held_to_the_method_s_constraints(tmp_path, monkeypatch):
    constraints = {"count": "ceil", "scope": "erk", "min_nonzeros": 3, "strict": True, "lr": "user", "exclude": ["0.*"]}
    given = {}

    def stage(self, name, data, fold, method, arguments):
        given[name] = arguments
        return types.SimpleNamespace(epochs=9, finetuned=did[0])

    monkeypatch.setattr(Job, "_stage", stage)
    trained = job(tmp_path / "run", TABLE | {"method": TABLE["method"] | constraints})
    did = [None]
    for did[0], fine in ((4, 4), (0, 0), (None, 4)):  # None: no such phase, half of the epochs
        trained._train(None, 0)
        epochs = {"pretrain_epochs": 9 - fine, "finetune_epochs": fine}
        assert given["oneshot"] == constraints | epochs | {"sparsity": trained.arguments["sparsity"]}


@pytest.mark.parametrize("select", ["last", "validation"])
def test_one_shot_fine_tunes_as_long_as_the_method_did(tmp_path, select):
    """With total_epochs ART leaves finetune_epochs at its default, which is no length of this run."""
    lengths = {"pretrain_epochs": 2, "max_regularize_epochs": 1, "total_epochs": 6}
    method = {"name": "art", "sparsity": 0.9, "lambda_init": 1e-3, **lengths}
    table = {"data": TABLE["data"] | {"validation": 200}, "method": method}
    table["training"] = {"dense": False, "select": select}
    with pytest.raises(Stopped):
        job(tmp_path / "run", TABLE | table, max_epochs=6).run()  # the rival begins from the record of the stage
    job(tmp_path / "run", TABLE | table, resume=True).run()
    phases = {
        stage: [r["phase"] for r in RunFolder(tmp_path / "run").metrics() if r["stage"] == f"fold0-{stage}"]
        for stage in ("art", "oneshot")
    }
    assert phases["art"] == ["pretrain"] * 2 + ["regularize"] + ["finetune"] * 3
    assert phases["oneshot"] == ["pretrain"] * 3 + ["finetune"] * 3


def test_the_file_holds_the_network(finished):
    folder, summary = finished
    data = data_sets.load("digits", folder.path)
    network = sparse_ops.load(summary["model_file"], networks.build("mlp", data.shape, 10, width=64)).eval()
    dense = sparse_ops.densify(network)
    weights = [m.weight for m in dense.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(int((w == 0).sum()) for w in weights) == summary["zeros"]
    x = (data.test.images.float() - data.mean[0]) / data.std[0]
    with torch.inference_mode():
        right = (network(x).argmax(1) == data.test.labels).double().mean()
    assert right.item() == pytest.approx(summary["sparse_accuracy"], abs=2 / 360)
    scale = summary["max_abs_output"]
    assert summary["max_abs_difference_sparse_vs_masked"] <= 1e-5 * scale
    assert summary["max_abs_difference_loaded_vs_sparse"] <= 1e-5 * scale


@pytest.mark.parametrize("epochs", [1, 4, 8])
def test_resume_gives_the_same_run(finished, tmp_path, epochs):
    folder, summary = finished
    path = tmp_path / "halves"
    with pytest.raises(Stopped):
        job(path, max_epochs=epochs).run()
    assert not (path / run_folder.SUMMARY).exists()
    resumed = job(path, resume=True).run()
    for key in ("dense_accuracy", "sparse_accuracy", "oneshot_accuracy", "zeros", "epochs"):
        assert resumed[key] == summary[key], key
    for stage in ("art", "oneshot", "dense"):
        a, b = (run_folder.load_state(f.stage(f"fold0-{stage}"))["model"] for f in (folder, RunFolder(path)))
        assert all(torch.equal(a[name], b[name]) for name in a), stage
    timeless = [
        [{k: v for k, v in r.items() if "second" not in k} for r in f.metrics()] for f in (folder, RunFolder(path))
    ]
    assert timeless[0] == timeless[1]


def test_folds_are_averaged(tmp_path):
    summary = job(tmp_path / "run", SHORT, folds=2).run()
    values = summary["sparse_accuracy_per_fold"]
    assert len(values) == 2 and summary["sparse_accuracy"] == pytest.approx(sum(values) / 2)
    assert summary["dense_accuracy"] is None and summary["dense_bytes"] > summary["sparse_bytes"]


@pytest.mark.parametrize(
    "change, options, message",
    [
        (
            {"method": {"name": "art", "sparsitty": 0.9}},
            {},
            "unknown key 'method.sparsitty'; did you mean 'method.sparsity'?",
        ),
        ({"method": {"name": "artt", "sparsity": 0.9}}, {}, "did you mean 'art'?"),
        ({"method": {"name": "art"}}, {}, "method.sparsity is missing"),
        ({"method": {"name": "art", "sparsity": 1.0}}, {}, "method.sparsity is 1.0"),
        (
            {"method": {"name": "art", "sparsity": 0.9, "eta": -1}},
            {},
            "method.eta is -1.0, expected a finite number > 0",
        ),
        (
            {"method": {"name": "art", "sparsity": 0.9, "exclude": ["1", "4", "7"]}},
            {},
            "[method]: Sequential has no prunable weights",
        ),
        ({"method": {"name": "art", "sparsity": 0.9, "exclude": "stem"}}, {}, "method.exclude='stem' matches nothing"),
        ({"method": {"name": "art", "sparsity": {"7": 0.5}}}, {}, "method.sparsity gives no number for 1.weight"),
        (
            {"data": {"name": "digits", "batch_size": 100_000}},
            {},
            "data.batch_size is 100000, but there are 1,437 images of digits to train on",
        ),
        ({}, {"folds": 6}, "--folds is 6, expected 1 to 5"),
        ({"data": {"name": "cifar10"}}, {"folds": 2}, "--folds is 2, expected 1, since cifar10 has a fixed test set"),
        ({"data": {"name": "cifar10"}}, {}, "data_batch_1.bin is missing"),
        ({}, {"resume": True}, "holds no run to resume"),
        pytest.param(
            {},
            {"device": "cuda"},
            "--device cuda: this PyTorch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        ({}, {"device": "gpu"}, "--device gpu"),
    ],
)
def test_errors_come_before_training(tmp_path, change, options, message):
    with pytest.raises(ValueError) as error:
        job(tmp_path / "run", TABLE | change, **{"data_dir": tmp_path, **options}).run()
    assert message in str(error.value)
    assert not (tmp_path / "run" / run_folder.METRICS).exists()


def test_a_method_that_counts_steps_with_sparsities_by_layer(tmp_path):
    """12 steps an epoch: the penalty's phase fits itself to the 24 of its two epochs."""
    lengths = {"pretrain_epochs": 1, "max_regularize_epochs": 2, "finetune_epochs": 1, "fit": True}
    method = {"name": "greg2", "sparsity": {"4": 0.5, "*": 0.9}, **lengths}
    summary = job(tmp_path / "run", SHORT | {"method": method}).run()
    assert summary["epochs"] == 4 and summary["zeros"] < 0.9 * summary["prunable"]
    assert summary["asked"] == {"weights": summary["prunable"], "wanted": summary["zeros"], "zeros": summary["zeros"]}
    lines = (tmp_path / "run" / run_folder.METRICS).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["phase"] for r in records] == ["pretrain", "regularize", "regularize", "finetune"]
    assert records[2]["lambda"] > 1.0 and records[1]["lr"] == 1e-3
    with pytest.raises(ValueError, match=r"method.max_regularize_epochs is 2, which is 24 steps, but lambda"):
        job(tmp_path / "long", SHORT | {"method": method | {"fit": False}}).run()
