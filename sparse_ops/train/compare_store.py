"""The folder of a comparison: what its runs share, one JSONL record for each of them, and locks between processes."""

import contextlib
import fcntl
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparse_ops.train import keys, method_table, run_folder
from sparse_ops.train.compare import WEIGHTS, Comparison, Run

SHARED, RECORDS, TABLE, REPORT, PICTURE = "comparison.toml", "runs.jsonl", "table.txt", "report.html", "accuracy.png"
Record = dict[str, Any]


class Store:
    """comparison.toml, runs.jsonl, runs/NAME/ (a run folder each) and the report; locks are the system's (flock).

    A lock goes with the process that holds it, however that ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def folder(self, run: Run) -> Path:
        """The run's own folder."""
        return self.path / "runs" / run.folder

    def begin(self, comparison: Comparison) -> None:
        """Make the folder, or join what is there; ValueError where that was begun on other terms. Nothing is lost.

        More methods, sparsities and seeds may join; another recipe, length or other arguments of a method may not.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--out {self.path} is a file, expected a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock(SHARED):
            path, shared, arguments = self / SHARED, comparison.shared, comparison.arguments
            if path.exists():
                old = self.shared()
                known = old.pop("methods", {})
                _same(self.path, old, shared)
                for name in known.keys() & arguments.keys():
                    _same(self.path, {f"compare.{name}": known[name]}, {f"compare.{name}": arguments[name]})
                arguments = known | arguments
            elif (self / run_folder.RECIPE).exists():
                raise ValueError(f"--out {self.path} holds files of something else; give another folder")
            else:
                arguments = self._terms_of_records(shared, arguments) | arguments
            run_folder.write_text(path, _toml(shared, arguments))

    def _terms_of_records(self, shared: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the methods that have records, where comparison.toml is gone; ValueError for other terms."""
        known: dict[str, Any] = {}
        for record in self.records().values():
            recipe = json.loads(json.dumps(record["recipe"]))
            table = recipe.pop("method", {})
            terms = {key: recipe[key] for key in shared if key in recipe} | {"epochs": record["epochs"]}
            terms |= {key: table[key] for key in WEIGHTS if key in table}
            terms["training"] = terms["training"] | {key: shared["training"][key] for key in ("dense", "oneshot")}
            wanted = shared if table else {key: value for key, value in shared.items() if key not in WEIGHTS}
            _same(self.path, terms, wanted)
            if table:
                name = record["method"]
                own = {key: value for key, value in table.items() if key not in ("name", *method_table.SHARED)}
                if name in arguments:
                    _same(self.path, {f"compare.{name}": own}, {f"compare.{name}": arguments[name]})
                known[name] = own
        return known

    def shared(self) -> dict[str, Any]:
        """What comparison.toml says."""
        path = self / SHARED
        again = f"delete {path}, and the same sparse-ops compare writes it again and keeps every finished run"
        try:
            text = path.read_text()
            shared = tomllib.loads(text)
        except OSError:
            raise ValueError(
                f"{path} is missing, of which a comparison consists beside {RECORDS}; the same sparse-ops compare "
                "writes it again and keeps every finished run"
            ) from None
        except ValueError as error:  # no TOML, or no text
            raise ValueError(f"{path} is damaged ({error}); {again}") from None
        if not text.strip():
            raise ValueError(f"{path} is empty; {again}")
        lacking = [key for key in ("epochs", "data", "network") if key not in shared]
        if lacking:
            raise ValueError(f"{path} is damaged (it lacks {', '.join(lacking)}); {again}")
        return shared

    def records(self) -> dict[str, Record]:
        """Key -> the last record of each run that has one, in the order of runs.jsonl."""
        with self._lock(RECORDS):
            return self._read()

    def append(self, record: Record) -> None:
        """Add a record, to the disk."""
        with self._lock(RECORDS):
            self._read()  # a torn end is taken off first
            with (self / RECORDS).open("a") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def replace(self, record: Record) -> None:
        """Put a record in the place of all others of the same key."""
        with self._lock(RECORDS):
            records = self._read() | {record["key"]: record}
            run_folder.write_text(self / RECORDS, "".join(json.dumps(r) + "\n" for r in records.values()))

    def _read(self) -> dict[str, Record]:
        """A last line that a crash has torn is taken off the file: its run is then made again, or just noted again."""
        path, records = self / RECORDS, {}
        if not path.exists():
            return {}
        raw = path.read_bytes()
        if raw and not raw.endswith(b"\n"):
            raw = raw[: raw.rfind(b"\n") + 1]
            os.truncate(path, len(raw))
        for number, line in enumerate(raw.splitlines(), 1):
            try:
                record = json.loads(line)
                records[record["key"]] = record
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{path}, line {number} is damaged; delete line {number}, and the same sparse-ops compare notes "
                    "its run again, which is trained already if its folder is there"
                ) from None
        return records

    @contextlib.contextmanager
    def claim(self, run: Run) -> Iterator[bool]:
        """Whether this process may train the run now: False while another one does."""
        folder = self.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def training(self) -> contextlib.AbstractContextManager[None]:
        """Held while a network trains; any number of processes may."""
        return self._lock("machine", fcntl.LOCK_SH)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Held while a network is timed: nothing of this folder trains then."""
        return self._lock("machine")

    def reporting(self) -> contextlib.AbstractContextManager[None]:
        """Held while table and page are written."""
        return self._lock("report")

    @contextlib.contextmanager
    def _lock(self, name: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
        with (self / f".{name}.lock").open("a") as file:
            fcntl.flock(file, kind)
            yield


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = _flat(old), _flat(new)
    for key in [*before, *now]:
        if before.get(key) != now.get(key):
            a, b = (keys.toml(t[key]) if key in t else "nothing" for t in (before, now))
            known = key in before and key in now
            version = (
                "" if known else " (another version of sparse_ops may have other keys: go on with the one of then)"
            )
            raise ValueError(
                f"the comparison in {path} was begun with {key} = {a}, now it is {b}{version}; nothing was changed, "
                "give another folder with --out"
            )


def _toml(shared: Mapping[str, Any], arguments: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["# what all runs of this comparison share", ""]
    lines += [f"{key} = {keys.toml(value)}" for key, value in shared.items() if not isinstance(value, Mapping)]
    tables = {key: value for key, value in shared.items() if isinstance(value, Mapping)}
    for key, table in (tables | {f"methods.{name}": table for name, table in arguments.items()}).items():
        lines += ["", f"[{key}]", *(f"{k} = {keys.toml(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"
