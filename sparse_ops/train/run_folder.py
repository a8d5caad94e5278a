"""The files of a run: every one is written beside and renamed, and a new run moves the old one aside."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

RECIPE, METRICS, CHECKPOINT = "recipe.toml", "metrics.jsonl", "checkpoint.pt"
SUMMARY, FIGURES, REPORT, MODEL, DENSE = (
    "summary.json",
    "figures.json",
    "report.html",
    "model.safetensors",
    "dense.safetensors",
)
ANALYSIS = ("analysis", "analysis.html", "analysis.json")
PREVIOUS = "previous"
_FILES = (RECIPE, METRICS, CHECKPOINT, SUMMARY, FIGURES, REPORT, MODEL, DENSE, "stages", *ANALYSIS)


class FinishedRun(Exception):
    """There is nothing to resume: the run in the folder is finished."""


class RunFolder:
    """runs/<name>: recipe.toml, metrics.jsonl, checkpoint.pt, stages/, summary.json, model files and the report."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def begin(self, recipe_toml: str, *, resume: bool, trial: bool = False) -> str | None:
        """Make the folder ready: an old run is moved aside, or (resume) must be of the same recipe and unfinished.

        Returns a sentence that says where the old run went, None where there was none. FinishedRun where there is
        nothing to resume; ValueError where a trial (--max-epochs) would move a finished run aside.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--run {self.path} is a file, expected a folder")
        recipe, finished = self / RECIPE, (self / SUMMARY).exists()
        if resume and finished:
            self.read_json(SUMMARY)  # a damaged one is no finished run
            raise FinishedRun(
                f"the run in {self.path} is finished, there is nothing to resume and nothing was changed; "
                f"sparse-ops report {self.path} makes its report again, --run DIR trains in another folder"
            )
        if trial and finished:
            raise ValueError(
                f"{self.path} holds a finished run; give a trial with --max-epochs another folder: --run DIR"
            )
        if resume:
            if not recipe.is_file():
                raise ValueError(f"{self.path} holds no run to resume")
            if (difference := _first_difference(recipe.read_text(), recipe_toml)) is not None:
                raise ValueError(f"{self.path} was begun with {difference[0]}, the recipe now says {difference[1]}")
            return None
        moved = self._move_aside() if any((self / name).exists() for name in _FILES) else None
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(recipe, recipe_toml)
        return moved

    def _move_aside(self) -> str:
        """Into the first of previous/, previous-2/, ... that holds no finished run: those are never replaced."""
        old, number = self / PREVIOUS, 1
        while (old / SUMMARY).exists():
            number += 1
            old = self / f"{PREVIOUS}-{number}"
        finished = "finished" if (self / SUMMARY).exists() else "unfinished"
        if old.exists():
            for file in sorted(old.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
        old.mkdir(exist_ok=True)
        for name in _FILES:
            if (self / name).exists():
                os.replace(self / name, old / name)
        _name_model_file(old)
        return f"the {finished} run that was in {self.path} is now in {old}"

    def stage(self, name: str) -> Path:
        """Where the outcome of a finished stage lies."""
        return self.path / "stages" / f"{name}.pt"

    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl, to be put in a checkpoint."""
        path = self / METRICS
        return path.stat().st_size if path.exists() else 0

    def truncate_metrics(self, size: int) -> None:
        """Drop the lines that were written after a checkpoint, and the torn end of a file that is shorter than then."""
        if (self / METRICS).exists():
            kept = (self / METRICS).read_bytes()[:size]
            os.truncate(self / METRICS, kept.rfind(b"\n") + 1)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with (self / METRICS).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Every record of metrics.jsonl; ValueError naming the line that is damaged."""
        path = self / METRICS
        if not path.exists():
            return
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError
            except ValueError:
                raise ValueError(
                    f"{path}, line {number} is damaged: that epoch is lost to the curves; delete line {number}, and "
                    f"sparse-ops report {self.path} draws the others"
                ) from None
            yield record

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; ValueError where it is missing or damaged."""
        try:
            record = json.loads((self / name).read_text())
            if not isinstance(record, dict):
                raise ValueError("expected an object")
            return record
        except OSError:
            raise ValueError(f"{self / name} is missing: {self.path} holds no finished run") from None
        except ValueError as error:  # no JSON, or no text
            raise ValueError(f"{self / name} is damaged ({error}); {self._remedy()}") from None

    def _remedy(self) -> str:
        """How summary and figures are made again: they follow from the outcomes of the stages."""
        return f"delete {self / SUMMARY}, and the command that trained the run makes it again with --resume"

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a JSON file of the run."""
        write_text(self / name, json.dumps(record, indent=2) + "\n")


def _name_model_file(folder: Path) -> None:
    """Let the summary of a run that was moved say where its model file lies now."""
    try:
        summary = json.loads((folder / SUMMARY).read_text())
    except (OSError, ValueError):  # an unfinished run, or a damaged file that stays as it is
        return
    if isinstance(summary, dict) and "model_file" in summary:
        write_text(folder / SUMMARY, json.dumps(summary | {"model_file": str(folder / MODEL)}, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside and rename."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text)
    os.replace(partial, path)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """torch.save beside, flushed to disk, then renamed: a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any]:
    """What save_state wrote, tensors and plain containers only; ValueError where the file is damaged or foreign."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # what an unpickler says of foreign bytes may be anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged or no checkpoint ({reason})") from None


def _first_difference(old: str, new: str) -> tuple[str, str] | None:
    a, b = old.splitlines(), new.splitlines()
    for x, y in zip(a, b, strict=False):
        if x != y:
            return x, y
    if len(a) != len(b):
        longer = a if len(a) > len(b) else b
        extra = longer[min(len(a), len(b))]
        return (extra, "nothing of it") if longer is a else ("another recipe", extra)
    return None
