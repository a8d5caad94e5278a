"""A recipe from beginning to end: train the method and its rivals, make the sparse network, prove it, time it."""

import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse_ops import methods
from sparse_ops.train import data as data_sets
from sparse_ops.train import deploy, figures, fit, method_table, networks, optimizers, run_folder, schedule
from sparse_ops.train.augment import Augmentation, Normalized, batches_of, steps_per_epoch
from sparse_ops.train.data import DataSet, Images
from sparse_ops.train.dense import DenseTraining
from sparse_ops.train.image_files import ImageFiles
from sparse_ops.train.loop import FINETUNE, Budget, Trainer
from sparse_ops.train.progress import Progress
from sparse_ops.train.recipe import Recipe
from sparse_ops.train.recorder import Recorder
from sparse_ops.train.run_folder import RunFolder
from sparse_ops.train.selection import Selection

FOLDS = 5
EVALUATION_BATCH = 500


@dataclass
class Options:
    """What the command line says about a run and a recipe does not."""

    run: Path
    data_dir: Path = Path("data")
    device: str = "cpu"
    folds: int = 1
    threads: int = 0
    max_epochs: int | None = None
    download: bool = False
    resume: bool = False


@dataclass
class Outcome:
    """A finished stage: the trained network, on the CPU and in contiguous memory, and what is known about it."""

    model: nn.Module
    epochs: int
    seconds: float
    test_accuracy: float
    kept: dict[str, Any] | None
    finetuned: int | None = None  # epochs with a fixed mask at the end; None: the method has no such phase
    selected_epoch: int = 0  # the epoch whose weights these are
    last_accuracy: float = 0.0  # on test images, after the last epoch
    validation_accuracy: float | None = None  # on held-out training images
    asked: dict[str, int] | None = None  # the zeros that the budget wants, see `figures.asked`
    fit: dict[str, Any] | None = None  # loss, entropy, accuracy on training and on other images, see `fit.measure`


