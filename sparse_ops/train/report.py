"""report.html of a run: one self-contained page made from summary.json, metrics.jsonl and figures.json."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_ops import methods
from sparse_ops.train import run_folder
from sparse_ops.train.run_folder import RunFolder

NAMES = {"acdc": "AC/DC", "art": "ART + HyperSparse", "oneshot": "one-shot magnitude"}

SELECTED = {
    "last": "The networks that are reported are those of the last epoch.",
    "validation": "The networks that are reported are those of the best epoch on held-out training images.",
    "test": "The networks that are reported are those of the best epoch ON THE TEST IMAGES, as in several papers: such "
    "accuracies are too high.",
}
MISSED = 5e-4  # of the weights: by how much more or fewer zeros than asked for are told
MARKS = {"last": "", "validation": ", best epoch on held-out images", "test": ", best epoch on the test images"}

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.55 system-ui, sans-serif; color: #1a1a1a; background: #fff; }}
body {{ max-width: 960px; margin: 2em auto; padding: 0 1em; }}
h1 {{ font-size: 1.5em; }} h2 {{ font-size: 1.15em; margin: 2em 0 .3em; }}
.result {{ font-size: 1.15em; border-left: 4px solid #0072B2; padding-left: .8em; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ padding: .35em .9em; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }} p.note {{ color: #555; font-size: .92em; margin: .2em 0 .6em; }}
svg {{ width: 100%; height: auto; }} details pre {{ background: #f6f6f6; padding: .8em; overflow-x: auto; }}
</style></head><body>
<h1>{title}</h1>
<p class="result">{sentence}</p>
{table}
{sections}
<h2>Recipe</h2><details><summary>as it ran, every default written out</summary><pre>{recipe}</pre></details>
</body></html>
"""


def write(path: Path) -> Path:
    """Make runs/<name>/report.html again from the files of the run; returns where it lies."""
    try:
        from sparse_ops.train import plots

        return _write(RunFolder(path), plots)
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        raise ValueError("the report needs matplotlib: pip install 'sparse_ops[train]'") from None


def _write(folder: RunFolder, plots: Any) -> Path:
    summary = folder.read_json(run_folder.SUMMARY)
    figures = folder.read_json(run_folder.FIGURES)
    name = summary["recipe"]["method"]["name"]
    title = named(name)
    stages = {f"fold0-{name}": title, "fold0-oneshot": "one-shot", "fold0-dense": "dense"}
    if name == "oneshot":
        stages[f"fold0-{name}"] = title
    curves: dict[str, list[dict[str, Any]]] = {}
    for record in folder.metrics():
        if record["stage"] in stages:
            curves.setdefault(stages[record["stage"]], []).append(record)
    histograms = {
        shown: figures["magnitudes"][key]
        for key, shown in (("dense", "dense"), ("method", title))
        if key in figures["magnitudes"]
    }
    budget = 1 - summary["sparsity"]
    sections = [
        _section(
            "Training",
            "Accuracy after every epoch, on a scale that spreads what is close to 100 %. "
            f"{SELECTED[_rule(summary)]} " + _oneshot(summary) + _folds(summary),
            plots.training(curves, title),
        ),
        _section("Density per layer", "What is left in each layer.", plots.density(figures["density"], budget)),
        _section(
            "Cost",
            f"Time of a batch: {summary['timing']}, on {summary['machine']}; each network in the faster of NCHW and "
            f"channels_last. "
            f"{layers(summary)} Outputs and accuracy are those of all {summary['test_images']:,} test images.",
            plots.cost(summary),
        ),
    ]
    if histograms:  # none of a method that is sparse from the first epoch on, where no dense network was trained
        text = (
            "All prunable weights, before any of them is set to zero: left of the threshold is what the budget prunes."
        )
        sections.insert(1, _section("Magnitudes", text, plots.magnitudes(histograms, title)))
    page = PAGE.format(
        title=html.escape(f"{title}: {summary['recipe']['network']['name']} on {summary['recipe']['data']['name']}"),
        sentence=html.escape(sentence(summary)),
        table=html_table(rows(summary)) + _fit(summary),
        sections="\n".join(sections),
        recipe=html.escape((folder / run_folder.RECIPE).read_text()),
    )
    path = folder / run_folder.REPORT
    run_folder.write_text(path, page)
    return path


def named(method: str) -> str:
    """The name of a method for a reader."""
    return NAMES.get(method) or methods.get(method).cls.__name__


def _fit(summary: dict[str, Any]) -> str:
    """How far the networks were trained, as a small table of its own; older runs do not say."""
    if "fit" not in summary:
        return ""
    name = summary["recipe"]["method"]["name"]
    shown = {"dense": "dense", "method": named(name), "oneshot": "one-shot magnitude"}
    held = next(iter(summary["fit"].values()))["held_out_are"]
    table = [("without augmentation", "training loss", "training entropy", f"{held} entropy", "training accuracy")]
    for stage, title in shown.items():
        if stage in summary["fit"]:
            train, other = (summary["fit"][stage][key] for key in ("train", "held_out"))
            figures = (f"{train['loss']:.4f}", f"{train['entropy']:.4f}", f"{other['entropy']:.4f}")
            table.append((title, *figures, percent(train["accuracy"])))
    note = (
        "A sparse network whose training loss or entropy lies above the dense one's may be under-trained: "
        "sparse-ops budget shows whether longer training helps. Entropies are in nats."
    )
    return f'\n{html_table(table)}\n<p class="note">{note}</p>'


def _section(title: str, note: str, figure: Any) -> str:
    from sparse_ops.train import plots

    return f'<h2>{title}</h2><p class="note">{html.escape(note)}</p>\n{plots.svg(figure)}'


