"""The report's pictures as inline SVG, drawn by matplotlib; one function per picture."""

import io
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common colour blindness; line styles differ as well.
DENSE, METHOD, ONESHOT, THRESHOLD = "#555555", "#0072B2", "#D55E00", "#009E73"
_STYLE: Any = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "font.size": 10,
    "legend.frameon": False,
    "svg.hashsalt": "sparse_ops",  # the same picture has the same bytes
}
_SMALLEST_ERROR = 0.1  # %; an accuracy above 99.9 % is drawn there


def svg(figure: "Figure") -> str:
    """The figure as an <svg> element without prolog, metadata, external reference or date."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    markup = text.getvalue()
    markup = markup[markup.index("<svg") :]
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup, flags=re.DOTALL)
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", markup).replace("xlink:href", "href")


def subplots(height: float, rows: int = 1, columns: int = 1, **options: Any) -> "tuple[Figure, Any]":
    """Figure and axes made without pyplot, so that no state or window is left behind."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def styled(draw: Any) -> Any:
    """Run a drawing function under the report's style."""

    def within(*arguments: Any) -> "Figure":
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*arguments)

    within.__doc__ = draw.__doc__
    return within


@styled
def training(curves: dict[str, list[dict[str, Any]]], method: str) -> "Figure":
    """Accuracy and, where a penalty grew, lambda over the epochs; curves maps a stage's title to its records."""
    if any(r.get("lambda") for records in curves.values() for r in records):
        figure, (top, bottom) = subplots(5.4, 2, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    else:
        figure, top = subplots(4.0)
        bottom = None
    looks = {method: (METHOD, "-"), "one-shot": (ONESHOT, "--"), "dense": (DENSE, ":")}
    for title, records in curves.items():
        colour, style = looks[title]
        tested = [r for r in records if r["test_accuracy"] is not None]
        epochs = [r["epoch"] for r in tested]
        error = [max(100 - 100 * r["test_accuracy"], _SMALLEST_ERROR) for r in tested]
        top.plot(epochs, error, style, color=colour, lw=1.6, label=f"{title}: test")
        pruned = [r for r in records if r.get("pruned_accuracy") is not None and r["phase"] == "regularize"]
        if pruned:
            x = [r["epoch"] for r in pruned]
            y = [max(100 - 100 * r["pruned_accuracy"], _SMALLEST_ERROR) for r in pruned]
            top.plot(x, y, "o", ms=3.5, color=colour, mfc="white", label=f"{title}: pruned copy, training data")
        penalty = [r for r in records if r.get("lambda")]
        if not penalty:
            continue
        dot = {"marker": "o", "ms": 3} if len(penalty) == 1 else {}  # a line of one point is not seen
        x, y = [r["epoch"] for r in penalty], [r["lambda"] for r in penalty]
        bottom.plot(x, y, style, color=colour, lw=1.6, **dot)
    ticks = [100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1]
    top.set_yscale("log")
    top.set_ylim(100, _SMALLEST_ERROR * 0.9)
    top.set_yticks(ticks, [f"{100 - t:g}" for t in ticks])
    top.minorticks_off()
    top.set_ylabel("accuracy (%), scale of log error")
    phases(top, curves.get(method, []))
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    lowest = top
    if bottom is not None:
        lowest = bottom
        bottom.set_yscale("log")
        bottom.set_ylabel("lambda")
    lowest.xaxis.set_major_locator(integers())
    lowest.set_xlabel("epoch")
    return figure


def phases(axes: "Axes", records: list[dict[str, Any]], room: int = 95) -> None:
    """Vertical lines where a phase of the method begins, with its name above the picture where there is room for it.

    room: letters that fit above the whole picture.
    """
    begins = [r["epoch"] for i, r in enumerate(records) if i == 0 or records[i - 1]["phase"] != r["phase"]]
    for begin in begins:
        if begin > records[0]["epoch"]:
            axes.axvline(begin - 0.5, color="#999999", lw=0.8)
        end = min([b for b in begins if b > begin], default=records[-1]["epoch"] + 1)
        name = records[begin - records[0]["epoch"]]["phase"]
        if (end - begin) * room < (len(name) + 1) * len(records):
            continue
        place: Any = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom", "fontsize": 9}
        axes.annotate(name, ((begin + end) / 2 - 0.5, 1.01), color="#444444", **place)


@styled
def magnitudes(histograms: dict[str, dict[str, Any]], method: str) -> "Figure":
    """How many weights have which magnitude, with the threshold of the budget, for dense and regularised weights."""
    figure, axes = subplots(3.4)
    looks = {method: (METHOD, 0.45), "dense": (DENSE, 0.3)}
    peak, first, last = 1, 10**9, 0
    for title, h in histograms.items():
        colour, alpha = looks[title]
        edges = [h["lowest"] + i / h["bins_per_decade"] for i in range(len(h["counts"]) + 1)]
        name = "dense network" if title == "dense" else f"{title}, before pruning"
        axes.stairs(h["counts"], edges, fill=True, color=colour, alpha=alpha)
        axes.stairs(h["counts"], edges, color=colour, lw=1.2, label=name)
        threshold = h["threshold"]
        if threshold > 0:  # else more weights are zero already than the budget prunes
            axes.axvline(math.log10(threshold), color=colour, lw=1.5, ls="--", label=f"its threshold, {threshold:.1e}")
        live = [i for i, count in enumerate(h["counts"]) if count]
        peak = max(peak, *h["counts"])
        first, last = min([first, *live[:1]]), max([last, *live[-1:]])
    h = next(iter(histograms.values()))
    if last < first:  # every weight is zero
        first, last = 0, len(h["counts"])
        axes.set_ylim(0, 1)
    else:
        axes.set_yscale("log")
        axes.set_ylim(0.7, 3 * peak)
    axes.set_xlim(h["lowest"] + first / h["bins_per_decade"] - 0.2, h["lowest"] + last / h["bins_per_decade"] + 0.3)
    axes.set_xlabel("magnitude |w|")
    axes.set_ylabel("weights per tenth of a decade")
    axes.xaxis.set_major_locator(integers())
    axes.xaxis.set_major_formatter(lambda x, _: f"$10^{{{x:.0f}}}$")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2 * len(histograms), fontsize=8.5)
    return figure