class Job:
    """A recipe for one split of the data after another (folds); each is trained in stages: method, oneshot, dense."""

    def __init__(self, recipe: Recipe, options: Options, progress: Progress) -> None:
        self.recipe, self.options, self.progress = recipe, options, progress
        most = FOLDS if recipe.data.name == "digits" else 1
        if not 1 <= options.folds <= most:
            why = "" if most > 1 else f", since {recipe.data.name} has a fixed test set"
            raise ValueError(f"--folds is {options.folds}, expected 1{f' to {most}' if most > 1 else ''}{why}")
        self.arguments = method_table.arguments(recipe.method)
        try:
            self.device = torch.device(options.device)
        except RuntimeError:
            raise ValueError(f"--device {options.device}: expected cpu, cuda or cuda:N") from None
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {options.device}: this PyTorch finds no CUDA device")
        self.folder = RunFolder(options.run)
        self.budget = Budget(options.max_epochs)
        self.seconds_before = 0.0

    def run(self) -> dict[str, Any]:
        """Everything; returns what summary.json holds. Raises loop.Stopped where the limit of epochs ended it."""
        begin = time.perf_counter()
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        threads = {"training": torch.get_num_threads()}
        sets = [self.load(fold) for fold in range(self.options.folds)]  # a missing file is told before all else
        self.check(sets[0])
        trial = self.options.max_epochs is not None
        moved = self.folder.begin(self.recipe.to_toml(), resume=self.options.resume, trial=trial)
        if moved is not None:
            self.progress.say(moved)
        folds = [self._train(data, fold) for fold, data in enumerate(sets)]
        summary = self._accuracies(folds)
        first, dense = folds[0], self._dense(folds[0], sets[0])
        summary |= deploy.deploy(first["method"].model, dense, sets[0], self.folder, self.progress)
        summary["seconds_train"] = sum(outcome.seconds for fold in folds for outcome in fold.values())
        summary["seconds_total"] = time.perf_counter() - begin + self.seconds_before
        summary["threads"] = threads | summary["threads"]
        summary |= {"recipe": self.recipe.to_dict(), "device": str(self.device), "asked": first["method"].asked}
        histograms = {name: outcome.kept for name, outcome in first.items() if outcome.kept}
        density = figures.density(first["method"].model)
        self.folder.write_json(run_folder.FIGURES, {"magnitudes": histograms, "density": density})
        self.folder.write_json(run_folder.SUMMARY, summary)
        (self.folder / run_folder.CHECKPOINT).unlink(missing_ok=True)
        return summary

    def load(self, fold: int = 0) -> DataSet:
        """The recipe's data, split as this fold says."""
        return data_sets.load(
            self.recipe.data.name,
            self.options.data_dir,
            fold=fold,
            images=self.recipe.data.images,
            validation=self.recipe.data.validation,
            normalization=self.recipe.data.normalization,
            resolution=self.recipe.data.resolution,
            resize=self.recipe.data.resize,
            workers=self.recipe.data.workers,
            download=self.options.download,
            report=lambda done, total: self.progress.bytes(f"downloading {self.recipe.data.name}", done, total),
        )

    def check(self, data: DataSet) -> int:
        """The most epochs that the method takes.

        Raises what data and method have against their settings, before any file of an older run is touched.
        """
        if self.recipe.data.batch_size > len(data.train):
            raise ValueError(
                f"data.batch_size is {self.recipe.data.batch_size}, but there are {len(data.train):,} images of "
                f"{self.recipe.data.name} to train on"
            )
        model = self._network(data)
        optimizer = optimizers.build(self.recipe.optimizer, model)
        try:
            sparsifier = self._sparsifier(self.recipe.method["name"], model, optimizer, data, self.arguments)
        except (ValueError, TypeError) as error:
            raise method_table.under_key(error, self.recipe.method) from None
        sparsifier.detach()
        self.recipe.schedule.check_length(sparsifier.total_epochs)
        fixed = methods.get(sparsifier.name).fixed_length or self.arguments.get("total_epochs")
        if self.recipe.schedule.kind != "method" and not fixed:
            raise ValueError(
                f"schedule.kind is {self.recipe.schedule.kind!r}, which needs a run of known length, but a phase of "
                f"{sparsifier.name} may end early; give method.total_epochs"
            )
        return sparsifier.total_epochs

    def train_alone(self, data: DataSet, method: str | None, arguments: dict[str, Any], text: str) -> Outcome:
        """One stage and nothing after it, into a run folder with `text` as its recipe; resumed where it was begun."""
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        self.folder.begin(text, resume=self.options.resume)
        outcome = self._stage(method or "dense", data, 0, method, arguments)
        (self.folder / run_folder.CHECKPOINT).unlink(missing_ok=True)
        return outcome

    def untrained(self, data: DataSet) -> nn.Module:
        """The recipe's network before any training."""
        return self._network(data).eval()

    def trained(self, data: DataSet, stage: str) -> nn.Module:
        """The network that a finished stage has left."""
        model = self.untrained(data)
        model.load_state_dict(run_folder.load_state(self.folder.stage(f"fold0-{stage}"))["model"])
        return model.eval()

    def _train(self, data: DataSet, fold: int) -> dict[str, Outcome]:
        name = self.recipe.method["name"]
        outcomes = {"method": self._stage(name, data, fold, name, self.arguments)}
        epochs = outcomes["method"].epochs
        if self.recipe.training.oneshot and name != "oneshot":
            finetuned = outcomes["method"].finetuned
            finetune = epochs // 2 if finetuned is None else finetuned
            shared = ("sparsity", "scope", "count", "min_nonzeros", "prunable", "exclude", "strict", "lr")
            arguments = {key: value for key, value in self.arguments.items() if key in shared}
            arguments |= {"pretrain_epochs": epochs - finetune, "finetune_epochs": finetune}
            outcomes["oneshot"] = self._stage("oneshot", data, fold, "oneshot", arguments)
        if self.recipe.training.dense:
            outcomes["dense"] = self._stage(
                "dense", data, fold, None, {"epochs": epochs, "lr": self.arguments.get("lr", "method")}
            )
        return outcomes

    def _stage(self, name: str, data: DataSet, fold: int, method: str | None, arguments: dict[str, Any]) -> Outcome:
        """Train one network, or take it from the run folder where it is finished or begun."""
        key = f"fold{fold}-{name}"
        seed = self.recipe.seed + fold
        torch.manual_seed(seed)  # every stage of a fold starts from the same weights and sees the same batches
        layout = torch.channels_last if self.recipe.training.channels_last else torch.contiguous_format
        model = self._network(data).to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
        done = self.folder.stage(key)
        if self.options.resume and done.is_file():
            state = run_folder.load_state(done)
            model.load_state_dict(state["model"])
            self.seconds_before += state["seconds"]
            return self._outcome(model, state)
        recorder = Recorder(self.folder.path, key, model, self.recipe) if self.recipe.training.analyze else None
        optimizer = optimizers.build(self.recipe.optimizer, model)
        sparsifier = (
            DenseTraining(model, optimizer, **arguments)
            if method is None
            else self._sparsifier(method, model, optimizer, data, arguments)
        )
        train, test, validation = self._batches(data)
        trainer = Trainer(key, model, optimizer, sparsifier, train, test, self.recipe, self.folder, self.progress, seed)
        trainer.validation, trainer.selection = validation, Selection(self.recipe.training.select)
        trainer.learning_rate = schedule.whole(self.recipe.schedule, len(train), sparsifier.total_epochs)
        trainer.recorder = recorder
        checkpoint = self.folder / run_folder.CHECKPOINT
        if self.options.resume and checkpoint.is_file():
            state = run_folder.load_state(checkpoint)
            self.folder.truncate_metrics(state["metrics_size"])  # what a crash left behind the last checkpoint
            if state["stage"] == key:
                trainer.resume(state)
                self.seconds_before += state["seconds"]
        elif self.options.resume:
            self.folder.truncate_metrics(0)
        fold_of = f" {fold + 1}/{self.options.folds}" if self.options.folds > 1 else ""
        self.progress.stage(name + fold_of, sparsifier.total_epochs, len(trainer.train))
        trainer.run(self.budget)
        finetuned = _finetuned(sparsifier)  # before an earlier epoch's state is put back
        last_accuracy = trainer.accuracy(test) if trainer.selection.best is not None else None
        selected_epoch = trainer.selection.restore(model, sparsifier)
        trainer.model = model = sparsifier.finalize()
        test_accuracy = trainer.accuracy(test)
        state = {
            "model": model.state_dict(),
            "epochs": trainer.epoch,
            "finetuned": finetuned,
            "seconds": trainer.seconds,
            "test_accuracy": test_accuracy,
            "last_accuracy": test_accuracy if last_accuracy is None else last_accuracy,
            "validation_accuracy": None if validation is None else trainer.accuracy(validation),
            "selected_epoch": selected_epoch or trainer.epoch,
            "asked": None if isinstance(sparsifier, DenseTraining) else figures.asked(sparsifier),
            "fit": self._fit(model, data),
            "kept": trainer.kept,
        }
        run_folder.save_state(done, state)
        return self._outcome(model, state)

    def _sparsifier(
        self, name: str, model: nn.Module, optimizer: torch.optim.Optimizer, data: DataSet, arguments: dict[str, Any]
    ) -> methods.Sparsifier:
        info = methods.get(name)
        if info.total_steps:
            lengths = [value for key, value in arguments.items() if key.endswith("epochs")]
            epochs = arguments.get("total_epochs") or sum(lengths)
            arguments = arguments | {
                "total_steps": epochs * steps_per_epoch(len(data.train), self.recipe.data.batch_size)
            }
        return info.cls(model, optimizer, **arguments)

    def _outcome(self, model: nn.Module, state: dict[str, Any]) -> Outcome:
        model = model.to(device="cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        return Outcome(model, **{key: value for key, value in state.items() if key != "model"})

    def _network(self, data: DataSet) -> nn.Module:
        own = {key: value for key, value in vars(self.recipe.network).items() if key != "name"}
        return networks.build(self.recipe.network.name, data.shape, data.classes, **own)

    def _dense(self, outcomes: dict[str, Outcome], data: DataSet) -> nn.Module:
        """The network to compare speed and size with; without a dense stage, one that was never trained."""
        return outcomes["dense"].model if "dense" in outcomes else self._network(data).eval()

    def _batches(self, data: DataSet) -> tuple[Normalized, Normalized, Normalized | None]:
        """Those to train on, of the test set, and of the held-out images where there are any."""
        batches = functools.partial(batches_of, device=self.device, channels_last=self.recipe.training.channels_last)
        augmentation = Augmentation(self.recipe.data.crop, self.recipe.data.flip)
        train = batches(data.train, data, self.recipe.data.batch_size, augmentation=augmentation)
        held_out = None if data.validation is None else batches(data.validation, data, EVALUATION_BATCH)
        return train, batches(data.test, data, EVALUATION_BATCH), held_out

    def _fit(self, model: nn.Module, data: DataSet) -> dict[str, Any]:
        """Of the trained network, on a part of the training images and of the validation (or else test) images."""
        held_out = data.validation or data.test

        def figures_of(images: Images | ImageFiles) -> dict[str, Any]:
            channels_last = self.recipe.training.channels_last
            part = batches_of(
                fit.sample(images), data, EVALUATION_BATCH, device=self.device, channels_last=channels_last
            )
            return fit.measure(model, part.plain(), self.recipe.training.precision)

        which = "test" if data.validation is None else "validation"
        return {"train": figures_of(data.train), "held_out": figures_of(held_out), "held_out_are": which}

    def _accuracies(self, folds: list[dict[str, Outcome]]) -> dict[str, Any]:
        summary: dict[str, Any] = {}
        for key, stage in (("dense_accuracy", "dense"), ("sparse_accuracy", "method"), ("oneshot_accuracy", "oneshot")):
            values = [fold[stage].test_accuracy for fold in folds if stage in fold]
            summary[key] = math.fsum(values) / len(values) if values else None
            summary[f"{key}_per_fold"] = values
        for stage, outcome in folds[0].items():
            summary[f"{stage}_selected_epoch"] = outcome.selected_epoch
            summary[f"{stage}_last_accuracy"] = outcome.last_accuracy
            summary[f"{stage}_validation_accuracy"] = outcome.validation_accuracy
        fits = {stage: [f for fold in folds if (f := fold[stage].fit) is not None] for stage in folds[0]}
        summary["fit"] = {stage: fit.mean(found) for stage, found in fits.items() if found}
        summary["epochs"] = folds[0]["method"].epochs
        summary["epochs_per_fold"] = [fold["method"].epochs for fold in folds]
        return summary


def _finetuned(trained: methods.Sparsifier | DenseTraining) -> int | None:
    """How many epochs of its course a method has really fine-tuned; None where it has no such phase."""
    if isinstance(trained, DenseTraining) or FINETUNE not in trained.phases:
        return None
    return sum(row["phase"] == FINETUNE for row in trained.report().history)
