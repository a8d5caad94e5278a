"""The result of a comparison: means and deviations over the seeds, as text and as one page."""

import html
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_ops import methods
from sparse_ops.train import run_folder
from sparse_ops.train.compare import DENSE, percent
from sparse_ops.train.compare_speed import TOLERANCE as SPREAD
from sparse_ops.train.compare_store import PICTURE, RECORDS, REPORT, SHARED, TABLE, Record, Store
from sparse_ops.train.dense import DenseTraining
from sparse_ops.train.published import PAPERS, Point, beside, read
from sparse_ops.train.report import PAGE

RULES = {
    "last": "the last epoch's network",
    "validation": "the best epoch's network by held-out training images",
    "test": "the BEST EPOCH ON THE TEST SET, as some papers do: these accuracies are optimistic",
}


MISSED, DEAD, UNSTEADY = "*", "†", "‡"
TOLERANCE = 0.0005  # of the sparsity: 0.05 points
_DEAD = re.compile(r"no weight survives in ([^:]+):")  # in the warnings of records without dead_layers


def missed(record: Record) -> bool:
    """Whether the zeros are not those that were asked for, by more than TOLERANCE and more than one weight."""
    if record["sparsity"] is None:
        return False
    one = 1 / record["prunable"] if record.get("prunable") else 0.0
    return abs(record["sparsity_measured"] - record["sparsity"]) > max(TOLERANCE, one) + 1e-9


def dead(record: Record) -> list[str]:
    """The layers without any weight."""
    if "dead_layers" in record:
        return list(record["dead_layers"])
    told = [match for text in record.get("warnings", ()) for match in _DEAD.findall(text)]
    return list(dict.fromkeys(name for names in told for name in names.split(", ")))


@dataclass(frozen=True)
class Figure:
    """Mean and standard deviation (with n - 1; None for a single value) of n values."""

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(math.fsum(values) / len(values), deviation, len(values))

    def percent(self) -> str:
        """92.69 ± 0.21"""
        return f"{100 * self.mean:.2f}" + ("" if self.deviation is None else f" ± {100 * self.deviation:.2f}")


@dataclass(frozen=True)
class Row:
    """One method at one sparsity (dense: None) over its seeds. speedup is None where nothing was timed."""

    method: str
    sparsity: float | None
    accuracy: Figure
    last: Figure
    zeros: Figure
    flops_left: Figure
    speedup: Figure | None
    seconds: Figure
    select: str
    published: Point | None
    marks: str = ""  # MISSED and DEAD, where a run of the row is such
    steady: bool = True


def rows(records: Iterable[Record], points: Sequence[Point] = ()) -> list[Row]:
    """By sparsity, dense first, methods in the order of their first record."""
    groups: dict[tuple[str, float | None], list[Record]] = {}
    for record in records:
        if record["status"] == "finished":
            groups.setdefault((record["method"], record["sparsity"]), []).append(record)
    order = list(dict.fromkeys(method for method, _ in groups))
    found = []
    for method, sparsity in sorted(groups, key=lambda key: (key[1] or 0.0, order.index(key[0]))):
        group = groups[method, sparsity]
        speeds = [record["speed"]["speedup"] for record in group if "speed" in record]
        near = [p for p in points if p.method == method and sparsity and math.isclose(p.sparsity, sparsity)]
        found.append(
            Row(
                method,
                sparsity,
                Figure.of([record["accuracy"] for record in group]),
                Figure.of([record["accuracy_last_epoch"] for record in group]),
                Figure.of([record["sparsity_measured"] for record in group]),
                Figure.of([record["flops_left"] for record in group]),
                Figure.of(speeds) if speeds else None,
                Figure.of([record["seconds"] for record in group]),
                group[0]["select"],
                near[0] if near else None,
                MISSED * any(map(missed, group)) + DEAD * any(map(dead, group)),
                all(record["speed"].get("steady", True) for record in group if "speed" in record),
            )
        )
    return found


def mark(table: Sequence[Row]) -> str:
    """What has to stand beside accuracies for which the test set has chosen the epoch; else nothing."""
    return " (best test epoch)" if any(row.select == "test" for row in table) else ""


