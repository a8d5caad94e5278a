"""Does longer training still help? Runs of one recipe at several budgets, sparse against dense.

A sparse network counts as under-trained while its training loss or the entropy of its predictions on training images
lies above the dense network's and a doubling of the budget still lowers that by more than 2 %, or raises the accuracy
on held-out images by more than 0.2 points. Where a recipe holds none out (data.validation), the accuracy is that on
test images, and the verdict is marked: it may not decide how long to train.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_ops.train import run_folder
from sparse_ops.train.method_table import GROWTHS
from sparse_ops.train.run_folder import RunFolder
from sparse_ops.train.schedule import is_length

LOWERS, RAISES = 0.02, 0.002  # what counts as help, per doubling
ON_TEST = "on test images: no decision may rest on it"  # stands beside a verdict for which none were held out
_LOOSE = {"seed", "budget", "budgeted", "compare", "training.dense", "training.oneshot", "training.test_every"}


@dataclass(frozen=True)
class Fit:
    """What a trained network does with training images and with held-out ones; entropies in nats."""

    train_loss: float
    train_entropy: float
    entropy: float
    accuracy: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Fit":
        """The figures of one network in a summary."""
        train, other = record["train"], record["held_out"]
        return cls(train["loss"], train["entropy"], other["entropy"], other["accuracy"])


@dataclass(frozen=True)
class Point:
    """The mean of the runs at one budget."""

    budget: float
    epochs: float
    runs: int
    sparse: Fit
    dense: Fit | None
    test_accuracy: float
    held_out: str = "validation"  # or "test": which images entropy and accuracy are of

    @property
    def mark(self) -> str:
        """What has to stand beside a verdict; else nothing."""
        return f" ({ON_TEST})" if self.held_out == "test" else ""


@dataclass(frozen=True)
class Slope:
    """What a doubling of the budget changes, between two budgets: shares by which losses and entropies fall, points."""

    train_loss: float
    train_entropy: float
    accuracy: float


def read(paths: Sequence[Path]) -> tuple[list[Point], dict[str, Any]]:
    """The runs as points in the order of their budgets, and the summary of the first.

    ValueError where a run is not finished, has no such figures, or is of another recipe than the first.
    """
    summaries = [(path, RunFolder(path).read_json(run_folder.SUMMARY)) for path in paths]
    first_path, first = summaries[0]
    grouped: dict[float, list[dict[str, Any]]] = {}
    for path, summary in summaries:
        if "fit" not in summary:
            raise ValueError(f"{path} has no record of its training loss and entropy; train it again")
        mine, other = (_comparable(s["recipe"]) | _growths(s["recipe"]) for s in (first, summary))
        for key in sorted(mine.keys() | other.keys()):
            if mine.get(key) != other.get(key):
                raise ValueError(
                    f"{path} has {key} {other.get(key)!r}, {first_path} {mine.get(key)!r}: budgets are compared within "
                    "one recipe"
                )
        grouped.setdefault(summary["recipe"]["budgeted"], []).append(summary)
    return [_point(budget, grouped[budget]) for budget in sorted(grouped)], first


def _comparable(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every key of a recipe but lengths, and what does not change a network."""
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        name = prefix + key
        if name in _LOOSE or is_length(key):
            continue
        if isinstance(value, Mapping):
            flat |= _comparable(value, name + ".")
        else:
            flat[name] = value
    return flat


