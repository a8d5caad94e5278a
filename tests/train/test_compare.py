"""A comparison: equal terms for every method, records that outlive a killed process, failures that stop nobody."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
import warnings

import pytest
import torch

from sparse_ops import cli, methods
from sparse_ops.train import compare, compare_work, deploy, run_folder
from sparse_ops.train.compare_store import RECORDS, SHARED, Store
from sparse_ops.train.job import Job
from sparse_ops.train.recipe import parse, parse_override, read

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.filterwarnings("ignore:.*lose.*:UserWarning", "ignore:.*survives.*:UserWarning")

RECIPE = """
seed = 3
[data]
name = "digits"
batch_size = 256
[network]
name = "mlp"
width = 16
[method]
name = "art"
sparsity = 0.5
pretrain_epochs = 1
max_regularize_epochs = 1
finetune_epochs = 1
lambda_init = 2e-5
exclude = ["7"]
[training]
channels_last = false
"""
ASKED = ["--methods", "art,oneshot", "--sparsities", "0.8,0.9", "--threads", "1"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "own.toml"
    path.write_text(RECIPE)
    return path


def command(recipe, out, *more):
    return ["compare", str(recipe), *ASKED, "--epochs", "12", "--out", str(out), *more]


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A comparison that nothing has disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main(command(recipe, out)) == 0
    return out


def states(out):
    return {
        path.parent.parent.name: run_folder.load_state(path)["model"] for path in sorted(out.glob("runs/*/stages/*.pt"))
    }


def same_bits(a, b):
    assert a.keys() == b.keys() and len(a) == 5
    for name in a:
        assert all(torch.equal(a[name][key], b[name][key]) for key in a[name]), name


def timeless(record):
    unlike = ("seconds", "time", "speed", "commit")
    return {key: value for key, value in record.items() if key not in unlike}


def test_every_run_has_a_record(finished):
    records = list(Store(finished).records().values())
    runs = [(r["method"], r["sparsity"], r["seed"]) for r in records]
    assert runs == [("dense", None, 3), *[(m, s, 3) for s in (0.8, 0.9) for m in ("art", "oneshot")]]
    prunable = 64 * 16 + 16 * 16
    for record in records:
        zeros = round((record["sparsity"] or 0) * prunable)
        assert (record["status"], record["epochs"], record["zeros"], record["prunable"]) == (
            "finished",
            12,
            zeros,
            prunable,
        )
        assert record["sparsity_measured"] == zeros / prunable
        assert record["epochs_trained"] == 12
        assert 0.1 < record["accuracy"] == record["accuracy_last_epoch"] and record["select"] == "last"
        # the classifier of 160 weights stays dense; every weight of a perceptron is used once
        assert record["flops_left"] == pytest.approx((prunable - zeros + 160) / (prunable + 160))
        assert record["versions"]["torch"] == torch.__version__ and record["commit"] and record["threads"] == 1
        assert record["recipe"]["seed"] == 3
        if record["method"] == "dense":
            assert "speed" not in record and "method" not in record["recipe"]
        else:
            assert record["speed"]["speedup"] == record["speed"]["dense_ms"] / record["speed"]["sparse_ms"]
            assert record["recipe"]["method"]["exclude"] == ["7"]
    for run in finished.glob("runs/*"):
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 12


def test_all_methods_of_a_seed_see_the_same(finished):
    """The first epoch is the same dense training for each: the same weights, batches and augmentation."""
    first = [json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in finished.glob("runs/*")]
    assert len(first) == 5 and len({record["loss"] for record in first}) == 1


def test_a_finished_comparison_trains_nothing(finished, recipe, monkeypatch, capsys):
    monkeypatch.setattr(Job, "_stage", None)
    monkeypatch.setattr(deploy, "deploy", None)
    before = (finished / RECORDS).read_bytes()
    (finished / "report.html").unlink()
    assert cli.main(command(recipe, finished)) == 0
    out = capsys.readouterr().out
    assert "5 runs of 12 epochs, 5 of them finished before" in out and "± is the standard deviation" in out
    assert (finished / RECORDS).read_bytes() == before
    page = (finished / "report.html").read_text()
    assert page.count("<svg") == 2 and (finished / "accuracy.png").stat().st_size > 10_000
    assert cli.main(["report", str(finished)]) == 0 and "oneshot" in capsys.readouterr().out


def test_a_dense_time_that_disagrees_is_taken_again(finished, recipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / "timed"
    subprocess.run(["cp", "-r", str(finished), str(out)], check=True)
    store = Store(out)
    for record in store.records().values():
        store.replace({key: value for key, value in record.items() if key != "speed"})
    times = iter([1.0, 5.0, 1.1, 1.0, 1.0])  # the second of four, and what it is the second time
    whole = compare_work._speed

    def busy(*arguments):
        return whole(*arguments) | {"dense_ms": next(times)}

    monkeypatch.setattr(compare_work, "_speed", busy)
    assert cli.main(command(recipe, out)) == 0
    assert next(times, None) is None and capsys.readouterr().out.count("timed again") == 1
    speeds = [record["speed"] for record in store.records().values() if "speed" in record]
    assert [speed["dense_ms_own"] for speed in speeds] == [1.0, 1.0, 1.1, 1.0]
    assert all(speed["steady"] and speed["dense_ms_spread"] == [1.0, 1.1] for speed in speeds)
    assert [record["dead_layers"] for record in store.records().values()] == [[]] * 5


@pytest.mark.slow
def test_a_killed_comparison_goes_on_bit_for_bit(finished, recipe, tmp_path):
    """SIGKILL of the command while its two processes are in the middle of runs; they end with it."""
    out = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-m", "sparse_ops", *command(recipe, out, "--jobs", "2", "--no-speed")]
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600  # seconds; a busy machine takes long to start three processes
    try:
        while not (begun := list(out.glob("runs/*/checkpoint.pt"))):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    store = Store(out)
    while True:  # until the processes that it had started are gone: they hold their runs as long as they live
        locks = [path.parent for path in out.glob("runs/*/.lock")]
        runs = [type("Run", (), {"folder": path.name})() for path in locks]
        taken = [run for run in runs if not _free(store, run)]
        if not taken:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    records = store.records()
    assert len(records) < 5 and any(path.exists() for path in begun)
    assert cli.main(command(recipe, out, "--no-speed")) == 0
    same_bits(states(finished), states(out))
    assert {k: timeless(r) for k, r in store.records().items()} == {
        k: timeless(r) for k, r in Store(finished).records().items()
    }
    for run in out.glob("runs/*"):
        assert [json.loads(x)["epoch"] for x in (run / "metrics.jsonl").read_text().splitlines()] == [*range(1, 13)]


def _free(store, run):
    with store.claim(run) as mine:
        return mine


def test_a_torn_record_is_taken_off_and_noted_again(finished, recipe, tmp_path, monkeypatch):
    out = tmp_path / "torn"
    subprocess.run(["cp", "-r", str(finished), str(out)], check=True)
    whole = (out / RECORDS).read_bytes()
    (out / RECORDS).write_bytes(whole[:-40])
    assert len(Store(out).records()) == 4
    monkeypatch.setattr("sparse_ops.train.loop.Trainer.run", None)  # the trained network is there: no epoch is repeated
    assert cli.main(command(recipe, out)) == 0
    found, wanted = Store(out).records(), Store(finished).records()
    assert {k: timeless(r) for k, r in found.items()} == {k: timeless(r) for k, r in wanted.items()}
    (out / RECORDS).write_bytes(b"{]\n" + whole)
    with pytest.raises(
        ValueError, match=r"runs.jsonl, line 1 is damaged; delete line 1, and the same sparse-ops compar"
    ):
        Store(out).records()


def test_a_lost_comparison_toml_is_named_and_written_again(finished, recipe, tmp_path, capsys, monkeypatch):
    out = tmp_path / "lost"
    subprocess.run(["cp", "-r", str(finished), str(out)], check=True)
    whole = (out / SHARED).read_text()
    again = "and the same sparse-ops compare writes it again"
    for text, cause in (("", "is empty"), ("epochs = ", "is damaged"), ("epochs = 3", "lacks data, network")):
        (out / SHARED).write_text(text)
        for arguments in (["report", str(out)], command(recipe, out)):
            assert cli.main(arguments) == 2
            said = capsys.readouterr().err
            assert f"{out / SHARED} is" in said and cause in said and again in said and len(said.splitlines()) == 1
    (out / SHARED).unlink()
    assert cli.main(["report", str(out)]) == 2 and f"{out / SHARED} is missing" in capsys.readouterr().err
    for change in (["--epochs", "10"], ["--set", "optimizer.lr=0.05"], ["--set", "compare.art.eta=1.5"]):
        assert cli.main([*command(recipe, out), *change]) == 2 and "was begun with" in capsys.readouterr().err
    monkeypatch.setattr(Job, "_stage", None)  # nothing is trained again
    assert cli.main([*command(recipe, out), "--methods", "oneshot"]) == 0
    assert tomllib.loads((out / SHARED).read_text()) == tomllib.loads(whole)


def test_a_run_is_claimed_by_one_process(tmp_path, recipe):
    made = compare.make(read(recipe), ["oneshot"], [0.9], [0], 2)
    first, second = Store(tmp_path), Store(tmp_path)
    with first.claim(made.runs[0]) as mine:
        assert mine and not _free(second, made.runs[0]) and _free(second, made.runs[1])
    assert _free(second, made.runs[0])


def test_a_warning_is_in_log_and_record_also_after_a_kill(tmp_path):
    log = tmp_path / "log.txt"
    with pytest.raises(SystemExit), compare_work._warnings(log):
        warnings.warn("a layer\nis gone", UserWarning, stacklevel=1)
        raise SystemExit  # the process ends here
    with compare_work._warnings(log) as said:
        for text in ("another", "another", "a layer is gone"):
            warnings.warn(text, UserWarning, stacklevel=1)
    assert said == ["a layer is gone", "another"]
    assert log.read_text() == "warning: a layer is gone\nwarning: another\n"


def test_a_failure_stops_nobody(recipe, tmp_path, capsys):
    out = tmp_path / "failing"
    arguments = ["compare", str(recipe), "--methods", "art,oneshot", "--sparsities", "0.9", "--epochs", "5"]
    arguments += ["--out", str(out), "--no-speed", "--set", "compare.art.lambda_init=1e38"]
    assert cli.main(arguments) == 1
    said = capsys.readouterr().out
    assert (
        "art 90 %, seed 3: FAILED: 1.weight holds" in said
        and "1 of 3 runs have failed; the same command tries them again" in said
    )
    records = {r["method"]: r for r in Store(out).records().values()}
    assert [records[m]["status"] for m in ("dense", "art", "oneshot")] == ["finished", "failed", "finished"]
    assert "non-finite values" in records["art"]["error"] and "FAILED: art 90 %, seed 3" in said
    assert cli.main(arguments) == 1
    assert "3 runs of 5 epochs, 2 of them finished before" in capsys.readouterr().out
    assert "non-finite values" in (out / "table.txt").read_text() + (out / "report.html").read_text()
    assert "Traceback" in next(out.glob("runs/art*/log.txt")).read_text()


def test_the_terms(recipe):
    """Lengths are the methods' own division, tables of the recipe go to their method alone, the weights to all."""
    overrides = dict(map(parse_override, ["compare.oneshot.scope=uniform", "compare.art.eta=1.5", "seed=5"]))
    made = compare.make(read(recipe, overrides), methods.names(), [0.9, 0.98], [5, 6], 20)
    assert len(made.runs) == 2 * (1 + 2 * len(methods.names())) and len({run.key for run in made.runs}) == len(
        made.runs
    )
    for run in made.runs:
        assert run.recipe.seed == run.seed and run.epochs == 20
        assert not (run.recipe.training.dense or run.recipe.training.oneshot or run.recipe.compare)
        if run.method == compare.DENSE:
            assert "[method]" not in run.text
            continue
        table = run.recipe.method
        assert table["name"] == run.method and table["sparsity"] == run.sparsity and table["exclude"] == ["7"]
        assert table.items() >= methods.get(run.method).cls.for_epochs(20).items()
        if run.method == "art":
            assert (table["lambda_init"], table["eta"], table["scope"]) == (2e-5, 1.5, "global")
        elif run.method == "oneshot":
            assert table["scope"] == "uniform"
    assert parse(dataclasses.asdict(made.runs[1].recipe)) == made.runs[1].recipe


