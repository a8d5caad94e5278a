"""What a comparison consists of: a run for each method, sparsity and seed, all of one length and on equal terms."""

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparse_ops import methods
from sparse_ops.train import method_table
from sparse_ops.train.data import DataSet
from sparse_ops.train.job import Job, Options
from sparse_ops.train.progress import Plain
from sparse_ops.train.recipe import Recipe

DENSE = "dense"
WEIGHTS = ("prunable", "exclude")
_OWN = ("seed", "method", "compare")  # the parts of a recipe that differ between the runs of a comparison


@dataclass(frozen=True)
class Run:
    """One network to be trained: a method (or "dense") at a sparsity (dense: None) from a seed."""

    method: str
    sparsity: float | None
    seed: int
    epochs: int
    recipe: Recipe

    @property
    def text(self) -> str:
        """The recipe of this run as TOML; dense training has no method."""
        return self.recipe.to_toml(leave_out=("method",) if self.method == DENSE else ())

    @property
    def key(self) -> str:
        """Names the run by all that decides its outcome: equal keys are equal runs."""
        said = json.dumps([self.method, self.sparsity, self.seed, self.epochs, self.text])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """The name of its folder, for a reader, with the key at its end."""
        share = "" if self.sparsity is None else f"-{self.sparsity:g}"
        return f"{self.method}{share}-seed{self.seed}-{self.key}"

    @property
    def title(self) -> str:
        """The run in the words of a progress line."""
        share = "" if self.sparsity is None else f" {percent(self.sparsity)}"
        return f"{self.method}{share}, seed {self.seed}"


@dataclass(frozen=True)
class Comparison:
    """All runs in the order in which they are trained, and what they have in common."""

    base: Recipe
    epochs: int
    runs: tuple[Run, ...]

    @property
    def shared(self) -> dict[str, Any]:
        """What decides whether runs may stand in one table: tables and keys of the recipe, the number of epochs."""
        common = {key: value for key, value in self.base.to_dict().items() if key not in _OWN}
        weights: dict[str, Any] = {key: self.base.method[key] for key in WEIGHTS if key in self.base.method}
        return {"epochs": self.epochs, **weights, **common}

    @property
    def arguments(self) -> dict[str, dict[str, Any]]:
        """Method -> its arguments but the sparsity."""
        return {
            run.method: {k: v for k, v in run.recipe.method.items() if k not in ("name", *method_table.SHARED)}
            for run in self.runs
            if run.method != DENSE
        }


def percent(share: float) -> str:
    """98 % of 0.98, 99.5 % of 0.995."""
    return f"{round(100 * share, 6):g} %"


def make(
    base: Recipe, names: Sequence[str], sparsities: Sequence[float], seeds: Sequence[int], epochs: int
) -> Comparison:
    """Every method at every sparsity and a dense network, from each seed.

    A method gets the arguments that its `for_epochs(epochs)` gives, over them those of [compare.NAME]; the recipe's own
    method keeps its [method] but for lengths in epochs. Which weights are prunable is the same for all.
    """
    for what, values in (("method", names), ("sparsity", sparsities), ("seed", seeds)):
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise ValueError(f"{what} {twice[0]} is asked for twice")
        if not values:
            raise ValueError(f"no {what} is given")
    for sparsity in sparsities:
        if not 0 < sparsity < 1:
            hint = f" (a percentage? {sparsity / 100:g})" if 1 <= sparsity < 100 else ""
            raise ValueError(f"--sparsities: {sparsity:g} is outside of (0, 1){hint}")
    if epochs < 1:
        raise ValueError(f"--epochs is {epochs}, expected 1 or more")
    plain = dataclasses.replace(
        base, compare={}, training=dataclasses.replace(base.training, dense=False, oneshot=False)
    )
    runs = []
    for seed in seeds:
        seeded = dataclasses.replace(plain, seed=seed)
        runs.append(Run(DENSE, None, seed, epochs, seeded))
        for sparsity in sparsities:
            for name in names:
                recipe = dataclasses.replace(seeded, method=_method(base, name, sparsity, epochs))
                runs.append(Run(name, sparsity, seed, epochs, recipe))
    return Comparison(base, epochs, tuple(runs))


def _method(base: Recipe, name: str, sparsity: float, epochs: int) -> dict[str, Any]:
    """The table [method] of a run."""
    if name == DENSE:
        raise ValueError("--methods: a dense network is trained in any case, from each seed; leave it out")
    try:
        cls = methods.get(name).cls
    except ValueError as error:
        raise ValueError(f"--methods: {error}") from None
    mine = method_table.arguments(base.method)
    shared = {key: mine.pop(key) for key in method_table.SHARED if key in mine}
    own = (
        {key: value for key, value in mine.items() if not key.endswith("epochs")} if name == base.method["name"] else {}
    )
    try:
        lengths = cls.for_epochs(epochs)
    except ValueError as error:
        raise ValueError(f"{name} in {epochs} epochs: {error}") from None
    slowed = method_table.growths(name, base.budgeted)
    return {"name": name, **slowed, **own, **lengths, **base.compare.get(name, {}), **shared, "sparsity": sparsity}


def check(comparison: Comparison, data: DataSet, options: Options) -> None:
    """ValueError or TypeError, naming the method, for a run that cannot be made: before any run is begun."""
    seed = comparison.runs[0].seed
    for run in comparison.runs:
        if run.method != DENSE and run.seed == seed:
            try:
                total = length(run.recipe, data, options)
            except (ValueError, TypeError) as error:
                told = re.sub(r"^method\.", f"compare.{run.method}.", str(error))
                raise type(error)(f"{run.method} at {percent(run.sparsity or 0.0)}: {told}") from None
            if total != run.epochs:
                more = "longer" if total > run.epochs else "shorter"
                raise ValueError(
                    f"{run.method}: its phases take {total} epochs together, {more} than the {run.epochs} that every "
                    f"method gets; see [compare.{run.method}]"
                )


def length(recipe: Recipe, data: DataSet, options: Options) -> int:
    """The most epochs that the recipe's method takes; raises what data and method have against their settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what a first mask prunes is told by the run itself
        return Job(recipe, options, Plain()).check(data)
