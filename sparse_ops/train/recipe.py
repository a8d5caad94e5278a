"""Recipes: TOML files that say what is trained and how; an unknown key is an error that names the nearest known."""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_ops.train import keys, method_table
from sparse_ops.train.data import NAMES as DATA_SETS
from sparse_ops.train.data import NORMALIZATIONS
from sparse_ops.train.networks import check_name
from sparse_ops.train.optimizers import ADAMW, NAMES, Optimizer
from sparse_ops.train.schedule import KINDS, Schedule, scaled_lengths
from sparse_ops.train.selection import RULES


@dataclass
class Data:
    """[data]: name of a data set, which training images, images per batch, augmentation."""

    name: str
    images: int = 0  # train on so many, the first after a shuffle that is always the same; 0 is all
    validation: int = 0  # so many training images are held out; an epoch may be selected on them
    normalization: str = "own"  # by mean and deviation of the training images, or by "imagenet"'s
    batch_size: int = 64
    crop: int = 0  # pixels of padding around the random crop
    flip: bool = False
    resolution: int = 224  # this and the next two: of image files (imagenet), which are cropped at random by size
    resize: int = 256  # the shorter side before the central crop of an evaluation
    workers: int = 0  # threads that decode; 0: all


@dataclass
class Network:
    """[network]: name, its width and the stride of a ResNet's stem (0 is the network's own), weights to begin with.

    The name is one of sparse_ops.train.networks or timm:NAME or hf:NAME; weights is a file, or "pretrained" for those.
    """

    name: str
    width: int = 0
    stride: int = 0
    weights: str = ""


@dataclass
class Loss:
    """[loss]: cross entropy, with label_smoothing."""

    label_smoothing: float = 0.0


@dataclass
class Training:
    """[training]: arithmetic (float32 or bfloat16 autocast), memory format, which epoch counts, which rivals train."""

    precision: str = "float32"
    channels_last: bool = True
    select: str = "last"  # the epoch whose weights count: the last, or the best on "validation" or on "test" images
    analyze: bool = False  # record after each epoch what `sparse-ops analyze` draws, a bit a weight
    test_every: int = 1  # epochs between two looks at the test images; after the last epoch there is always one
    dense: bool = True  # the same network without pruning, for the same number of epochs
    oneshot: bool = True  # one-shot magnitude pruning, for the same number of epochs


