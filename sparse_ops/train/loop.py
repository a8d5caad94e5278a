"""The training loop: the contract of sparse_ops.methods, with evaluation, records, checkpoints and bit-exact resume."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_ops.train import figures, run_folder
from sparse_ops.train.augment import Normalized
from sparse_ops.train.progress import Progress, Record
from sparse_ops.train.recipe import Recipe
from sparse_ops.train.recorder import Answers, Recorder
from sparse_ops.train.run_folder import RunFolder
from sparse_ops.train.schedule import LearningRate
from sparse_ops.train.selection import Selection

FINETUNE = "finetune"  # the phase in which the mask is fixed


class Method(Protocol):
    """What the loop needs of a sparsifier (sparse_ops.methods) or of plain dense training."""

    @property
    def finished(self) -> bool: ...
    @property
    def phase(self) -> str: ...
    def end_epoch(self, evaluate: Callable[[nn.Module], float], *, train_accuracy: float) -> Any: ...
    def metrics(self) -> dict[str, Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stopped(Exception):
    """The limit of epochs was reached, or the user interrupted; the run can be resumed."""


class Diverged(ValueError):
    """The loss or a weight is no longer a finite number."""


@dataclass
class Budget:
    """How many epochs this process may still train (--max-epochs); None is as many as the method wants."""

    epochs: int | None = None

    def spend(self) -> None:
        """Count one epoch about to begin."""
        if self.epochs is not None:
            if self.epochs <= 0:
                raise Stopped("the limit of epochs is reached")
            self.epochs -= 1


@dataclass
class Trainer:
    """One network on its way through a method; `stage` names it in records and checkpoints."""

    stage: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    method: Method
    train: Normalized
    test: Normalized
    recipe: Recipe
    folder: RunFolder
    progress: Progress
    seed: int = 0
    epoch: int = 0
    seconds: float = 0.0
    kept: dict[str, Any] | None = None  # magnitudes of the last epoch in which no weight was masked
    validation: Normalized | None = None
    selection: Selection = field(default_factory=Selection)
    learning_rate: LearningRate | None = None  # None: the method sets it
    recorder: Recorder | None = None

    def run(self, budget: Budget) -> None:
        """Train until the method is finished, with a checkpoint after every epoch."""
        while not self.method.finished:
            budget.spend()
            begin = time.perf_counter()
            try:
                record = self._epoch()
            except ValueError as error:  # a method may find it before the loss shows it
                if isinstance(error, Diverged) or not self._lost():
                    raise
                raise Diverged(f"{error}; a lower optimizer.lr may help") from error
            self.epoch += 1
            self.seconds += time.perf_counter() - begin
            self.folder.append_metrics(record)
            self._save()
            self.progress.epoch(record)

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.method.load_state_dict(state["method"])  # first: it may make layers sparse that were so
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_rng"])
        self.epoch, self.seconds, self.kept = state["epoch"], state["seconds"], state["kept"]
        self.selection.best = state["best"]
        self.folder.truncate_metrics(state["metrics_size"])

    def accuracy(self, batches: Normalized) -> float:
        """Share of right answers of the network as it is, without augmentation."""
        return self.answers(batches).accuracy

    def answers(self, batches: Normalized) -> Answers:
        """Right answers by class of the network as it is, without augmentation."""
        return answers(self.model, batches.plain(), self.recipe.training.precision)

    def _lost(self) -> bool:
        """Whether a weight or its gradient is no finite number."""
        tensors = [t for p in self.model.parameters() for t in (p.detach(), p.grad) if t is not None]
        return not all(bool(t.isfinite().all()) for t in tensors)

    def _save(self) -> None:
        state = {
            "stage": self.stage,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "kept": self.kept,
            "best": self.selection.best,
            "metrics_size": self.folder.metrics_size(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.train.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        run_folder.save_state(self.folder / run_folder.CHECKPOINT, state)

    def _epoch(self) -> Record:
        clock = Clock()
        loss, correct, seen = self._train_epoch(clock)
        trained = clock.total()
        phase, lr = self.method.phase, self.optimizer.param_groups[0]["lr"]
        metrics = self.method.metrics()  # of the epoch that ends here, as is the test accuracy: end_epoch may prune
        if phase != FINETUNE and not metrics.get("sparsity"):
            self.kept = figures.magnitudes(self.model, figures.share(self.model, self.recipe.method))
        looks = (self.epoch + 1) % self.recipe.training.test_every == 0
        answers = self.answers(self.test) if looks else None
        test_accuracy = None if answers is None else answers.accuracy
        if self.recorder is not None:
            self.recorder.write(self.epoch + 1, phase, self.model, answers)
        validation_accuracy = None if self.validation is None else self.accuracy(self.validation)
        score = {"validation": validation_accuracy, "test": test_accuracy}.get(self.selection.rule)
        self.selection.offer(score, self.epoch + 1, self.model, self.method)
        pruned: list[float] = []

        def evaluate(model: nn.Module) -> float:
            pruned.append(accuracy(model, self.train.epoch(self.seed, self.epoch), self.recipe.training.precision))
            return pruned[-1]

        change = self.method.end_epoch(evaluate, train_accuracy=correct / seen)
        return {
            "stage": self.stage,
            "epoch": self.epoch + 1,
            "phase": phase,
            "phase_ends": change is not None,
            "why": None if change is None else change.reason,
            "finished": self.method.finished,
            "lr": float(lr),
            "loss": loss / seen,
            "train_accuracy": correct / seen,
            "test_accuracy": test_accuracy,
            "validation_accuracy": validation_accuracy,
            "pruned_accuracy": pruned[-1] if pruned else None,
            "images_per_second": seen / trained,
            "seconds": clock.total(),
            **{f"seconds_{name}": value for name, value in clock.spent.items()},
            **{key: float(value) for key, value in metrics.items() if _is_number(value)},
        }

    def _train_epoch(self, clock: "Clock") -> tuple[float, int, int]:
        self.model.train()
        batches = clock.timed("loading", self.train.epoch(self.seed, self.epoch))
        loss_sum, correct = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        loss_sum, correct, seen = loss_sum.to(self.train.device), correct.to(self.train.device), 0
        shown = time.monotonic()
        for i, (x, y) in enumerate(batches):
            with autocast(x.device, self.recipe.training.precision):
                output = self.model(x)
                loss = F.cross_entropy(output, y, label_smoothing=self.recipe.loss.label_smoothing)
            loss.backward()
            if self.learning_rate is not None:
                self.learning_rate.set(self.optimizer, self.epoch * len(self.train) + i)
            with clock.part("optimizer"):
                self.optimizer.step()
                self.optimizer.zero_grad()
            loss_sum += loss.detach() * len(y)
            correct += (output.detach().argmax(1) == y).sum()
            seen += len(y)
            if time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                self.progress.batch(i + 1, seen / clock.total(), float(loss_sum) / seen)
        total = float(loss_sum)
        if not math.isfinite(total):
            where = f"{self.stage}, epoch {self.epoch + 1}"
            raise Diverged(f"{where}: the training loss is {total}; a lower optimizer.lr may help")
        return total, int(correct), seen


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bfloat16 autocast, or nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@torch.inference_mode()
def outputs(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], precision: str) -> tuple[Tensor, Tensor]:
    """All outputs (float32) and labels, in eval mode; the model's own mode is put back."""
    training = model.training
    model.eval()
    ys, labels = [], []
    for x, y in batches:
        with autocast(x.device, precision):
            ys.append(model(x).float())
        labels.append(y)
    model.train(training)
    return torch.cat(ys), torch.cat(labels)


