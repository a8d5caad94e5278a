"""What a training did to the largest weights: how they change between epochs, where they lie, what classes lose.

The questions are those of Glandorf, Kaiser, Rosenhahn (ICCVW 2023, arXiv 2308.07163): how early the weights that
survive are found, and how the magnitudes part into those that stay and those that go.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ops.train import run_folder
from sparse_ops.train.report import PAGE
from sparse_ops.train.run_folder import RunFolder

FOLDER, PAGE_NAME, NUMBERS = run_folder.ANALYSIS
MATRIX = 48  # at most so many epochs against each other
_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class Stage:
    """One trained network over its epochs (E), each before the method prunes at its end.

    overlap_last, overlap_previous: share of an epoch's surviving weights that survive in the last, in the previous one.
    matrix: the same between the epochs `matrix_epochs`. kept: (layers, E) survivors of each layer. counts: (E, bins) of
    log10 |w|. right: (looks, classes) right answers in the epochs `looked`, of `images` test images of each class.
    """

    name: str
    epochs: list[int]
    phases: list[str]
    layers: list[str]
    shapes: list[list[int]]
    weights: list[int]
    kept: list[list[int]]
    overlap_last: list[float]
    overlap_previous: list[float | None]
    matrix_epochs: list[int]
    matrix: list[list[float]]
    lowest: float
    bins_per_decade: int
    counts: list[list[int]]
    thresholds: list[float]
    looked: list[int]
    right: list[list[int]]
    images: list[int]

    @property
    def sparsity(self) -> float:
        """Share of weights that do not survive."""
        return 1 - sum(layer[-1] for layer in self.kept) / sum(self.weights)


def overlap(a: np.ndarray, b: np.ndarray, padding: int) -> int:
    """How many bits two packed masks have in common, without the ones that fill up their last bytes."""
    return int(_ONES[a & b].sum(dtype=np.int64)) - padding


def read(run: Path) -> list[Stage]:
    """The first fold's networks. ValueError where nothing was recorded, or a record is damaged."""
    stages = sorted({path.parent for path in (run / FOLDER).glob("fold0-*/*.pt")}, key=_age)
    if not stages:
        raise ValueError(f"{run} holds no records to analyze; train with --set training.analyze=true")
    return [_stage(path) for path in stages]


def _age(path: Path) -> int:
    """The stages in the order in which they were trained."""
    return min(file.stat().st_mtime_ns for file in path.glob("*.pt"))


def _stage(path: Path) -> Stage:
    states = [run_folder.load_state(file) for file in sorted(path.glob("*.pt"))]
    first = states[0]
    if not first["masks"]:
        raise ValueError(f"{path}: nothing was to be pruned, the sparsity is 0")
    bits = [np.concatenate([mask.numpy() for mask in state["masks"].values()]) for state in states]
    numels = [int(np.prod(shape)) for shape in first["shapes"].values()]
    padding = sum(-n % 8 for n in numels)
    sizes = [sum(state["kept"].values()) for state in states]

    def common(i: int, j: int) -> float:
        return overlap(bits[i], bits[j], padding) / sizes[i] if sizes[i] else 1.0

    last = len(states) - 1
    some = sorted({round(i * last / max(1, MATRIX - 1)) for i in range(MATRIX)})
    looked = [state for state in states if state["right"] is not None]
    return Stage(
        path.name.partition("-")[2],
        [state["epoch"] for state in states],
        [state["phase"] for state in states],
        [name.removesuffix(".weight") for name in first["shapes"]],
        list(first["shapes"].values()),
        numels,
        [[state["kept"][name] for state in states] for name in first["shapes"]],
        [common(i, last) for i in range(len(states))],
        [None, *(common(i, i - 1) for i in range(1, len(states)))],
        [states[i]["epoch"] for i in some],
        [[common(i, j) for j in some] for i in some],
        first["magnitudes"]["lowest"],
        first["magnitudes"]["bins_per_decade"],
        [state["magnitudes"]["counts"] for state in states],
        [state["threshold"] for state in states],
        [state["epoch"] for state in looked],
        [state["right"] for state in looked],
        looked[0]["images"] if looked else [],
    )


def write(run: Path) -> Path:
    """analysis.html and analysis.json of a run; returns where the page lies."""
    stages = read(run)
    try:
        from sparse_ops.train import analyze_plots
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        raise ValueError("the analysis needs matplotlib: pip install 'sparse_ops[train]'") from None
    folder = RunFolder(run)
    folder.write_json(NUMBERS, {stage.name: vars(stage) for stage in stages})
    recipe = (folder / run_folder.RECIPE).read_text()
    share = f"{100 * stages[0].sparsity:.4g} %"
    sections = [
        _section(
            "Survivors from epoch to epoch",
            f"The survivors of an epoch are the weights that a budget of {share} zeros leaves by magnitude. Left: how "
            "many of them are among the last epoch's; right: among the epoch's before. Two random sets would share "
            f"{100 * (1 - stages[0].sparsity):.3g} %.",
            analyze_plots.overlaps(stages),
        ),
        _section("Every epoch against every other", "Share of survivors in common.", analyze_plots.matrices(stages)),
        _section(
            "Where survivors sit",
            "Share of a layer's weights that are among the survivors.",
            analyze_plots.layers(stages),
        ),
        _section(
            "Magnitudes over time",
            "How many weights (per tenth of a decade) have which magnitude; the line is the least surviving magnitude. "
            "Weights that are zero are not drawn.",
            analyze_plots.magnitudes(stages),
        ),
    ]
    if any(stage.looked for stage in stages):
        sections.append(
            _section(
                "Accuracy by class",
                "Test images. Left: the last look, classes in the order of the dense network's accuracy where there is "
                "one; right: the best, the mean and the worst class.",
                analyze_plots.classes(stages),
            )
        )
    page = PAGE.format(
        title=html.escape(f"Analysis: {', '.join(stage.name for stage in stages)}"),
        sentence=html.escape(sentence(stages)),
        table=_table(stages),
        sections="\n".join(sections),
        recipe=html.escape(recipe),
    )
    run_folder.write_text(folder / PAGE_NAME, page)
    return folder / PAGE_NAME


def sentence(stages: Sequence[Stage]) -> str:
    """From when on each network had most of its survivors."""
    parts = []
    for stage in stages:
        unsettled = [i for i, share in enumerate(stage.overlap_last) if share < 0.9]
        settled = stage.epochs[unsettled[-1] + 1 if unsettled else 0]
        parts.append(f"{stage.name} from epoch {settled} of {stage.epochs[-1]}")
    return "At least nine tenths of the last epoch's survivors are found for good: " + ", ".join(parts) + "."


def _section(title: str, note: str, figure: Any) -> str:
    from sparse_ops.train import plots

    return f'<h2>{title}</h2><p class="note">{html.escape(note)}</p>\n{plots.svg(figure)}'


def _table(stages: Sequence[Stage]) -> str:
    columns = ("network", "epochs", "survivors", "in common with the last after 1/4", "1/2", "3/4 of the epochs")
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in columns) + "</tr>"]
    for stage in stages:
        count = len(stage.epochs)
        shares = [stage.overlap_last[max(0, -(-quarter * count // 4) - 1)] for quarter in (1, 2, 3)]
        kept, weights = sum(layer[-1] for layer in stage.kept), sum(stage.weights)
        cells = [stage.name, str(count), f"{kept:,} of {weights:,}", *(f"{100 * share:.1f} %" for share in shares)]
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"
