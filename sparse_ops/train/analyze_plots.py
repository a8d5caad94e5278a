"""The pictures of an analysis: survivors over the epochs, by layer and by magnitude, and accuracy by class."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_ops.train.analyze import Stage
from sparse_ops.train.plots import DENSE, METHOD, ONESHOT, integers, phases, styled, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS = ((METHOD, "-", "o"), (ONESHOT, "--", "s"), (DENSE, ":", "D"))
_MAP: Any = {"cmap": "cividis", "interpolation": "nearest", "aspect": "auto"}


def _looks(stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    found = {}
    for i, stage in enumerate(stages):
        colour, line, marker = _LOOKS[i % len(_LOOKS)]
        found[stage.name] = {"color": colour, "ls": line, "marker": marker}
    return found


def _line(axes: "Axes", x: Sequence[float], y: Sequence[float], look: dict[str, Any], **more: Any) -> None:
    """A line, with points where there are few."""
    style = look | ({} if len(x) <= 12 else {"marker": "none"})
    axes.plot(x, y, lw=1.6, ms=4, **style, **more)


def _named_phases(axes: "Axes", stage: Stage) -> None:
    epochs = zip(stage.epochs, stage.phases, strict=True)
    phases(axes, [{"epoch": epoch, "phase": phase} for epoch, phase in epochs], room=44)


@styled
def overlaps(stages: Sequence[Stage]) -> "Figure":
    """Survivors in common with the last epoch's, and with the previous epoch's, with the first stage's phases."""
    figure, (left, right) = subplots(3.9, 1, 2, sharey=True)
    for name, look in _looks(stages).items():
        stage = next(s for s in stages if s.name == name)
        _line(left, stage.epochs, [100 * share for share in stage.overlap_last], look, label=name)
        steps = [(e, 100 * s) for e, s in zip(stage.epochs, stage.overlap_previous, strict=True) if s is not None]
        _line(right, [e for e, _ in steps], [share for _, share in steps], look)
    for axes, text in ((left, "with the last epoch (%)"), (right, "with the epoch before (%)")):
        axes.axhline(100 * (1 - stages[0].sparsity), color="#009E73", lw=1.2, ls="-.", label="two random sets")
        axes.set_ylim(0, 103)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"in common {text}")
        axes.xaxis.set_major_locator(integers())
        _named_phases(axes, stages[0])
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


@styled
def matrices(stages: Sequence[Stage]) -> "Figure":
    """Survivors in common of every two epochs, a square for each network."""
    figure, grid = subplots(0.6 + 8.4 / max(2, len(stages)), 1, len(stages), squeeze=False)
    image: Any = None
    for axes, stage in zip(grid[0], stages, strict=True):
        first, last = stage.matrix_epochs[0] - 0.5, stage.matrix_epochs[-1] + 0.5
        extent = (first, last, last, first)
        image = axes.imshow(100 * np.array(stage.matrix), vmin=0, vmax=100, extent=extent, **_MAP)
        axes.set_title(stage.name, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(visible=False)
        axes.set_box_aspect(1)
        axes.set_anchor("W")
        axes.xaxis.set_major_locator(integers())
        axes.yaxis.set_major_locator(integers())
    grid[0][0].set_ylabel("epoch")
    figure.colorbar(image, ax=list(grid[0]), label="in common (%)", shrink=0.8)
    return figure


@styled
def layers(stages: Sequence[Stage]) -> "Figure":
    """Density of survivors by layer: over the first network's epochs, and at the end of each."""
    main = stages[0]
    figure, (left, right) = subplots(1.6 + 0.26 * len(main.layers), 1, 2, sharey=True)
    with np.errstate(divide="ignore"):
        share = np.log10(100 * np.array(main.kept) / np.array(main.weights)[:, None])
    least = math.floor(min(share[np.isfinite(share)].min(), 0))
    extent = (main.epochs[0] - 0.5, main.epochs[-1] + 0.5, len(main.layers) - 0.5, -0.5)
    image = left.imshow(np.maximum(share, least), vmin=least, vmax=2, extent=extent, **_MAP)
    ticks = list(range(least, 3))
    bar = figure.colorbar(image, ax=left, location="top", label=f"{main.name}: survivors (% of the layer)", shrink=0.9)
    bar.set_ticks(ticks, labels=[f"{10.0**t:g}" for t in ticks])
    left.grid(visible=False)
    left.set_yticks(range(len(main.layers)), main.layers, fontsize=8.5)
    left.set_xlabel("epoch")
    left.xaxis.set_major_locator(integers())
    for i, (name, look) in enumerate(_looks(stages).items()):
        stage = next(s for s in stages if s.name == name)
        shares = [100 * kept[-1] / n for kept, n in zip(stage.kept, stage.weights, strict=True)]
        rows = [row + 0.22 * (i - (len(stages) - 1) / 2) for row in range(len(shares))]
        right.plot([max(s, 10.0**least) for s in shares], rows, look["marker"], color=look["color"], label=name, ms=6)
    right.axvline(100 * (1 - main.sparsity), color="#009E73", lw=1.2, ls="-.", label="all layers")
    right.set_xscale("log")
    right.set_xlim(10.0**least * 0.9, 130)
    right.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    right.set_xlabel("survivors of the last epoch (% of the layer, log scale)")
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8.5)
    return figure


