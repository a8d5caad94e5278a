"""The runs of a comparison, trained by one process or by several, and then timed one after the other."""

import contextlib
import dataclasses
import datetime
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from sparse_ops.planning import sparsity_report
from sparse_ops.prunable import select
from sparse_ops.train import compare_speed, deploy, flops, info, run_folder
from sparse_ops.train.compare import DENSE, Comparison, Run
from sparse_ops.train.compare_store import Record, Store
from sparse_ops.train.data import DataSet
from sparse_ops.train.job import Job, Options
from sparse_ops.train.progress import Plain
from sparse_ops.train.run_folder import RunFolder

LOG = "log.txt"
WARNING = "warning: "  # begins a line of the log
POLL_SECONDS = 0.5
SPEED = (  # what a record takes of deploy's findings
    "dense_ms",
    "sparse_ms",
    "dense_bytes",
    "sparse_bytes",
    "sparse_network_accuracy",
    "max_abs_difference_sparse_vs_masked",
    "max_abs_output",
    "timing",
    "machine",
    "omp_wait_policy",
)


@dataclass(frozen=True)
class Settings:
    """What the command line says about how runs are made."""

    data_dir: Path
    device: str = "cpu"
    threads: int = 0
    jobs: int = 1


class Log(Plain):
    """A line for each epoch, into a file of the run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def say(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text + "\n")


def train(comparison: Comparison, store: Store, settings: Settings, data: DataSet) -> None:
    """Train every run that has no record of being finished; those that have failed before are tried again.

    With settings.jobs > 1 that many processes take the runs from one list, each the first that nobody has taken.
    """
    before = {key: record["time"] for key, record in store.records().items() if record["status"] == "failed"}
    settled = len(comparison.runs) - len(_open(comparison, store, before))
    print(f"{len(comparison.runs)} runs of {comparison.epochs} epochs, {settled} of them finished before", flush=True)
    if settings.jobs == 1:
        threads = torch.get_num_threads()
        try:
            _work(comparison, store, settings, data, before)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")  # a forked process cannot use OpenMP's threads or CUDA
    one = dataclasses.replace(settings, threads=settings.threads or 1)
    workers = [
        context.Process(target=_worker, args=(comparison, store.path, one, before), daemon=True)
        for _ in range(min(settings.jobs, max(1, len(comparison.runs) - settled)))
    ]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
                worker.join()
    codes = [worker.exitcode for worker in workers if worker.exitcode]
    if codes and (left := _open(comparison, store, before)):
        ends = ", ".join(f"signal {-c}" if c < 0 else f"exit code {c}" for c in codes)
        raise ValueError(
            f"{len(codes)} of {len(workers)} training processes ended too early ({ends}); {len(left)} runs are left, "
            "the same command goes on"
        )


def _worker(comparison: Comparison, path: Path, settings: Settings, before: dict[str, str]) -> None:
    """A process of its own; it ends with the process that has started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
    data = Job(comparison.base, Options(path, settings.data_dir, settings.device), Plain()).load()
    _work(comparison, Store(path), settings, data, before)


def _open(comparison: Comparison, store: Store, before: dict[str, str]) -> list[Run]:
    """The runs without a record, and those whose record is a failure from before this call."""
    records = store.records()

    def is_open(run: Run) -> bool:
        record = records.get(run.key)
        return record is None or (record["status"] == "failed" and before.get(run.key) == record["time"])

    return [run for run in comparison.runs if is_open(run)]


def _work(comparison: Comparison, store: Store, settings: Settings, data: DataSet, before: dict[str, str]) -> None:
    """Take one run after the other until all have a record; wait for those that other processes train."""
    spent: list[float] = []
    while left := _open(comparison, store, before):
        for run in left:
            with store.claim(run) as mine:
                if not mine or run not in _open(comparison, store, before):
                    continue
                begin = time.monotonic()
                with store.training():
                    record = _train(run, store, settings, data)
                store.append(record)
                spent.append(time.monotonic() - begin)
                rest = len(_open(comparison, store, before))
                _tell(run, record, len(comparison.runs), rest, rest * sum(spent) / len(spent) / settings.jobs)
                break
        else:
            time.sleep(POLL_SECONDS)