@dataclass
class Recipe:
    """A whole recipe. `method` is a table: name, and every argument of that method (sparse_ops.methods).

    budget multiplies the lengths of method and schedule (`method_table.scaled`, `schedule.scaled_lengths`) when a
    recipe is read. What is read holds the longer lengths with budget 1, and `budgeted` says how often they have grown:
    writing a recipe out and reading it again changes nothing.
    """

    data: Data
    network: Network
    method: dict[str, Any]
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    loss: Loss = field(default_factory=Loss)
    training: Training = field(default_factory=Training)
    seed: int = 0
    budget: float = 1.0
    budgeted: float = 1.0
    compare: dict[str, Any] = field(default_factory=dict)  # method -> its arguments in `sparse-ops compare`

    def __post_init__(self) -> None:
        _one_of("data.name", self.data.name, DATA_SETS)
        check_name(self.network.name)
        _one_of("data.normalization", self.data.normalization, NORMALIZATIONS)
        _one_of("training.precision", self.training.precision, ("float32", "bfloat16"))
        _one_of("training.select", self.training.select, RULES)
        _one_of("optimizer.name", self.optimizer.name, NAMES)
        _one_of("schedule.kind", self.schedule.kind, KINDS)
        for key, value, least in (
            ("data.batch_size", self.data.batch_size, 1),
            ("data.crop", self.data.crop, 0),
            ("data.images", self.data.images, 0),
            ("data.validation", self.data.validation, 0),
            ("data.resolution", self.data.resolution, 1),
            ("data.resize", self.data.resize, self.data.resolution),
            ("data.workers", self.data.workers, 0),
            ("network.width", self.network.width, 0),
            ("network.stride", self.network.stride, 0),
            ("training.test_every", self.training.test_every, 1),
            ("optimizer.lr", self.optimizer.lr, 0),
            ("optimizer.momentum", self.optimizer.momentum, 0),
            ("optimizer.weight_decay", self.optimizer.weight_decay, 0),
            ("optimizer.eps", self.optimizer.eps, 0),
            ("schedule.warmup_epochs", self.schedule.warmup_epochs, 0),
            ("seed", self.seed, 0),
        ):
            if not least <= value < math.inf:  # NaN is neither
                raise ValueError(f"{key} is {value}, expected {least} or more")
        for key, value in (
            ("optimizer.beta1", self.optimizer.beta1),
            ("optimizer.beta2", self.optimizer.beta2),
            ("loss.label_smoothing", self.loss.label_smoothing),
            ("schedule.final", self.schedule.final),
            ("schedule.gamma", self.schedule.gamma),
        ):
            if not 0 <= value < 1:
                raise ValueError(f"{key} is {value}, expected a number from 0 to below 1")
        for key, value in (("budget", self.budget), ("budgeted", self.budgeted)):
            if not 0 < value < math.inf:
                raise ValueError(f"{key} is {value}, expected a number above 0")
        self.schedule.check()
        if self.optimizer.nesterov and self.optimizer.momentum == 0:
            raise ValueError("optimizer.nesterov is true, which needs optimizer.momentum above 0")
        if self.data.name == "imagenet" and self.data.crop:
            raise ValueError(f"data.crop is {self.data.crop}, but imagenet is cropped at random by size; leave it out")
        if self.training.select == "validation" and self.data.validation == 0:
            raise ValueError("training.select is 'validation', which needs data.validation above 0")
        if self.training.select == "test" and self.training.test_every != 1:
            raise ValueError(f"training.select is 'test', but training.test_every is {self.training.test_every}, not 1")
        given, self.method = self.method, method_table.resolve(self.method)
        method_table.check_rates("method", given, self.schedule.kind)
        if self.schedule.kind != "method":
            self.method["lr"] = "user"
        for name, table in self.compare.items():
            method_table.check_compared(name, table)
            method_table.check_rates(f"compare.{name}", table, self.schedule.kind)
        for key in method_table.unused_rates(self.method, self.schedule.kind):
            del self.method[key]
        self.method = method_table.scaled(self.method["name"], self.method, self.budget)
        self.compare = {name: method_table.scaled(name, own, self.budget) for name, own in self.compare.items()}
        self.schedule = Schedule(**scaled_lengths(vars(self.schedule), self.budget))
        self.budgeted, self.budget = self.budgeted * self.budget, 1.0

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionaries."""
        return dataclasses.asdict(self)

    def to_toml(self, leave_out: Collection[str] = ()) -> str:
        """The recipe with every default written out; `parse` reads it back to an equal recipe, if all is there."""
        plain = {key: value for key, value in self.to_dict().items() if key not in leave_out}
        if not plain.get("compare"):  # most recipes have none
            plain.pop("compare", None)
        lines = [f"{key} = {keys.toml(value)}" for key, value in plain.items() if not isinstance(value, dict)]
        for key, table in plain.items():
            if isinstance(table, dict):
                lines += ["", f"[{key}]", *(f"{k} = {keys.toml(v)}" for k, v in table.items())]
                if key == "method":
                    lines += [f"# {name} is not given" for name in method_table.not_given(table)]
        return "\n".join(lines) + "\n"


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a file; overrides maps dotted keys ("method.sparsity") to values that win over the file's."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"{path} cannot be read: {reason}") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    for key, value in (overrides or {}).items():
        *folders, last = key.split(".")
        inner = table
        for name in folders:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ValueError(f"--set {key}: {name} is a value, not a table")
        inner[last] = value
    try:
        if isinstance(own := table.get("method"), dict):
            method_table.check_renamed(tomllib.loads(text).get("method", {}).get("name"), own)
        return parse(table)
    except (ValueError, TypeError) as error:
        overridden = any(key in str(error) for key in overrides or {})
        culprit = "--set" if overridden and str(error) != _complaint(tomllib.loads(text)) else path
        raise type(error)(f"{culprit}: {error}") from None


def _complaint(table: Mapping[str, Any]) -> str | None:
    """What `parse` has against a table."""
    try:
        parse(table)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def parse(table: Mapping[str, Any]) -> Recipe:
    """The recipe of nested tables."""
    optimizer = table.get("optimizer")
    if isinstance(optimizer, Mapping) and optimizer.get("name") == "adamw":
        table = {**table, "optimizer": {**ADAMW, **optimizer}}
    return _build(Recipe, table, "")


def parse_override(text: str) -> tuple[str, Any]:
    """("method.sparsity", 0.9) of "method.sparsity=0.9"; what is no TOML value counts as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {text!r}: expected KEY=VALUE, for example method.sparsity=0.95")
    try:
        return key.strip(), tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _build(cls: type, table: Any, prefix: str) -> Any:
    if not isinstance(table, Mapping):
        raise TypeError(f"{prefix.rstrip('.')} is {table!r}, expected a table")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in table.items():
        if key not in fields:
            raise keys.unknown(prefix + key, [prefix + name for name in fields])
        values[key] = _convert(fields[key].type, value, prefix + key)
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix + name} is missing")
    return cls(**values)


def _convert(kind: Any, value: Any, key: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build(kind, value, key + ".")
    return keys.typed(key, value, kind if isinstance(kind, type) else dict)


def _one_of(key: str, value: str, known: Any) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{key} is {value!r}{hint} (known: {', '.join(known)})")
