"""The files of a run: nothing is lost, nothing half-written is read."""

from pathlib import Path

import pytest
import torch

from sparse_ops.train import run_folder
from sparse_ops.train.run_folder import FinishedRun, RunFolder, load_state, save_state


def test_a_new_run_moves_the_old_one_aside(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.begin("seed = 0\n", resume=False) is None
    folder.append_metrics({"epoch": 0})
    save_state(folder.stage("fold0-art"), {"epochs": 3})
    moved = folder.begin("seed = 1\n", resume=False)
    assert moved == f"the unfinished run that was in {folder.path} is now in {folder / run_folder.PREVIOUS}"
    assert not (folder / run_folder.METRICS).exists() and not folder.stage("fold0-art").exists()
    old = RunFolder(folder / run_folder.PREVIOUS)
    assert list(old.metrics()) == [{"epoch": 0}] and load_state(old.stage("fold0-art")) == {"epochs": 3}
    folder.begin("seed = 2\n", resume=False)
    assert (old / run_folder.RECIPE).read_text() == "seed = 1\n"
    assert not (old / run_folder.METRICS).exists()


def test_finished_runs_are_never_replaced(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for seed in range(7):
        moved = folder.begin(f"seed = {seed}\n", resume=False)
        if seed in (1, 5):
            folder.write_json(run_folder.SUMMARY, {"seed": seed})
        if seed in (2, 6):
            assert moved is not None and moved.startswith("the finished run")
    kept = {p.name: (p / run_folder.RECIPE).read_text()[7] for p in folder.path.glob("previous*")}
    assert kept == {"previous": "1", "previous-2": "5"}  # 0 gave way to 1; 2, 3 and 4 to 5
    assert [RunFolder(folder / n).read_json(run_folder.SUMMARY)["seed"] for n in sorted(kept)] == [1, 5]
    assert not (folder / run_folder.SUMMARY).exists()


def test_a_run_that_was_moved_in_part_is_not_mixed_with_the_next(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin("seed = 0\n", resume=False)
    folder.write_json(run_folder.SUMMARY, {"seed": 0})
    (folder / run_folder.RECIPE).unlink()
    folder.begin("seed = 1\n", resume=False)
    assert RunFolder(folder / run_folder.PREVIOUS).read_json(run_folder.SUMMARY) == {"seed": 0}
    assert not (folder / run_folder.SUMMARY).exists()


def contents(path):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("text", ["seed = 0\n", "seed = 1\n"])
def test_a_finished_run_is_neither_resumed_nor_moved_by_a_trial(tmp_path, text):
    folder = RunFolder(tmp_path / "run")
    folder.begin("seed = 0\n", resume=False, trial=True)
    folder.append_metrics({"epoch": 1})
    folder.write_json(run_folder.SUMMARY, {"seed": 0})
    before = contents(tmp_path)
    with pytest.raises(FinishedRun, match=r"the run in .*run is finished, there is nothing to resume"):
        folder.begin(text, resume=True)
    with pytest.raises(ValueError, match=r"run holds a finished run; .* --max-epochs another folder: --run DIR"):
        folder.begin(text, resume=False, trial=True)
    assert contents(tmp_path) == before


def test_the_summary_of_a_run_that_was_moved_names_its_model_file(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for seed in range(3):
        folder.begin(f"seed = {seed}\n", resume=False)
        (folder / run_folder.MODEL).write_text(f"model {seed}")
        folder.write_json(run_folder.SUMMARY, {"seed": seed, "model_file": str(folder / run_folder.MODEL)})
    for path, seed in ((folder.path / "previous", 0), (folder.path / "previous-2", 1), (folder.path, 2)):
        summary = RunFolder(path).read_json(run_folder.SUMMARY)
        assert summary["seed"] == seed and Path(summary["model_file"]).read_text() == f"model {seed}"


def test_a_damaged_summary_is_moved_as_it_is(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin("seed = 0\n", resume=False)
    (folder / run_folder.SUMMARY).write_text('{"model_file": ')
    folder.begin("seed = 1\n", resume=False)
    assert (folder / "previous" / run_folder.SUMMARY).read_text() == '{"model_file": '


def test_a_file_is_no_folder_of_a_run(tmp_path):
    (tmp_path / "README.md").write_text("text")
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"--run .*README.md is a file, expected a folder"):
            RunFolder(tmp_path / "README.md").begin("seed = 0\n", resume=resume)
    assert (tmp_path / "README.md").read_text() == "text"


def test_resume_needs_the_same_recipe(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ValueError, match="holds no run to resume"):
        folder.begin("seed = 0\n", resume=True)
    folder.begin("seed = 0\n", resume=False)
    folder.begin("seed = 0\n", resume=True)
    with pytest.raises(ValueError, match="was begun with seed = 0, the recipe now says seed = 1"):
        folder.begin("seed = 1\n", resume=True)


def test_metrics_written_after_a_checkpoint_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"epoch": 0})
    size = folder.metrics_size()
    folder.append_metrics({"epoch": 1})
    folder.truncate_metrics(size)
    assert list(folder.metrics()) == [{"epoch": 0}]


def test_a_damaged_line_of_metrics_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    for epoch in range(3):
        folder.append_metrics({"epoch": epoch})
    whole = (folder / run_folder.METRICS).read_bytes()
    for damaged, line in ((whole[:-4], 3), (b"\xff\n" + whole, 1), (whole.replace(b'{"epoch": 1}', b"3"), 2)):
        (folder / run_folder.METRICS).write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"metrics.jsonl, line {line} is damaged: .* delete line {line}, and"):
            list(folder.metrics())
    (folder / run_folder.METRICS).write_bytes(whole[:-4])
    folder.truncate_metrics(len(whole))  # a checkpoint that knows more than is there
    folder.append_metrics({"epoch": 3})
    assert [record["epoch"] for record in folder.metrics()] == [0, 1, 3]


@pytest.mark.parametrize("text", ['{"seed": ', "", "[]"])
def test_a_damaged_summary_is_no_finished_run(tmp_path, text):
    folder = RunFolder(tmp_path)
    folder.begin("seed = 0\n", resume=False)
    (folder / run_folder.SUMMARY).write_text(text)
    told = r"summary.json is damaged \(.*\); delete .*summary.json, and the command that .* with --resume"
    with pytest.raises(ValueError, match=told):
        folder.begin("seed = 0\n", resume=True)
    with pytest.raises(ValueError, match=told):
        folder.read_json(run_folder.SUMMARY)
    (folder / run_folder.SUMMARY).unlink()
    assert folder.begin("seed = 0\n", resume=True) is None


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_state(path, {"weights": torch.arange(5)})
    with pytest.raises(Exception, match="pickle"):
        save_state(path, {"weights": lambda: None})
    assert torch.equal(load_state(path)["weights"], torch.arange(5))


@pytest.mark.parametrize("damage", [lambda raw: raw[:-100], lambda raw: b"", lambda raw: b"no checkpoint at all"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    save_state(path, {"weights": torch.randn(1000)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged or no checkpoint"):
        load_state(path)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('executed')",))

    torch.save({"weights": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged or no checkpoint"):
        load_state(tmp_path / "checkpoint.pt")