def accuracy(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], precision: str) -> float:
    """Share of right answers in eval mode."""
    return answers(model, batches, precision).accuracy


def answers(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], precision: str) -> Answers:
    """Right answers by class in eval mode."""
    y, labels = outputs(model, batches, precision)
    of_class = labels.bincount(minlength=y.shape[1])
    right = labels[y.argmax(1) == labels].bincount(minlength=y.shape[1])
    return Answers(right.tolist(), of_class.tolist())


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


class Clock:
    """Wall time since it was made, and the shares of named parts (on CUDA the host's part alone)."""

    def __init__(self) -> None:
        self.begin, self.spent = time.perf_counter(), {"loading": 0.0, "optimizer": 0.0}

    def total(self) -> float:
        return time.perf_counter() - self.begin

    def part(self, name: str) -> "_Part":
        return _Part(self.spent, name)

    def timed(self, name: str, items: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The items, with the time that it takes to make them added to `name`."""
        while True:
            begin = time.perf_counter()
            item = next(items, None)
            self.spent[name] += time.perf_counter() - begin
            if item is None:
                return
            yield item


class _Part:
    def __init__(self, spent: dict[str, float], name: str) -> None:
        self.spent, self.name = spent, name

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.spent[self.name] += time.perf_counter() - self.begin