def integers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, steps=[1, 2, 5, 10])


@styled
def density(layers: list[dict[str, Any]], total: float) -> "Figure":
    """Share of live weights per layer as points on a log scale; total is the density of all layers together.

    A layer without live weights, which a log scale has no place for, is an open triangle at the left edge.
    """
    figure, axes = subplots(1.1 + 0.27 * len(layers))
    values = [100 * layer["nonzeros"] / layer["weights"] for layer in layers]
    least = min([v for v in [*values, 100 * total] if v > 0], default=2.0)  # nothing is left: two empty decades
    floor = 10.0 ** math.floor(math.log10(0.9 * least))  # a whole decade, with room for the least point
    rows = range(len(layers))
    if total > 0:
        axes.axvline(100 * total, color=THRESHOLD, lw=1.5, ls="--", label=f"all layers: {_share(100 * total)} %")
    live = [(v, row) for v, row in zip(values, rows, strict=True) if v > 0]
    if live:
        axes.plot([v for v, _ in live], [row for _, row in live], "o", color=METHOD, ms=7, label="one layer")
    dead = [row for v, row in zip(values, rows, strict=True) if v == 0]
    if dead:
        axes.plot(
            [floor] * len(dead), dead, "<", color=METHOD, mfc="white", ms=8, clip_on=False, label="no live weight"
        )
    axes.set_yticks(rows, [f"{layer['name']}  {'x'.join(map(str, layer['shape']))}" for layer in layers], fontsize=8.5)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(floor, 130)
    right = axes.secondary_yaxis("right")
    right.spines["right"].set_visible(False)
    texts = [
        f"{_share(v)} %: {layer['nonzeros']:,} of {layer['weights']:,}" for v, layer in zip(values, layers, strict=True)
    ]
    right.set_yticks(rows, texts, fontsize=8.5)
    right.tick_params(length=0)
    ticks = [10.0**e for e in range(round(math.log10(floor)), 3)]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xlabel("live weights (% of the layer, log scale)")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=9, borderaxespad=0.2, ncols=3)
    return figure


@styled
def cost(summary: dict[str, Any]) -> "Figure":
    """Time of a batch and bytes of the file, dense against sparse."""
    figure, (left, right) = subplots(2.0, 1, 2)
    for axes, values, unit, title in (
        (left, (summary["dense_ms"], summary["sparse_ms"]), "ms", "time of a batch of 64 (ms)"),
        (right, (summary["dense_bytes"] / 1e3, summary["sparse_bytes"] / 1e3), "kB", "model file (kB)"),
    ):
        axes.barh(["dense", "sparse"], values, color=[DENSE, METHOD], height=0.6)
        axes.invert_yaxis()
        ratio = values[0] / values[1]
        axes.annotate(f" {_short(values[0])} {unit}", (values[0], 0), va="center")
        relation = f"{ratio:.1f}x less" if ratio >= 1 else f"{1 / ratio:.1f}x more"
        axes.annotate(f" {_short(values[1])} {unit}, {relation}", (values[1], 1), va="center")
        axes.set_xlim(0, 1.45 * max(values))
        axes.set_xlabel(title)
        axes.grid(visible=False, axis="y")
    return figure


def _share(value: float) -> str:
    """Two digits, and 100 without an exponent."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _short(value: float) -> str:
    """Three digits, and all digits of what is larger."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