@styled
def magnitudes(stages: Sequence[Stage]) -> "Figure":
    """Histograms of log10 |w| over the epochs, with the least surviving magnitude."""
    from matplotlib.colors import LogNorm

    figure, grid = subplots(3.8, 1, len(stages), squeeze=False, sharey=True)
    live = np.flatnonzero(sum(np.sum(stage.counts, 0) for stage in stages))
    first, last = int(live.min()), int(live.max()) + 1
    peak = max(np.max(stage.counts) for stage in stages)
    image: Any = None
    for axes, stage in zip(grid[0], stages, strict=True):
        counts = np.array(stage.counts, dtype=float)[:, first:last].T
        low, high = (stage.lowest + edge / stage.bins_per_decade for edge in (first, last))
        extent = (stage.epochs[0] - 0.5, stage.epochs[-1] + 0.5, low, high)
        counts[counts == 0] = np.nan
        image = axes.imshow(counts, norm=LogNorm(1, peak), origin="lower", extent=extent, **_MAP)
        line = [math.log10(threshold) if threshold > 0 else math.nan for threshold in stage.thresholds]
        axes.plot(stage.epochs, line, color="#D55E00", lw=1.8, marker="o" if len(line) < 3 else "none")
        axes.set_ylim(low, high)
        axes.set_title(stage.name, fontsize=10)
        axes.grid(visible=False)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(integers())
        axes.yaxis.set_major_locator(integers())
        axes.yaxis.set_major_formatter(lambda y, _: f"$10^{{{y:.0f}}}$")
    grid[0][0].set_ylabel("magnitude |w|")
    figure.colorbar(image, ax=list(grid[0]), label="weights per tenth of a decade")
    return figure


@styled
def classes(stages: Sequence[Stage]) -> "Figure":
    """Accuracy of each class at the last look, and best, mean and worst class over the epochs."""
    looked = [stage for stage in stages if stage.looked]
    figure, (left, right) = subplots(4.2, 1, 2)
    looks = _looks(stages)
    final = {stage.name: 100 * np.array(stage.right[-1]) / np.maximum(stage.images, 1) for stage in looked}
    order = np.argsort(-final[looked[-1].name], kind="stable")  # the dense network is the last that was trained
    for i, stage in enumerate(looked):
        look = looks[stage.name]
        x = np.arange(len(order)) + 0.16 * (i - (len(looked) - 1) / 2)
        left.plot(x, final[stage.name][order], look["marker"], color=look["color"], label=stage.name)
        shares = 100 * np.array(stage.right) / np.maximum(stage.images, 1)
        mean = 100 * np.array(stage.right).sum(1) / max(1, sum(stage.images))
        _line(right, stage.looked, list(mean), look)
        right.fill_between(stage.looked, shares.min(1), shares.max(1), color=look["color"], alpha=0.12, lw=0)
        right.plot(stage.looked, shares.min(1), color=look["color"], lw=0.9, ls=look["ls"])
    left.set_xlabel("class")
    left.set_ylabel("test accuracy (%)")
    if len(order) <= 20:
        left.set_xticks(range(len(order)), [str(i) for i in order])
    else:
        left.set_xticks([])
        left.set_xlabel(f"{len(order)} classes")
    right.set_xlabel("epoch")
    right.set_ylabel("best, mean and worst class (%)")
    right.xaxis.set_major_locator(integers())
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure
