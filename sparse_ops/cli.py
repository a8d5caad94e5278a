"""The command sparse-ops: train, compare, budget, report, analyze, export, verify, info."""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparse_ops._version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: its exit code, with one sentence on stderr where it did not work.

    0: done. 1: a result that is not good: a training that diverged, runs of a comparison that failed or could not be
    timed, a wrong hash. 2: bad input or files. 130: Ctrl-C.
    """
    arguments = parser().parse_args(argv)
    warnings.showwarning = _one_line_warning
    try:
        return arguments.command(arguments) or 0
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"sparse-ops: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sparse-ops: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = argparse.ArgumentParser(
        prog="sparse-ops",
        description="Train dense networks into sparse ones, and run them sparse.",
        epilog="sparse-ops COMMAND --help shows a command's options and an example.",
    )
    top.add_argument("--version", action="version", version=f"sparse-ops {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    train = _command(
        commands,
        "train",
        _train,
        "train what a recipe says, make the network sparse, report",
        "sparse-ops train recipes/demo.toml --run runs/demo --set method.sparsity=0.95",
    )
    train.add_argument("recipe", type=Path, help="TOML file, see recipes/")
    train.add_argument("--run", type=Path, metavar="DIR", help="where the run's files go (runs/<name of the recipe>)")
    train.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="where data files lie (data)")
    train.add_argument("--download", action="store_true", help="fetch missing data files into --data-dir")
    train.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    train.add_argument("--threads", type=_positive, default=0, metavar="N", help="CPU threads (PyTorch's default)")
    train.add_argument("--seed", type=_not_negative, metavar="N", help="the same as --set seed=N")
    train.add_argument("--folds", type=int, default=1, metavar="N", help="train on N of the 5 splits of digits (1)")
    train.add_argument("--max-epochs", type=_positive, metavar="N", help="stop after N epochs; --resume goes on")
    train.add_argument("--resume", action="store_true", help="go on with the unfinished run in --run, bit for bit")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as in --set optimizer.lr=0.05"
    )

    compare = _command(
        commands,
        "compare",
        _compare,
        "train several methods on equal terms; go on after a crash",
        "sparse-ops compare recipes/demo.toml --methods art,oneshot --sparsities 0.9,0.98,0.995 --seeds 3 --epochs 20",
    )
    compare.add_argument("recipe", type=Path, help="TOML file, see recipes/; [compare.NAME] has arguments of a method")
    compare.add_argument(
        "--methods", type=_list, required=True, metavar="A,B", help="names of methods, see docs/methods"
    )
    compare.add_argument("--sparsities", type=_shares, required=True, metavar="S,T", help="shares of zeros in (0, 1)")
    compare.add_argument("--seeds", type=_positive, default=1, metavar="N", help="seeds, from the recipe's on (1)")
    compare.add_argument("--epochs", type=_positive, metavar="E", help="epochs of every run (those of the recipe)")
    compare.add_argument("--out", type=Path, metavar="DIR", help="where all files go (runs/compare-<recipe>)")
    compare.add_argument("--jobs", type=_positive, default=1, metavar="N", help="runs at the same time (1)")
    compare.add_argument("--threads", type=_positive, default=0, metavar="N", help="threads of a run (1 with --jobs)")
    compare.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    compare.add_argument(
        "--data-dir", type=Path, default=Path("data"), metavar="DIR", help="where data files lie (data)"
    )
    compare.add_argument("--download", action="store_true", help="fetch missing data files into --data-dir")
    compare.add_argument("--published", type=Path, metavar="FILE", help="JSON of published points (the papers')")
    compare.add_argument("--no-speed", action="store_true", help="do not convert and time the networks at the end")
    compare.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as in --set optimizer.lr=0.05"
    )

    budget = _command(
        commands,
        "budget",
        _budget,
        "whether longer training still helps: runs of one recipe at several budgets, sparse against dense",
        "sparse-ops budget runs/x1 runs/x2 runs/x4",
    )
    budget.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs, --set budget=...")
    budget.add_argument("--out", type=Path, metavar="FILE", help="the page (budget.html beside the first run)")

    report = _command(
        commands, "report", _report, "make the report of a run or a comparison again", "sparse-ops report runs/demo"
    )
    report.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run, or of a comparison")

    analyze = _command(
        commands,
        "analyze",
        _analyze,
        "draw how the surviving weights of a run were found (trained with training.analyze = true)",
        "sparse-ops analyze runs/demo",
    )
    analyze.add_argument("folder", type=Path, metavar="RUN", help="folder of a run, finished or not")

    export = _command(
        commands,
        "export",
        _export,
        "write the network of a run as one file for inference, its layers dense or sparse as measured here",
        "sparse-ops export runs/demo --out demo.pt2 --batch 16",
    )
    export.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file, .pt2")
    export.add_argument(
        "--batch", type=_positive, default=16, metavar="N", help="images at a time to measure with (16)"
    )
    export.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="to compute in (float32)")
    export.add_argument("--threads", type=_positive, default=0, metavar="N", help="CPU threads (PyTorch's default)")
    export.add_argument(
        "--data-dir", type=Path, default=Path("data"), metavar="DIR", help="where data files lie (data)"
    )

    verify = _command(
        commands,
        "verify",
        _verify,
        "check a model file: hash, shapes, patterns, zeros, values that are not finite",
        "sparse-ops verify runs/demo/model.safetensors",
    )
    verify.add_argument("file", type=Path, help="file written by sparse_ops.save")

    _command(commands, "info", _info, "versions, instruction set, and what each op runs on here", "sparse-ops info")
    return top


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], summary: str, example: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
    command.set_defaults(command=run)
    return command


def _train(arguments: argparse.Namespace) -> int:
    from sparse_ops.train import progress, recipe, report
    from sparse_ops.train.job import Job, Options
    from sparse_ops.train.loop import Diverged, Stopped
    from sparse_ops.train.run_folder import FinishedRun

    overrides = dict(map(recipe.parse_override, arguments.set))
    if arguments.seed is not None:
        overrides["seed"] = arguments.seed
    read = recipe.read(arguments.recipe, overrides)
    run = arguments.run or Path("runs") / arguments.recipe.stem
    names = ("data_dir", "device", "folds", "threads", "max_epochs", "download", "resume")
    options = Options(run=run, **{name: getattr(arguments, name) for name in names})
    display = progress.choose()
    try:
        summary = Job(read, options, display).run()
    except FinishedRun as finished:
        print(finished)
        return 0
    except (Stopped, KeyboardInterrupt) as stop:
        display.close()
        why = "interrupted" if isinstance(stop, KeyboardInterrupt) else str(stop)
        make = " (make demo ARGS=--resume)" if run == Path("runs/demo") else ""
        print(f"{why}; the same command with --resume{make} goes on, from the last whole epoch, with {run}")
        return 130 if isinstance(stop, KeyboardInterrupt) else 0
    except Diverged as error:
        display.close()
        print(f"sparse-ops: {_sentence(error)}", file=sys.stderr)
        return 1
    finally:
        display.close()
    print(f"\n{report.text_table(summary)}\n\n{report.sentence(summary)}")
    try:
        print(f"report: {report.write(run)}")
    except ValueError as error:  # without matplotlib everything but the report is there
        print(f"no report: {error}", file=sys.stderr)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from sparse_ops.train import compare_command

    return compare_command.run(arguments)


def _report(arguments: argparse.Namespace) -> None:
    from sparse_ops.train import compare_report, report

    if any((arguments.folder / name).exists() for name in (compare_report.SHARED, compare_report.RECORDS)):
        table, page, missing = compare_report.write(arguments.folder)
        print(f"{table}\n\n{page or missing}")
    else:
        print(report.write(arguments.folder))


def _analyze(arguments: argparse.Namespace) -> None:
    from sparse_ops.train import analyze

    print(analyze.write(arguments.folder))


def _budget(arguments: argparse.Namespace) -> None:
    from sparse_ops.train import budget_report

    out = arguments.out or arguments.runs[0].resolve().parent / "budget.html"
    points, page = budget_report.write(arguments.runs, out)
    print(f"{budget_report.text(points)}\n\nreport: {page}")


def _export(arguments: argparse.Namespace) -> None:
    import torch

    from sparse_ops.train import export

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    options = {name: getattr(arguments, name) for name in ("batch", "dtype", "data_dir")}
    print(export.write(arguments.folder, arguments.out, **options))
    print(f"{arguments.out}: sparse_ops.load_exported runs it in another process")


def _verify(arguments: argparse.Namespace) -> int:
    from sparse_ops import files

    found = files.verify(arguments.file)
    print(found)
    return 0 if found.hash_ok else 1


def _info(arguments: argparse.Namespace) -> None:
    from sparse_ops.train import info

    print(info.text())


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in _list(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0.9,0.98") from None


def _positive(text: str) -> int:
    return _at_least(1, text)


def _not_negative(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.strip().lstrip("+-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no integer")
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return int(text)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    print(f"sparse-ops: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
