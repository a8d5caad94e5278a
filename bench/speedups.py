"""How many times faster: the table and the picture of records that hold dense, sparse_ops and other sparse contenders.

A record has `kind` ("dense", "ours" or "other"), `tolerance` ("float32" or "half": which of the two its error allows),
`threads`, `work`, `shape`, `mask` and `sparsity`. `best` compares within one group of these: ours of any tolerance with
the best dense contender of any (each is used where its error is accepted), then float32 with float32.
"""

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
LINES = {"any dtype": ("half", "float32"), "float32": ("float32",)}


def read(path: Path) -> list[Record]:
    """The measured records of a file, a later one in place of an earlier one of the same contender."""
    latest: dict[str, Record] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record.get("ms") and "kind" in record:
            latest[str([record["contender"], *_group(record)])] = record
    return list(latest.values())


def _group(record: Record) -> tuple[Any, ...]:
    return record["threads"], record["work"], str(record["shape"]), record["mask"], record["sparsity"]


def best(records: Iterable[Record]) -> list[Record]:
    """One row for each group and line of LINES: dense, ours and other (records), speedup and over_other."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(_group(record), []).append(record)
    rows = []
    for (threads, work, shape, mask, sparsity), members in groups.items():
        for line, tolerances in LINES.items():
            row: Record = {"threads": threads, "work": work, "shape": shape, "mask": mask, "sparsity": sparsity}
            for kind in ("dense", "ours", "other"):
                of_kind = [r for r in members if r["kind"] == kind and r["tolerance"] in tolerances]
                row[kind] = min(of_kind, key=lambda r: r["ms"], default=None)
            if row["dense"] and row["ours"]:
                over = row["other"]["ms"] / row["ours"]["ms"] if row["other"] else None
                rows.append(row | {"line": line, "speedup": row["dense"]["ms"] / row["ours"]["ms"], "over_other": over})
    return rows


def table(records: Iterable[Record]) -> str:
    """Text: under each work, shape, mask and number of threads the best dense contender and ours at each sparsity."""
    lines: dict[tuple[Any, ...], list[str]] = {}
    for row in best(records):
        dense, ours = row["dense"], row["ours"]
        text = f"  {row['sparsity']:7.2%} {row['line']:10} best dense {_time(dense)}, ours {_time(ours)}: "
        text += f"{row['speedup']:6.2f}x"
        if row["over_other"]:
            text += f"; {row['over_other']:.1f}x {row['other']['contender']}"
        lines.setdefault((row["work"], row["shape"], row["mask"], row["threads"]), []).append(text)
    heads = (f"\n{work} {shape}, {mask} mask, {threads} thread(s)" for work, shape, mask, threads in lines)
    return "\n".join(line for head, rows in zip(heads, lines.values(), strict=True) for line in (head, *rows))


def _time(record: Record) -> str:
    spread = "" if record.get("spread") is None else f" +-{record['spread'] / 2:.0%}"
    return f"{record['ms']:9.4f} ms{spread} ({record['contender']})"


def break_even(points: list[tuple[float, float]]) -> float | None:
    """The sparsity where the speed-up is 1, between points (sparsity, speed-up), log over log; None: nowhere."""
    for (s0, v0), (s1, v1) in itertools.pairwise(points):
        if v0 < 1 <= v1:
            share = -math.log(v0) / (math.log(v1) - math.log(v0))
            return 1 - math.exp(math.log(1 - s0) + share * (math.log(1 - s1) - math.log(1 - s0)))
    return None


def plot(records: Iterable[Record], picture: Path, title: str) -> None:
    """Speed-up against sparsity, a line for each shape and tolerance, its break-even marked where it is measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = best(records)
    panels: dict[str, dict[tuple[str, str], list[tuple[float, float]]]] = {}
    for row in rows:
        panel = f"{row['work']}, {row['mask']} masks, {row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        series = panels.setdefault(panel, {})
        series.setdefault((row["shape"], row["line"]), []).append((row["sparsity"], row["speedup"]))
    names = list(dict.fromkeys(row["shape"] for row in rows))
    measured = sorted({row["sparsity"] for row in rows})
    height = 5 + 0.2 * -(-len(names) // 3)
    figure, grid = pyplot.subplots(1, len(panels), figsize=(1 + 5.5 * len(panels), height), squeeze=False, sharey=True)
    handles: dict[str, Any] = {}
    for axes, (panel, series) in zip(grid[0], panels.items(), strict=True):
        for (name, line), unordered in series.items():
            points = sorted(unordered)
            at, color = names.index(name), f"C{names.index(name) % 10}"
            marker = "osDv^<>*hX"[at // 10 % 10]
            style = "-" if line == "any dtype" else "--"
            places, values = [1 / (1 - s) for s, _ in points], [v for _, v in points]
            (drawn,) = axes.plot(places, values, color=color, linestyle=style, marker=marker, markersize=5)
            if line == "any dtype" or name not in handles:
                handles[name] = drawn
            if (even := break_even(points)) is not None:
                axes.plot([1 / (1 - even)], [1], marker="X", markersize=11, color=color, linestyle="none")
                axes.annotate(
                    f"{even:.0%}", (1 / (1 - even), 1), fontsize=7, xytext=(4, -10), textcoords="offset points"
                )
        axes.axhline(1, color="black", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="zeros, %", title=panel)
        axes.set_xticks([1 / (1 - s) for s in measured], [f"{100 * s:.3g}" for s in measured])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        low, high = axes.get_ylim()  # where it spans less than a decade, ticks between powers of ten have numbers too
        axes.yaxis.set_minor_formatter(lambda value, _, few=high < 10 * low: f"{value:g}x" if few else "")
        axes.grid(True, which="both", alpha=0.3)
    grid[0][0].set_ylabel("times faster than the best dense contender")
    figure.suptitle(f"{title}\nsolid: of any dtype, dashed: float32; X: as fast as dense")
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=3, fontsize=7)
    figure.tight_layout(rect=(0, (0.3 + 0.2 * -(-len(names) // 3)) / height, 1, 1))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    pyplot.close(figure)