def _oneshot(summary: dict[str, Any]) -> str:
    if summary["oneshot_accuracy"] is None:
        return ""
    return "The dense part of one-shot pruning runs at a constant learning rate, as ART's does. "


def _folds(summary: dict[str, Any]) -> str:
    n = len(summary["sparse_accuracy_per_fold"])
    return f"The curves are those of the first of {n} splits." if n > 1 else ""


def _rule(summary: dict[str, Any]) -> str:
    """Which epoch counted."""
    return summary["recipe"].get("training", {}).get("select", "last")  # older runs do not say


def layers(summary: dict[str, Any]) -> str:
    """How many layers run sparse, and why each of the others does not."""
    run_sparse = [layer for layer in summary["layers"] if layer["sparse"]]
    why = "; ".join(f"{layer['name']}, {layer['reason']}" for layer in summary["layers"] if not layer["sparse"])
    return f"{len(run_sparse)} of {len(summary['layers'])} layers run sparse" + (f"; dense: {why}." if why else ".")


def percent(share: float | None) -> str:
    """99.44 %, or - where there is none."""
    return "-" if share is None else f"{100 * share:.2f} %"


def sentence(summary: dict[str, Any]) -> str:
    """The result of a run in one sentence."""
    recipe, name = summary["recipe"], summary["recipe"]["method"]["name"]
    left = summary["prunable"] - summary["zeros"]
    folds = len(summary["sparse_accuracy_per_fold"])
    mean = f" (mean of {folds} splits)" if folds > 1 else ""
    against = f" against {percent(summary['dense_accuracy'])} dense" if summary["dense_accuracy"] is not None else ""
    asked = missed(summary)
    zeros = f"{percent(summary['sparsity'])} zeros"
    if asked is not None:
        some = "" if asked.weights == summary["prunable"] else f", {percent(asked.found)} of what the budget covers"
        zeros += f"{some}, where {percent(asked.wanted)} were asked for"
    found = (
        f"{named(name)} left {f'{left:,}' if left else 'none'} of {summary['prunable']:,} weights of "
        f"{recipe['network']['name']} on {recipe['data']['name']} "
        f"({zeros}): "
        f"{percent(summary['sparse_accuracy'])} test accuracy{MARKS[_rule(summary)]}{against}{mean}; "
    )
    if not left:
        return f"{found}no weight is left: its outputs do not depend on its input, and its speed says nothing."
    if asked is not None:
        return f"{found}it missed the sparsity that was asked for, so its speed and size answer another question."
    speed = summary["dense_ms"] / summary["sparse_ms"]
    pace = f"{speed:.1f} times faster than dense" if speed >= 1 else f"{1 / speed:.1f} times slower than dense"
    return (
        f"{found}the sparse network is {pace} ({summary['sparse_ms']:.3g} against "
        f"{summary['dense_ms']:.3g} ms a batch), its file {summary['dense_bytes'] / summary['sparse_bytes']:.1f} times "
        f"smaller, and its outputs differ from the masked dense network's by at most "
        f"{summary['max_abs_difference_sparse_vs_masked']:.1e}."
    )


@dataclass(frozen=True)
class Missed:
    """A budget that was not met: the weights that it covers, and which shares of them it wants zero and are zero."""

    weights: int
    wanted: float
    found: float


def missed(summary: dict[str, Any]) -> Missed | None:
    """The sparsity that the recipe asks for, where the measured one is another; None where it is met.

    Runs that do not say what their budget covers are compared over all weights of linear layers and convolutions; None
    where it was given for some of them, or layer by layer.
    """
    counted = summary.get("asked")
    if counted is None:
        method = summary["recipe"]["method"]
        share = method.get("sparsity")
        if not isinstance(share, float) or method.get("prunable") or method.get("exclude"):
            return None
        counted = {"weights": summary["prunable"], "wanted": share * summary["prunable"], "zeros": summary["zeros"]}
    n = counted["weights"]
    if abs(counted["zeros"] - counted["wanted"]) <= max(1.0, MISSED * n):
        return None
    return Missed(n, counted["wanted"] / n, counted["zeros"] / n)


def rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table of a run: a heading, then one row per network."""
    name = summary["recipe"]["method"]["name"]
    live = f"{summary['prunable'] - summary['zeros']:,}"
    kilo = [f"{summary[key] / 1e3:.1f}" for key in ("dense_bytes", "sparse_bytes")]
    epochs = str(summary["epochs"])
    accuracy = f"test accuracy{MARKS[_rule(summary)]}"
    table: list[tuple[str, ...]] = [("network", accuracy, "live weights", "epochs", "ms a batch", "file, kB")]
    if summary["dense_accuracy"] is not None:
        dense = percent(summary["dense_accuracy"])
        table.append(("dense", dense, f"{summary['prunable']:,}", epochs, f"{summary['dense_ms']:.3f}", kilo[0]))
    sparse = percent(summary["sparse_accuracy"])
    table.append((named(name), sparse, live, epochs, f"{summary['sparse_ms']:.3f}", kilo[1]))
    if summary["oneshot_accuracy"] is not None:
        own = live if missed(summary) is None else "-"  # one-shot pruning meets a sparsity that the method has missed
        table.append(("one-shot magnitude", percent(summary["oneshot_accuracy"]), own, epochs, *["not converted"] * 2))
    return table


def text_table(summary: dict[str, Any]) -> str:
    """The table of a run for a terminal."""
    return aligned(rows(summary))


def aligned(table: Sequence[Sequence[str]]) -> str:
    """A heading and rows in columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))])
        for name, *cells in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def html_table(table: Sequence[Sequence[str]]) -> str:
    """A heading and rows as a <table>."""
    heading, *body = table
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in heading) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return "<table>\n" + "\n".join(lines) + "\n</table>"
