"""What a run shows while it trains: bars on a terminal (rich), plain lines elsewhere."""

import sys
import time
from typing import Any, Protocol

Record = dict[str, Any]


class Progress(Protocol):
    """Told about stages, batches and epochs."""

    def stage(self, title: str, epochs: int, batches: int) -> None:
        """A new network begins; at most `epochs` epochs of `batches` batches."""

    def batch(self, done: int, images_per_second: float, loss: float) -> None:
        """`done` batches of this epoch are over."""

    def epoch(self, record: Record) -> None:
        """An epoch is over."""

    def bytes(self, name: str, done: int, total: int) -> None:
        """A download goes on."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def figures(record: Record) -> str:
    """rate, loss, lambda and accuracies of one epoch in one line; what a phase does not have is left out."""
    parts = [f"{record['images_per_second']:7.0f} images/s", f"loss {record['loss']:.4f}"]
    if record.get("lambda"):
        parts.append(f"lambda {record['lambda']:.2e}")
    parts.append(f"train {100 * record['train_accuracy']:.2f} %")
    if record.get("pruned_accuracy") is not None:
        parts.append(f"pruned {100 * record['pruned_accuracy']:.2f} %")
    for name in ("validation", "test"):
        if record.get(f"{name}_accuracy") is not None:
            parts.append(f"{name} {100 * record[f'{name}_accuracy']:.2f} %")
    return "  ".join(parts)


LEGEND = (
    "accuracies: train is that of the epoch's own batches while they were trained on; pruned is that of a copy with "
    "the target's zeros, on training images; test is that of the network as it is, on test images, which decide nothing"
)


class Remarks:
    """Lines beside the figures: what the accuracies are, once, and why a phase has ended."""

    def __init__(self) -> None:
        self.explained = False

    def after(self, title: str, record: Record) -> list[str]:
        """What is to be said after an epoch."""
        lines = []
        if record.get("pruned_accuracy") is not None and not self.explained:
            self.explained = True
            lines.append(LEGEND)
        if record.get("why") is not None:
            lines.append(f"{title}: {record['phase']} ends after epoch {record['epoch']}: {record['why']}")
        return lines


class Plain:
    """One line for every epoch."""

    def __init__(self) -> None:
        self.title, self.last_download, self.remarks = "", 0.0, Remarks()

    def stage(self, title: str, epochs: int, batches: int) -> None:
        self.title = title

    def batch(self, done: int, images_per_second: float, loss: float) -> None:
        pass

    def epoch(self, record: Record) -> None:
        self.say(f"{self.title:22} {record['phase']:10} epoch {record['epoch']:3d}  {figures(record)}")
        for line in self.remarks.after(self.title, record):
            self.say(line)

    def bytes(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last_download >= 5 or done >= total:
            self.last_download = now
            self.say(f"{name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


class Bars:
    """One bar for the epochs of the present network and one for the batches of the present epoch."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.bars = RichProgress(
            TextColumn("{task.description:22}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[figures]}"),
            refresh_per_second=5,
        )
        self.bars.start()
        self.title, self.remarks = "", Remarks()
        self.epochs_bar = self.batches_bar = self.bytes_bar = None  # type: Any

    def stage(self, title: str, epochs: int, batches: int) -> None:
        self._drop_batches()
        self.title = title
        self.epochs_bar = self.bars.add_task(title, total=epochs, figures="")
        self.batches_bar = self.bars.add_task("  epoch", total=batches, figures="")

    def batch(self, done: int, images_per_second: float, loss: float) -> None:
        text = f"{images_per_second:7.0f} images/s  loss {loss:.4f}"
        self.bars.update(self.batches_bar, completed=done, figures=text)

    def epoch(self, record: Record) -> None:
        total = record["epoch"] if record["finished"] else None
        self.bars.update(
            self.epochs_bar,
            completed=record["epoch"],
            total=total,
            description=f"{self.title} {record['phase']}",
            figures=figures(record),
        )
        for line in self.remarks.after(self.title, record):
            self.say(line)
        if record["finished"]:
            self._drop_batches()
        else:
            self.bars.reset(self.batches_bar, figures="")

    def bytes(self, name: str, done: int, total: int) -> None:
        if self.bytes_bar is None:
            self.bytes_bar = self.bars.add_task(name, total=total, figures="")
        self.bars.update(self.bytes_bar, completed=done, figures=f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")

    def say(self, text: str) -> None:
        self.bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._drop_batches()
        self.bars.stop()

    def _drop_batches(self) -> None:
        if self.batches_bar is not None:
            self.bars.remove_task(self.batches_bar)
            self.batches_bar = None


def choose() -> Progress:
    """Bars on a terminal where rich is installed, else plain lines; says once how to get the bars."""
    if not sys.stdout.isatty():
        return Plain()
    try:
        return Bars()
    except ImportError:
        print("rich is not installed, so there are no progress bars: pip install 'sparse_ops[train]'")
        return Plain()
