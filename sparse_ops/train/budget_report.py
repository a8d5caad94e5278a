"""The page of `sparse-ops budget`: figures against the budget, drawn and in a table, and what they say."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_ops.train import budget, report, run_folder
from sparse_ops.train.budget import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def sentences(points: Sequence[Point]) -> list[str]:
    """What the rule says of each budget."""
    words = {True: "under-trained", False: "not under-trained", None: "cannot be said"}
    lines = []
    for point, change in zip(points, budget.slopes(points), strict=True):
        answer, why = budget.verdict(point, change)
        mark = "" if answer is None else point.mark
        lines.append(f"budget x{point.budget:g} ({point.epochs:g} epochs): {words[answer]}{mark}: {why}")
    return lines


def text(points: Sequence[Point]) -> str:
    """Table and sentences for a terminal."""
    tables = [report.aligned(budget.table(points))]
    if len(points) > 1:
        tables.append(report.aligned(budget.changes(points)))
    return "\n\n".join([*tables, "\n".join(sentences(points))])


def write(paths: Sequence[Path], out: Path) -> tuple[list[Point], Path]:
    """Read the runs, write the page."""
    points, summary = budget.read(paths)
    try:
        from sparse_ops.train import plots

        figure = plots.svg(draw(points))
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        raise ValueError("the report needs matplotlib: pip install 'sparse_ops[train]'") from None
    method, data = summary["recipe"]["method"]["name"], summary["recipe"]["data"]["name"]
    title = f"Budgets: {report.named(method)}, {summary['recipe']['network']['name']} on {data}"
    train, held = (summary["fit"]["method"][key] for key in ("train", "held_out"))
    note = (
        f"Of {train['images']:,.0f} training images without augmentation, in eval mode, and of {held['images']:,.0f} "
        f"{summary['fit']['method']['held_out_are']} images. Entropies are means over the predictions, in nats. "
        "A budget of several runs shows their mean."
    )
    rule = budget.__doc__ or ""
    sections = [
        f'<h2>What longer training changes</h2><p class="note">{html.escape(note)}</p>\n{figure}',
        report.html_table(budget.changes(points)) if len(points) > 1 else "",
        f"<h2>The rule</h2><p>{html.escape(rule.split(chr(10) * 2, 1)[1].strip())}</p>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in sentences(points)) + "</ul>",
    ]
    page = report.PAGE.format(
        title=html.escape(title),
        sentence=html.escape(sentences(points)[-1]),
        table=report.html_table(budget.table(points)),
        sections="\n".join(sections),
        recipe=html.escape((paths[0] / run_folder.RECIPE).read_text()),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_text(out, page)
    return points, out


def draw(points: Sequence[Point]) -> "Figure":
    """Training loss, entropies and accuracy of dense and sparse against the budget, on a scale of doublings."""
    from sparse_ops.train import plots

    return plots.styled(_draw)(points)


def _draw(points: Sequence[Point]) -> "Figure":
    from sparse_ops.train import plots

    figure, panels = plots.subplots(5.6, 2, 2, sharex=True)
    titles = {
        "train_loss": "training loss",
        "train_entropy": "training entropy (nats)",
        "entropy": f"{points[0].held_out} entropy (nats)",
        "accuracy": f"{points[0].held_out} accuracy (%)",
    }
    answers = [budget.verdict(p, change)[0] for p, change in zip(points, budget.slopes(points), strict=True)]
    for axes, (key, title) in zip(panels.flat, titles.items(), strict=True):
        scale = 100 if key == "accuracy" else 1
        looks: Any = (("dense", plots.DENSE, ":", "s"), ("sparse", plots.METHOD, "-", "o"))
        for name, colour, line, marker in looks:
            found = [(p.budget, scale * getattr(fit, key)) for p in points if (fit := getattr(p, name)) is not None]
            axes.plot(*zip(*found, strict=True), line, color=colour, marker=marker, ms=5, label=name) if found else None
        hollow = [(p.budget, scale * getattr(p.sparse, key)) for p, a in zip(points, answers, strict=True) if a]
        if hollow:
            axes.plot(
                *zip(*hollow, strict=True), "o", color=plots.METHOD, mfc="white", ms=6, label="sparse, under-trained"
            )
        axes.set_ylabel(title)
        if key == "train_loss":
            _log_scale(axes, [getattr(f, key) for p in points for f in (p.sparse, p.dense) if f is not None])
        axes.set_xscale("log", base=2)
        budgets = [p.budget for p in points]
        axes.set_xticks(budgets, [f"x{b:g}" for b in budgets])
        axes.minorticks_off()
        pad = 2 ** (0.08 * max(1.0, math.log2(budgets[-1] / budgets[0])))
        axes.set_xlim(budgets[0] / pad, budgets[-1] * pad)
    for axes in panels[1]:
        axes.set_xlabel("budget (times the recipe's epochs)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _log_scale(axes: "Axes", values: Sequence[float]) -> None:
    """A log scale labelled at 1, 2 and 5 of each decade; a linear one stays where a value is 0."""
    low, high = min(values) / 1.3, max(values) * 1.3
    if low > 0:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        marks = (1, 2, 5) if high / low < 1000 else (1,)
        ticks = [mark * 10.0**decade for decade in decades for mark in marks]
        axes.set_yscale("log")
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_ylim(low, high)