def test_a_budget_slows_art_s_penalty_wherever_eta_is_from(recipe):
    """The default, [method] of ART's own recipe, [compare.art] of another's: once, and alike."""
    for overrides, eta in (
        ({"method.eta": 1.331}, 1.331),
        ({"method": {"name": "oneshot", "sparsity": 0.5}}, 1.05),
        ({"method": {"name": "oneshot", "sparsity": 0.5}, "compare.art.eta": 1.331}, 1.331),
    ):
        for budget in (1, 3):
            made = compare.make(read(recipe, overrides | {"budget": budget}), ["art"], [0.9], [0], 20)
            assert made.runs[1].recipe.method["eta"] == pytest.approx(eta ** (1 / budget), rel=1e-12)


def test_every_method_takes_the_epochs_that_it_is_given(recipe, tmp_path):
    base = read(recipe)
    made = compare.make(base, methods.names(), [0.9], [0], 20)
    options = compare_work.Options(tmp_path, tmp_path)
    compare.check(made, Job(base, options, None).load(), options)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--methods", "art,oneshott"], "--methods: there is no method 'oneshott'; did you mean 'oneshot'?"),
        (["--methods", "art,art"], "method art is asked for twice"),
        (["--methods", ","], "no method is given"),
        (["--methods", "art,dense"], "a dense network is trained in any case"),
        (["--sparsities", "0.9,1.0"], "--sparsities: 1 is outside of (0, 1)"),
        (["--sparsities", "98"], "--sparsities: 98 is outside of (0, 1) (a percentage? 0.98)"),
        (["--set", "compare.art.pretrain_epochs=9"], "total_epochs is 10, less than the 9 +"),
        (["--set", "compare.oneshot.pretrain_epochs=9"], "phases take 14 epochs together, longer than the 10 that"),
        (["--set", "compare.oneshot.pretrain_epochs=1"], "phases take 6 epochs together, shorter than the 10 that"),
        (["--set", "compare.arr.eta=1.2"], "compare.arr: there is no method 'arr'; did you mean 'art'?"),
        (["--set", "compare.art.etta=1.2"], "unknown key 'compare.art.etta'; did you mean 'compare.art.eta'?"),
        (["--set", "compare.art.eta=fast"], "compare.art.eta is 'fast', expected a number"),
        (["--set", "compare.art.eta=-1"], "art at 90 %: compare.art.eta is -1.0, expected a finite number > 0"),
        (["--set", "compare.art.sparsity=0.9"], "compare.art.sparsity: sparsity is the same for every method"),
        (["--set", "compare.art=3"], "compare.art is 3, expected a table"),
        (["--set", "data.batch_size=100000"], "data.batch_size is 100000"),
        (["--published", "nowhere.json"], "nowhere.json cannot be read"),
        (["--device", "gpu"], "--device gpu"),
    ],
)
def test_bad_input_is_told_before_anything_is_made(arguments, message, recipe, tmp_path, capsys):
    given = {"--methods": "art,oneshot", "--sparsities": "0.9", "--epochs": "10", "--out": str(tmp_path / "out")}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert cli.main(["compare", str(recipe), *[word for pair in given.items() for word in pair]]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (["--set", "optimizer.lr=0.05"], "optimizer.lr = 0.1, now it is 0.05"),
        (["--epochs", "10"], "epochs = 12, now it is 10"),
        (["--set", "compare.oneshot.scope=uniform"], 'compare.oneshot.scope = "global", now it is "uniform"'),
        (["--set", "method.exclude=['1']"], 'exclude = ["7"], now it is ["1"]'),
    ],
)
def test_a_changed_recipe_is_refused(change, message, finished, recipe, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert cli.main([*command(recipe, finished), *change]) == 2
    said = capsys.readouterr().err
    assert message in said and "nothing was changed" in said
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_more_may_join(finished, recipe, tmp_path):
    """Another sparsity and another seed: what was there stays as it is."""
    out = tmp_path / "more"
    subprocess.run(["cp", "-r", str(finished), str(out)], check=True)
    more = ["--sparsities", "0.8,0.7", "--methods", "oneshot", "--no-speed", "--set", "seed=4"]
    assert cli.main([*command(recipe, out), *more]) == 0
    old, new = Store(finished).records(), Store(out).records()
    assert old.items() <= new.items()
    assert [(r["method"], r["sparsity"], r["seed"]) for r in list(new.values())[5:]] == [
        ("dense", None, 4),
        ("oneshot", 0.8, 4),
        ("oneshot", 0.7, 4),
    ]


def test_another_folder_is_left_alone(recipe, tmp_path, capsys):
    (tmp_path / "recipe.toml").write_text("seed = 1")
    assert cli.main(command(recipe, tmp_path)) == 2
    assert "holds files of something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["recipe.toml"]