def cells(table: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table in words: a heading, then a line per row."""
    columns = (
        "zeros asked",
        "method",
        f"test accuracy, %{mark(table)}",
        "seeds",
        "zeros, %",
        "FLOPs left, %",
        "sparse speed",
    )
    lines: list[tuple[str, ...]] = [(*columns, "training, s", "published, %")]
    for row in table:
        lines.append(
            (
                "-" if row.sparsity is None else percent(row.sparsity),
                row.method,
                row.accuracy.percent(),
                str(row.accuracy.n),
                f"{100 * row.zeros.mean:.2f}{f' {row.marks}' if row.marks else ''}",
                f"{100 * row.flops_left.mean:.3g}",
                "-" if row.speedup is None else f"{row.speedup.mean:.2f}x{'' if row.steady else f' {UNSTEADY}'}",
                f"{row.seconds.mean:.0f}",
                "-" if row.published is None else f"{row.published.accuracy:.2f}",
            )
        )
    if not any(row.published for row in table):
        lines = [line[:-1] for line in lines]
    return lines


def text_table(table: Sequence[Row]) -> str:
    """For a terminal; a rule between sparsities."""
    lines = cells(table)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text: list[str] = []
    before = None
    for line in lines:
        if line[0] != before:
            text += ["-" * (sum(widths) + 2 * (len(widths) - 1))] if before is not None else []
            before = line[0]
        first, name, *rest = (
            cell.ljust(w) if i == 1 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        text.append("  ".join([first, name, *rest]))
    return "\n".join(text)


def notes(records: Sequence[Record], table: Sequence[Row], epochs: int) -> list[str]:
    """What a reader of the table has to know."""
    finished = [record for record in records if record["status"] == "finished"]
    rules = dict.fromkeys(record["select"] for record in finished)
    found = [
        f"{epochs} epochs for every run; the same initial weights, batches and augmentation for every run of a seed. "
        "± is the standard deviation over seeds (n - 1).",
        "Test accuracy of " + "; ".join(RULES.get(rule, rule) for rule in rules) + ".",
        "FLOPs left: multiply-adds of the Linear and convolution layers by weights that are not zero.",
    ]
    rates: dict[str, dict[str, None]] = {}  # rule -> the methods that follow it
    for record in finished:
        rates.setdefault(_lr_rule(record), {})[record["method"]] = None
    if len(rates) > 1:
        said = "; ".join(f"{', '.join(names)}: {rule}" for rule, names in rates.items())
        found.append(f"Learning rates DIFFER: {said}. A [schedule] in the recipe puts all runs on one curve.")
    found += _marked(finished)
    for method in dict.fromkeys(record["method"] for record in finished):
        lengths = [record["epochs_trained"] for record in finished if record["method"] == method]
        if min(lengths) < epochs:
            found.append(
                f"{method} ended by itself before {epochs} epochs in some runs, the earliest at {min(lengths)}."
            )
    timed = [record["speed"] for record in finished if "speed" in record]
    if timed:
        found.append(
            f"Sparse speed: dense over sparse time of the converted network, {timed[0]['timing']}, on "
            f"{timed[0]['machine']}, one network after the other with nothing training beside. The dense time is the "
            "median over the networks that were timed in one call."
        )
    sources = dict.fromkeys(
        f"{row.published.source}{f' ({row.published.rule})' if row.published.rule else ''}"
        for row in table
        if row.published
    )
    if sources:
        found.append("Published: " + "; ".join(sources) + ". Not at this number of epochs, unless it says so.")
    for what in ("commit", "machine", "threads", "device"):
        several = list(dict.fromkeys(str(record[what]) for record in finished))
        if len(several) > 1:
            found.append(f"These runs are of more than one {what}: {', '.join(several)}.")
    return found


def _lr_rule(record: Record) -> str:
    """What moved the learning rate of a run."""
    recipe = record["recipe"]
    if recipe["schedule"]["kind"] != "method":
        return f"schedule.kind {recipe['schedule']['kind']!r}"
    if record["method"] == DENSE:
        return DenseTraining.lr_rule()
    user = recipe["method"].get("lr") == "user"
    return "constant" if user else methods.get(record["method"]).cls.lr_rule()


def _marked(finished: Sequence[Record]) -> list[str]:
    """A note for each mark of the table, naming the runs."""
    notes = []
    if off := [f"{_title(r)} ({100 * r['sparsity_measured']:.2f} %)" for r in finished if missed(r)]:
        notes.append(f"{MISSED} The zeros are not those asked for, by more than 0.05 points: {', '.join(off)}.")
    if gone := [f"{_title(r)} ({', '.join(dead(r))})" for r in finished if dead(r)]:
        notes.append(
            f"{DEAD} A layer has no weight left, so that the network gives one answer to all images unless a path "
            f"leads around it; its speed is worth nothing then: {'; '.join(gone)}."
        )
    if shaky := [_title(r) for r in finished if not r.get("speed", {}).get("steady", True)]:
        notes.append(
            f"{UNSTEADY} Timed twice, the dense network's own time was off the median by more than "
            f"{100 * SPREAD:.0f} %: something else ran on the machine, this speed is not to be trusted: "
            f"{', '.join(shaky)}."
        )
    return notes


def write(path: Path, published: Path = PAPERS) -> tuple[str, Path | None, str | None]:
    """table.txt, report.html and accuracy.png of the records of a comparison, made again from its files.

    Returns the table, where the page lies, and a sentence in its place where matplotlib is not installed.
    """
    store = Store(path)
    with store.reporting():
        return _write(store, published)


def _write(store: Store, published: Path) -> tuple[str, Path | None, str | None]:
    shared, records = store.shared(), list(store.records().values())
    points = beside(read(published), shared)
    table = rows(records, points)
    if not table:
        raise ValueError(f"{store.path} holds no finished run yet")
    remarks = notes(records, table, shared["epochs"])
    text = text_table(table)
    failed = [record for record in records if record["status"] == "failed"]
    lines = [text, "", *remarks, *(f"FAILED: {_title(record)}: {record['error']}" for record in failed)]
    run_folder.write_text(store / TABLE, "\n".join(lines) + "\n")
    try:
        from sparse_ops.train import compare_plots, plots
    except ImportError:
        return "\n".join(lines), None, "the report needs matplotlib: pip install 'sparse_ops[train]'"
    picture = compare_plots.accuracy(table, points)
    compare_plots.png(picture, store / PICTURE)
    sections = [
        _section("Accuracy against sparsity", "Error bars: one standard deviation.", plots.svg(picture)),
        _section(
            "What the zeros are worth",
            "The same accuracies over the arithmetic that is left and over the speed of the converted networks.",
            plots.svg(compare_plots.worth(table)),
        ),
        "<h2>How</h2>" + "".join(f'<p class="note">{html.escape(note)}</p>' for note in remarks),
        _runs(records),
    ]
    page = PAGE.format(
        title=html.escape(f"Comparison: {shared['network']['name']} on {shared['data']['name']}"),
        sentence=html.escape(sentence(table)),
        table=_html(cells(table)),
        sections="\n".join(sections),
        recipe=html.escape((store / SHARED).read_text()),
    )
    run_folder.write_text(store / REPORT, page)
    return "\n".join(lines), store / REPORT, None


def sentence(table: Sequence[Row]) -> str:
    """The best mean at each sparsity."""
    parts = []
    for sparsity in dict.fromkeys(row.sparsity for row in table if row.sparsity is not None):
        best = max((row for row in table if row.sparsity == sparsity), key=lambda row: row.accuracy.mean)
        marks = f" {best.marks}" if best.marks else ""
        parts.append(f"{best.method}{marks} {best.accuracy.percent()} % at {percent(sparsity)} zeros")
    dense = [row for row in table if row.method == DENSE]
    against = f"; dense {dense[0].accuracy.percent()} %" if dense else ""
    return f"Highest mean test accuracy{mark(table)}: " + ", ".join(parts) + against + "."


def _title(record: Record) -> str:
    share = "" if record["sparsity"] is None else f" {percent(record['sparsity'])}"
    return f"{record['method']}{share}, seed {record['seed']}"


def _section(title: str, note: str, svg: str) -> str:
    return f'<h2>{title}</h2><p class="note">{html.escape(note)}</p>\n{svg}'


def _html(lines: Sequence[Sequence[str]]) -> str:
    heading, *body = lines
    rows = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in heading) + "</tr>"]
    rows += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in body]
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _runs(records: Sequence[Record]) -> str:
    """Every run with its folder, or the sentence with which it has failed."""
    lines: list[Sequence[Any]] = [("run", "last epoch, %", "selected, %", "files or failure")]
    for record in records:
        if record["status"] == "finished":
            figures = [f"{100 * record[key]:.2f}" for key in ("accuracy_last_epoch", "accuracy")]
            lines.append((_title(record), *figures, f"runs/{record['folder']}"))
        else:
            lines.append((_title(record), "-", "-", f"failed: {record['error']}"))
    return f"<h2>Runs</h2><details><summary>each of {RECORDS}</summary>{_html(lines)}</details>"
