"""The command sparse-ops: help with examples, one sentence on errors, exit codes, and a small run from end to end."""

import json
import subprocess
import sys

import pytest

from sparse_ops import cli
from sparse_ops.train import deploy
from sparse_ops.train.progress import LEGEND, Plain

pytestmark = pytest.mark.filterwarnings("ignore:.*lose all their inputs:UserWarning")
COMMANDS = ["train", "report", "export", "verify", "info"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([command, "--help"])
    assert done.value.code == 0
    assert f"example: sparse-ops {command}" in " ".join(capsys.readouterr().out.split())


def test_info(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "instruction set", "apply_masks", "csr_spmm"):
        assert word in out


RECIPE = """
[data]
name = "digits"
[network]
name = "mlp"
width = 32
[method]
name = "art"
sparsity = 0.9
pretrain_epochs = 1
max_regularize_epochs = 1
finetune_epochs = 1
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe of seconds; the times are not tested."""
    monkeypatch.setattr(deploy, "ROUNDS", 3)
    monkeypatch.setattr(deploy, "SAMPLE_SECONDS", 1e-4)
    monkeypatch.setattr(deploy, "THREADS", 1)
    path = tmp_path / "own.toml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "nowhere.toml"], "nowhere.toml cannot be read: No such file"),
        (["train", "RECIPE", "--set", "data.nam=x"], "unknown key 'data.nam'; did you mean 'data.name'?"),
        (["train", "RECIPE", "--set", "data.name=cifar10", "--data-dir", "nowhere"], "is missing; put"),
        (["train", "RECIPE", "--set", "method.sparsity=1.5"], "method.sparsity is 1.5"),
        (["train", "RECIPE", "--set", "method.eta=-1"], "method.eta is -1.0, expected a finite number > 0"),
        (["train", "RECIPE", "--set", "method.eta=fast"], "--set: method.eta is 'fast', expected a number"),
        (["train", "RECIPE", "--set", "data.batch_size=100000"], "data.batch_size is 100000, but there are 1,437"),
        (["train", "RECIPE", "--folds", "9"], "--folds is 9, expected 1 to 5"),
        (["train", "RECIPE", "--resume"], "holds no run to resume"),
        (["report", "nowhere"], "holds no finished run"),
        (["export", "nowhere", "--out", "x.pt2"], "nowhere holds no model.safetensors"),
        (["verify", "nowhere.safetensors"], "nowhere.safetensors: No such file"),
        (["verify", "."], ".: Is a directory"),
        (["train", "RECIPE", "--run", "RECIPE"], "is a file, expected a folder"),
        (["train", "RECIPE", "--set", "method.sparsity=98"], "98, expected 0 <= sparsity < 1 (a percentage? divide"),
        (["train", "RECIPE", "--set", "method.name=foo"], "no method 'foo' (known: art, "),
        (["train", "RECIPE", "--set", "method.name=3"], "--set: method.name is 3"),
        (["train", "RECIPE", "--set", "network.name=resnet9"], "--set: network.name is 'resnet9'; did you mean"),
        (["train", "RECIPE", "--set", "optimizer.lr=-1"], "--set: optimizer.lr is -1.0, expected 0 or more"),
        (["train", "RECIPE", "--set", "optimizer.lr=nan"], "--set: optimizer.lr is nan"),
    ],
)
def test_errors_are_one_sentence(arguments, message, recipe, capsys, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    assert cli.main([str(recipe) if a == "RECIPE" else a for a in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("sparse-ops: ")
    assert len(captured.err.splitlines()) == 1 and "Traceback" not in captured.err


def test_wrong_usage_is_exit_code_2():
    threads, seed = ["train", "x", "--threads", "0"], ["train", "x", "--seed", "-1"]
    for arguments in ([], ["train"], threads, seed, ["train", "x", "--seed", "x"], ["no-such-command"]):
        with pytest.raises(SystemExit) as done:
            cli.main(arguments)
        assert done.value.code == 2


def test_a_run_from_end_to_end(recipe, tmp_path, capsys):
    """Stop, resume, report, verify."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    run = tmp_path / "run"
    train = ["train", str(recipe), "--run", str(run)]
    assert cli.main([*train, "--max-epochs", "2"]) == 0
    before = capsys.readouterr().out.splitlines()
    assert "--resume" in before[-1]
    assert cli.main([*train, "--resume"]) == 0
    out = capsys.readouterr().out
    assert "one-shot magnitude" in out and "ART + HyperSparse left" in out
    assert "art: regularize ends after epoch 2: its 1 epochs are over" in "".join(before)
    assert sum(text.count(LEGEND) for text in (*before, out)) == 1
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file()}
    assert cli.main([*train, "--resume"]) == 0
    assert f"the run in {run} is finished, there is nothing to resume" in capsys.readouterr().out
    assert cli.main([*train, "--max-epochs", "2"]) == 2
    assert "--run DIR" in capsys.readouterr().err
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file()} == before
    assert (run / "report.html").is_file() and (run / "summary.json").is_file()
    (run / "report.html").unlink()
    assert cli.main(["report", str(run)]) == 0 and (run / "report.html").is_file()
    figures, summary = run / "figures.json", (run / "summary.json").read_text()
    figures.write_text(figures.read_text()[:-9])
    (run / "summary.json").write_text(summary[:-9])
    for arguments in (["report", str(run)], [*train, "--resume"]):
        assert cli.main(arguments) == 2
        assert "summary.json is damaged" in (said := capsys.readouterr().err) and "--resume" in said
    (run / "summary.json").unlink()  # what the sentence says
    assert cli.main([*train, "--resume"]) == 0
    again = json.loads((run / "summary.json").read_text())
    for key in ("dense_accuracy", "sparse_accuracy", "oneshot_accuracy", "zeros", "epochs", "recipe"):
        assert again[key] == json.loads(summary)[key]
    model = run / "model.safetensors"
    capsys.readouterr()
    assert cli.main(["verify", str(model)]) == 0
    *rows, verdict = capsys.readouterr().out.splitlines()
    assert verdict == "OK: the hash is right, the tensors are those that were saved"
    head, *rows = rows[: rows.index("")]
    assert head.split() == ["tensor", "stored", "shape", "dtype", "zeros", "bytes"]
    ends = head.index("zeros") + 5, head.index("bytes") + 5
    assert len(rows) > 5 and all(
        row[end - 1].isdigit() and row[end : end + 1] in (" ", "") for row in rows for end in ends
    )
    model.write_bytes(model.read_bytes()[:-7])
    assert cli.main(["verify", str(model)]) == 2
    assert str(model) in capsys.readouterr().err


def test_ctrl_c_leaves_a_run_to_resume(recipe, tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    train = ["train", str(recipe), "--run", str(tmp_path / "run")]
    whole_epoch = Plain.epoch

    def interrupted(self, record):
        whole_epoch(self, record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Plain, "epoch", interrupted)
        assert cli.main(train) == 130
    assert "interrupted; the same command with --resume goes on" in capsys.readouterr().out
    assert cli.main([*train, "--resume"]) == 0


@pytest.mark.parametrize("method", ["art", "rigl"])
def test_a_training_that_diverges_is_exit_code_1(method, tmp_path, capsys):
    """Whether the loss shows it first (art: without a mask) or the method."""
    pytest.importorskip("sklearn")
    lengths = {"art": "pretrain_epochs = 1", "rigl": "total_epochs = 3\ndelta_t = 3"}[method]
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.partition("[method]")[0] + f'[method]\nname = "{method}"\nsparsity = 0.9\n{lengths}\n')
    assert cli.main(["train", str(path), "--run", str(tmp_path / "run"), "--set", "optimizer.lr=1e30"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("sparse-ops: ") and "; a lower optimizer.lr may help" in said
    assert ("non-finite values" in said) and len(said.splitlines()) == 1


def test_the_hint_to_resume_the_demo_names_make(recipe, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(recipe.parent)
    assert cli.main(["train", str(recipe), "--run", "runs/demo", "--max-epochs", "1"]) == 0
    assert "--resume (make demo ARGS=--resume) goes on" in capsys.readouterr().out
    assert cli.main(["train", str(recipe), "--run", "runs/demo", "--max-epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert "the unfinished run that was in runs/demo is now in runs/demo/previous" in out


def test_the_command_is_a_process_too():
    done = subprocess.run([sys.executable, "-m", "sparse_ops.cli", "train", "no.toml"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sparse-ops: no.toml cannot be read: No such file or directory\n"


@pytest.mark.parametrize("package", ["rich", "matplotlib"])
def test_works_without_optional_packages(package, recipe, tmp_path, capsys, monkeypatch):
    """Blocked imports stand for packages that are not installed; the run ends well and says what to install."""
    pytest.importorskip("sklearn")
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "sparse_ops.train.plots", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert cli.main(["train", str(recipe), "--run", str(tmp_path / "run"), "--set", "training.oneshot=false"]) == 0
    captured = capsys.readouterr()
    assert "pip install 'sparse_ops[train]'" in captured.out + captured.err
    assert (tmp_path / "run" / "summary.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file() == (package == "rich")