def _growths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a budget has slowed, as it is at budget 1."""
    method = recipe["method"]
    found = {key: method[key] ** recipe["budgeted"] for key in GROWTHS.get(method["name"], ()) if key in method}
    return {f"method.{key}": float(f"{value:.12g}") for key, value in found.items()}


def _point(budget: float, summaries: list[dict[str, Any]]) -> Point:
    fits = [summary["fit"] for summary in summaries]
    dense = [Fit.of(fit["dense"]) for fit in fits if "dense" in fit]
    n = len(summaries)
    return Point(
        budget,
        sum(summary["epochs"] for summary in summaries) / n,
        n,
        _mean([Fit.of(fit["method"]) for fit in fits]),
        _mean(dense) if dense else None,
        sum(summary["sparse_accuracy"] for summary in summaries) / n,
        fits[0]["method"]["held_out_are"],
    )


def _mean(fits: Sequence[Fit]) -> Fit:
    return Fit(*(math.fsum(values) / len(fits) for values in zip(*(vars(fit).values() for fit in fits), strict=True)))


def slope(shorter: tuple[float, Fit], longer: tuple[float, Fit]) -> Slope:
    """The change per doubling between (budget, figures) of two budgets."""
    doublings = math.log2(longer[0] / shorter[0])

    def falls(a: float, b: float) -> float:
        return 1 - (b / a) ** (1 / doublings) if a > 0 else 0.0

    a, b = shorter[1], longer[1]
    return Slope(
        falls(a.train_loss, b.train_loss),
        falls(a.train_entropy, b.train_entropy),
        (b.accuracy - a.accuracy) / doublings,
    )


def slopes(points: Sequence[Point], dense: bool = False) -> list[Slope | None]:
    """Of each point: towards the next budget, of the last one from the budget before it; None where there is none."""

    def at(point: Point) -> tuple[float, Fit] | None:
        fit = point.dense if dense else point.sparse
        return None if fit is None else (point.budget, fit)

    found = [slope(a, b) if (a := at(p)) and (b := at(q)) else None for p, q in itertools.pairwise(points)]
    return [*found, found[-1]] if found else [None]


def verdict(point: Point, change: Slope | None) -> tuple[bool | None, str]:
    """Whether the sparse network at this budget is under-trained (None: cannot be said), and why, in a sentence."""
    if point.dense is None:
        return None, "there is no dense run to compare with (training.dense is false)"
    names = {"train_loss": "training loss", "train_entropy": "training entropy"}
    above = [key for key in names if getattr(point.sparse, key) > getattr(point.dense, key)]
    if not above:
        return False, "neither its training loss nor its training entropy lies above the dense network's"
    which = " and ".join(names[key] for key in above)
    lies = "lies" if len(above) == 1 else "lie"
    said = f"its {which} {lies} above the dense network's"
    if change is None:
        return None, f"{said}; a run at another budget is needed to say whether longer training helps"
    helps = [
        f"lowers its {names[key]} by {100 * getattr(change, key):.1f} %"
        for key in above
        if getattr(change, key) > LOWERS
    ]
    if change.accuracy > RAISES:
        helps.append(f"raises its accuracy by {100 * change.accuracy:.2f} points")
    if helps:
        return True, f"{said}, and a doubling of the budget {' and '.join(helps)}"
    return False, f"{said}, but a doubling of the budget changes too little"


def table(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """A heading and two rows a budget, dense and sparse: the figures, and whether the sparse one is under-trained."""
    held = points[0].held_out
    figures = ("training loss", "training entropy", f"{held} entropy", f"{held} accuracy")
    heading = ("budget", "epochs", "network", *figures)
    rows: list[tuple[str, ...]] = [(*heading, "under-trained")]
    for point, change in zip(points, slopes(points), strict=True):
        said = {True: "yes" + point.mark, False: "no" + point.mark, None: "?"}[verdict(point, change)[0]]
        for name, fit, last in (("dense", point.dense, ""), ("sparse", point.sparse, said)):
            if fit is not None:
                losses = (f"{fit.train_loss:.4f}", f"{fit.train_entropy:.4f}", f"{fit.entropy:.4f}")
                begin = (f"x{point.budget:g}", f"{point.epochs:g}", name)
                rows.append((*begin, *losses, f"{100 * fit.accuracy:.2f} %", last))
    return rows


def changes(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """A heading and two rows for each step to the next budget: what a doubling changes there."""
    rows: list[tuple[str, ...]] = [("a doubling between", "network", "training loss", "training entropy", "accuracy")]
    steps = zip(itertools.pairwise(points), slopes(points, dense=True), slopes(points), strict=False)
    for (shorter, longer), dense, sparse in steps:
        for name, change in (("dense", dense), ("sparse", sparse)):
            if change is not None:
                shares = (f"{-100 * share:+.1f} %" for share in (change.train_loss, change.train_entropy))
                between = f"x{shorter.budget:g} and x{longer.budget:g}"
                rows.append((between, name, *shares, f"{100 * change.accuracy:+.2f} points"))
    return rows
