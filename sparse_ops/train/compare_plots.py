"""The pictures of a comparison: accuracy against sparsity, against the arithmetic left, against measured speed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_ops.train.compare import DENSE, percent
from sparse_ops.train.compare_report import Row, mark
from sparse_ops.train.plots import styled, subplots
from sparse_ops.train.published import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, brown in the place of its yellow, which is not seen on white; markers and lines differ too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C5A2B")
_MARKERS = "osD^vP*Xph"
_LINES = ("-", "--", "-.", ":")
_ERRORS = (95, 90, 80, 70, 60, 50, 40, 30, 20, 15, 10, 8, 7, 6, 5, 4, 3, 2.5, 2, 1.5, 1, 0.7, 0.5, 0.3, 0.2, 0.1)
_SMALLEST_ERROR = 0.1  # %; an accuracy above 99.9 % is drawn there
_GREY = "#555555"


def _looks(table: Sequence[Row]) -> dict[str, dict[str, Any]]:
    methods = list(dict.fromkeys(row.method for row in table if row.method != DENSE))
    return {
        method: {
            "color": _COLOURS[i % len(_COLOURS)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": _LINES[(i + 2 * (i // len(_COLOURS))) % len(_LINES)],
        }
        for i, method in enumerate(methods)
    }


def _error(accuracy: float) -> float:
    """100 minus percent, where the axis can show it."""
    return max(100 - accuracy, _SMALLEST_ERROR)


def _errors_axis(axes: "Axes", values: Sequence[float], marked: str) -> None:
    """A log scale of the error, labelled with accuracies, that ends just outside of the values."""
    high, low = max(values), min(values)
    margin = max((high / low) ** 0.07, 1.02)
    axes.set_yscale("log")
    axes.set_ylim(min(high * margin, 100), low / margin)
    shown = [e for e in _ERRORS if low / margin <= e <= high * margin]
    if len(shown) < 4:  # the values lie close together: whole steps of accuracy between them
        step = next(s for s in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if (high * margin - low / margin) / s <= 8)
        first = int(low / margin / step) + 1
        shown = [e for i in range(10) if (e := round((first + i) * step, 6)) <= high * margin]
    apart: list[float] = []
    for e in shown:  # labels need room: a twentieth of the axis
        if not apart or apart[-1] / e > (high * margin**2 / low) ** (1 / 20):
            apart.append(e)
    if len(shown) >= 4 and shown[0] > shown[-1]:
        shown = apart
    axes.set_yticks(shown, [f"{100 - e:g}" for e in shown])
    axes.minorticks_off()
    axes.set_ylabel(f"test accuracy (%){marked}, scale of log error")


def _bars(row: Row) -> tuple[float, float, float]:
    """Error of the mean, and how far the bar reaches towards less and towards more error."""
    mean, deviation = 100 * row.accuracy.mean, 100 * (row.accuracy.deviation or 0.0)
    return _error(mean), _error(mean) - _error(mean + deviation), _error(mean - deviation) - _error(mean)


def _left(row: Row) -> float:
    """Share of weights left, as measured: not every method keeps its budget to the weight."""
    return max(1 - row.zeros.mean, 1e-6)


def _edge(values: Sequence[float]) -> float:
    """Where a share of nothing is drawn on a log scale: left of all others."""
    return min((v for v in values if v > 0), default=1.0) / 2


def _told(axes: "Axes", x: float, y: float, text: str) -> None:
    """A word above a point."""
    axes.annotate(text, (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=8, color=_GREY)


@styled
def accuracy(table: Sequence[Row], points: Sequence[Point]) -> "Figure":
    """Mean and deviation of each method over the share of weights left (log), with the published points beside."""
    figure, axes = subplots(5.2)
    axes.set_xscale("log")  # before any point: a single one has no range on another scale
    looks = _looks(table)
    values = [edge for row in table for e, down, up in [_bars(row)] for edge in (e - down, e + up)]
    sparsities = sorted({row.sparsity for row in table if row.sparsity is not None})
    densities = [1 - s for s in sparsities]
    measured = densities + [
        min(max(_left(row), min(densities) / 4), max(densities) * 4) for row in table if row.sparsity is not None
    ]
    room = max((max(measured) / min(measured)) ** 0.08, 1.25)
    for i, (method, look) in enumerate(looks.items()):
        mine = [row for row in table if row.method == method and row.sparsity is not None]
        aside = 1.018 ** (i - (len(looks) - 1) / 2)  # so that the bars of two methods do not hide each other
        # one that has missed its budget by far stands at the edge, and does not press all others together
        x = [min(max(_left(row), min(measured)), max(measured)) / aside for row in mine]
        for place, row in zip(x, mine, strict=True):
            if row.marks:
                _told(axes, place, _bars(row)[0], f"{100 * row.zeros.mean:.4g} % {row.marks}")
        bars = [_bars(row) for row in mine]
        axes.errorbar(
            x,
            [e for e, _, _ in bars],
            yerr=[[down for _, down, _ in bars], [up for _, _, up in bars]],
            label=method,
            lw=1.5,
            ms=6,
            capsize=3,
            elinewidth=1.2,
            **look,
        )
        ends = min(measured) / room, max(measured) * room
        theirs = [p for p in points if p.method == method and ends[0] < 1 - p.sparsity < ends[1]]
        if theirs:
            y = [_error(p.accuracy) for p in theirs]
            axes.plot(
                [(1 - p.sparsity) / aside for p in theirs],
                y,
                look["marker"],
                color=look["color"],
                mfc="white",
                mew=1.5,
                ms=9,
                label=f"{method}, published",
            )
            values += y
    dense = [row for row in table if row.method == DENSE]
    if dense:
        e, down, up = _bars(dense[0])
        axes.axhline(e, color=_GREY, lw=1.3, ls=(0, (1, 1.5)), label="dense")
        axes.axhspan(e - down, e + up, color=_GREY, alpha=0.13, lw=0)
    axes.set_xlim(max(measured) * room, min(measured) / room)
    axes.set_xticks(densities, [f"{percent(s)}\n1 of {_short(1 / (1 - s))}" for s in sparsities])
    axes.minorticks_off()
    axes.set_xlabel("zeros among the prunable weights, and how many weights are left (log scale)")
    _errors_axis(axes, values, mark(table))
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = sorted(handles, key=lambda name: (name not in looks, name == DENSE))
    figure.legend([handles[n] for n in names], names, loc="outside lower center", ncols=5, fontsize=9)
    return figure


@styled
def worth(table: Sequence[Row]) -> "Figure":
    """Accuracy over the share of multiply-adds left, and over the speed of the converted network."""
    from matplotlib.ticker import NullLocator

    figure, (left, right) = subplots(4.0, 1, 2, sharey=True)
    left.set_xscale("log")
    looks = _looks(table)
    shares = [100 * row.flops_left.mean for row in table if row.method != DENSE] or [100.0]
    edge = _edge(shares)
    for method, look in looks.items():
        mine = [row for row in table if row.method == method]
        y = [_bars(row)[0] for row in mine]
        style = look | {"linestyle": look["linestyle"], "lw": 1.2, "ms": 6}
        x = [100 * row.flops_left.mean or edge for row in mine]
        left.plot(x, y, label=method, **style)
        timed = [(row.speedup.mean, e) for row, e in zip(mine, y, strict=True) if row.speedup is not None]
        right.plot([speed for speed, _ in timed], [e for _, e in timed], **style)
    values = [_bars(row)[0] for row in table]
    dense = [row for row in table if row.method == DENSE]
    if dense:
        for axes in (left, right):
            axes.axhline(_bars(dense[0])[0], color=_GREY, lw=1.3, ls=(0, (1, 1.5)))
    found, shares = shares, [share or edge for share in shares]
    left.set_xlim(max(shares) * 1.25, min(shares) / 1.25)
    ticks = [digit * 10.0**e for e in range(-3, 3) for digit in (1, 2, 5)]
    shown = [t for t in ticks if min(shares) / 1.25 <= t <= max(shares) * 1.25]
    if len(shown) < 2:
        shown = sorted({float(f"{s:.2g}") for s in (min(shares), max(shares))})
    if 0 in found:
        shown = [edge, *(t for t in shown if t > 1.2 * edge)]
    left.set_xticks(shown, ["0" if 0 in found and t == edge else f"{t:g}" for t in shown], minor=False)
    left.xaxis.set_minor_locator(NullLocator())
    left.set_xlabel("multiply-adds left (%, log scale)")
    right.set_xlabel("speed of the converted network (dense = 1)")
    speeds = [row.speedup.mean for row in table if row.speedup]
    if speeds:
        right.axvline(1, color=_GREY, lw=1.0)
        room = 0.06 * (max(*speeds, 1) - min(*speeds, 1)) + 0.02
        right.set_xlim(min(*speeds, 1) - room, max(*speeds, 1) + room)
    else:
        right.text(0.5, 0.5, "not timed", transform=right.transAxes, ha="center", color=_GREY)
        right.set_xticks([])
    _errors_axis(left, values, mark(table))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9)
    return figure


def png(figure: "Figure", path: Path) -> None:
    """Write the figure as a PNG, beside and renamed."""
    partial = path.with_name(path.name + ".part")
    figure.savefig(partial, format="png", dpi=150, metadata={"Software": None})
    partial.replace(path)


def _short(value: float) -> str:
    """10 of 9.999..., 3.3 of 3.33."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"