def _tell(run: Run, record: Record, runs: int, rest: int, seconds: float) -> None:
    done = f"[{runs - rest}/{runs}]"
    after = f"; about {_duration(seconds)} left" if rest else ""
    if record["status"] == "failed":
        print(f"{done} {run.title}: FAILED: {record['error']}{after}", flush=True)
    else:
        accuracy = f"{100 * record['accuracy']:.2f} %"
        print(f"{done} {run.title}: {accuracy} in {_duration(record['seconds'])}{after}", flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _job(run: Run, store: Store, settings: Settings) -> Job:
    """The run as a job in its folder; it goes on where it was begun."""
    path = store.folder(run)
    resume = (path / run_folder.RECIPE).is_file()
    options = Options(path, settings.data_dir, settings.device, threads=settings.threads, resume=resume)
    return Job(run.recipe, options, Log(path / LOG))


def _train(run: Run, store: Store, settings: Settings, data: DataSet) -> Record:
    """The record of a run, trained now, or failed with a sentence."""
    folder = RunFolder(store.folder(run))
    record = {
        "key": run.key,
        "method": run.method,
        "sparsity": run.sparsity,
        "seed": run.seed,
        "epochs": run.epochs,
        "folder": run.folder,
    }
    with _warnings(folder / LOG) as said:
        try:
            found = _outcome(run, _job(run, store, settings), data)
        except Exception as error:  # whatever it is, the other runs go on
            sentence = " ".join(str(error).split()) or type(error).__name__
            found = {"status": "failed", "error": sentence, "kind": type(error).__name__}
            with (folder / LOG).open("a") as log:
                traceback.print_exc(file=log)
    unused = ("compare", "method") if run.method == DENSE else ("compare",)
    recipe = {key: value for key, value in run.recipe.to_dict().items() if key not in unused}
    return record | found | _circumstances(settings) | {"warnings": said, "recipe": recipe}


def _outcome(run: Run, job: Job, data: DataSet) -> Record:
    if run.method == DENSE:
        lr = "method" if run.recipe.schedule.kind == "method" else "user"
        outcome = job.train_alone(data, None, {"epochs": run.epochs, "lr": lr}, run.text)
    else:
        outcome = job.train_alone(data, run.method, job.arguments, run.text)
    method = run.recipe.method
    selection = select(outcome.model, method.get("prunable"), method.get("exclude"))
    measured = sparsity_report(outcome.model, selection)
    live, all_flops = flops.left(outcome.model, data.shape)
    return {
        "status": "finished",
        "accuracy": outcome.test_accuracy,
        "accuracy_last_epoch": outcome.last_accuracy,
        "accuracy_validation": outcome.validation_accuracy,
        "select": run.recipe.training.select,
        "selected_epoch": outcome.selected_epoch,
        "epochs_trained": outcome.epochs,
        "zeros": measured.zeros,
        "prunable": measured.weights,
        "sparsity_measured": measured.sparsity,
        "dead_layers": [name for name, weight in selection.parameters.items() if not weight.any()],
        "flops": live,
        "flops_dense": all_flops,
        "flops_left": live / all_flops,
        "seconds": outcome.seconds,
        "fit": outcome.fit,
    }


def _circumstances(settings: Settings) -> Record:
    facts = info.facts()
    versions = {name: facts[name] for name in ("sparse_ops", "python", "torch", "numpy")}
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(),
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "machine": f"{facts['processor']}, {os.cpu_count()} logical cores",
        "versions": versions,
        "commit": info.commit(),
    }


@contextlib.contextmanager
def _warnings(log: Path) -> Iterator[list[str]]:
    """What a run warns of goes into its log at once, and into its record, also what it said before it was killed."""
    said = [line.removeprefix(WARNING) for line in _lines(log) if line.startswith(WARNING)]

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in said:
            said.append(text)
            with log.open("a") as file:
                file.write(f"{WARNING}{text}\n")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield said


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def measure(comparison: Comparison, store: Store, settings: Settings, data: DataSet) -> list[str]:
    """Convert every finished run's network and time it against the dense one, one by one, while nothing trains.

    Returns a sentence for each that could not be timed; the next call tries it again.
    """
    failed: list[str] = []
    records = store.records()
    finished = {run.key for run in comparison.runs if records.get(run.key, {}).get("status") == "finished"}
    dense = {run.seed: run for run in comparison.runs if run.method == DENSE}
    left = [
        run
        for run in comparison.runs
        if run.method != DENSE and run.key in finished and "speed" not in records[run.key]
    ]
    speeds: dict[str, Record] = {}

    def time_one(run: Run) -> None:
        rival = _job(dense[run.seed], store, settings) if dense[run.seed].key in finished else None
        with store.alone(), _warnings(store.folder(run) / LOG):
            speeds[run.key] = _speed(_job(run, store, settings), rival, data, run.method)
        store.replace(store.records()[run.key] | {"speed": speeds[run.key]})

    for number, run in enumerate(left, 1):
        try:
            time_one(run)
        except Exception as error:  # the others are timed nevertheless
            failed.append(f"{run.title}: not timed: {' '.join(str(error).split()) or type(error).__name__}")
            print(failed[-1], flush=True)
            continue
        found = speeds[run.key]
        ms = f"dense {found['dense_ms']:.3g} ms, sparse {found['sparse_ms']:.3g} ms"
        print(f"timed {number}/{len(left)}: {run.title}: {ms}", flush=True)
    for run in left:
        if run.key in compare_speed.disagreeing(speeds):
            print(f"timed again, since the dense network's time disagrees with the others: {run.title}", flush=True)
            with contextlib.suppress(Exception):  # the first finding stays, and is marked
                time_one(run)
    records = store.records()
    for key, speed in compare_speed.settled(speeds).items():
        store.replace(records[key] | {"speed": speed})
    return failed


def _speed(job: Job, rival: Job | None, data: DataSet, method: str) -> Record:
    """Of a trained network against the dense one of its seed, or an untrained one where that has failed."""
    dense = job.untrained(data) if rival is None else rival.trained(data, DENSE)
    with (job.folder / LOG).open("a") as log, contextlib.redirect_stdout(log):
        summary = deploy.deploy(job.trained(data, method), dense, data, job.folder, job.progress)
    speed = {key: summary[key] for key in SPEED} | {"threads": summary["threads"]["networks"]}
    speed["layers"], speed["sparse_layers"] = len(summary["layers"]), sum(x["sparse"] for x in summary["layers"])
    return speed | {"speedup": summary["dense_ms"] / summary["sparse_ms"]}


def failures(comparison: Comparison, store: Store) -> list[tuple[str, str]]:
    """(title, sentence) of the runs that have failed."""
    records = store.records()
    found = [(run.title, records.get(run.key)) for run in comparison.runs]
    return [(title, record["error"]) for title, record in found if record and record["status"] == "failed"]
