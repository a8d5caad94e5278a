"""What every benchmark shares: arguments, interleaved timing, and one JSON record per measured line."""

import argparse
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sparse_ops
from sparse_ops import launch

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parser(doc: str, several_threads: bool = False) -> argparse.ArgumentParser:
    """The options that all benchmarks know; a benchmark adds its own. several_threads: `--threads 1 2`, a list."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {Path(sys.argv[0]).stem}", description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one JSON record per line to FILE")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    threads = torch.get_num_threads()
    many: dict[str, Any] = {"nargs": "+", "default": [threads]} if several_threads else {"default": threads}
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)", **many)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds; the median is reported")
    parser.add_argument("--seconds", type=float, default=0.02, help="shortest time of one sample")
    return parser


def dense_dtypes(parser: argparse.ArgumentParser) -> None:
    """Add --dense-dtype, which leaves dense contenders out that a processor is hopelessly slow at."""
    parser.add_argument(
        "--dense-dtype",
        choices=["float32", "bfloat16"],
        nargs="+",
        default=["float32", "bfloat16"],
        help="bfloat16 takes minutes a line where the processor has no instruction for it",
    )


def start(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse, set threads and seed."""
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}, expected 1 or more")
    torch.set_num_threads(args.threads[0] if isinstance(args.threads, list) else args.threads)
    torch.manual_seed(0)
    return args


def free_bytes(device: str) -> float:
    """Memory that is free now; infinite where the system does not say."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return math.inf


def seconds(run: Callable[[], Any], repeats: int, device: str) -> float:
    """How long one run takes on average over `repeats` in a row."""
    if device == "cuda":
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(1_000_000)  # a backlog on the stream, so that the host does not time short kernels
        first.record()
        for _ in range(repeats):
            run()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats


def measure(contenders: dict[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """Median milliseconds and spread of each contender, all of them timed in turn in every round.

    spread is the distance between the quartiles over the median, None of a single sample. A sample repeats a short run
    until it lasts `args.seconds`, so that the clock's resolution does not matter. Who takes more than a second and 20
    times as long as the quickest is timed once: bfloat16 where the processor has no instruction for it, a minute for a
    network.
    """
    once = {}
    for name, run in contenders.items():
        run()  # caches, compilation and lazy state
        once[name] = seconds(run, 1, args.device)
    hopeless = max(1.0, 20 * min(once.values(), default=0.0))
    samples: dict[str, list[float]] = {name: [t] if t > hopeless else [] for name, t in once.items()}
    names = [name for name, found in samples.items() if not found]
    repeats = {}
    for name in names:
        shortest = min(once[name], seconds(contenders[name], 1, args.device))
        repeats[name] = max(1, math.ceil(args.seconds / max(shortest, 1e-7)))
    for r in range(args.rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:  # nobody always runs after the same neighbour
            samples[name].append(seconds(contenders[name], repeats[name], args.device))
    results: dict[str, dict[str, float | None]] = {}
    for name, values in samples.items():
        median = statistics.median(values)
        results[name] = {"ms": 1e3 * median, "spread": None}
        if len(values) > 1:
            low, _, high = statistics.quantiles(values, n=4)
            results[name]["spread"] = (high - low) / median
    return results


@functools.cache
def _machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if lines:
            model = lines[0].split(":", 1)[1].strip()
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    versions = {"torch": torch.__version__, "sparse_ops": sparse_ops.__version__, "python": platform.python_version()}
    return {"cpu": model, "cores": os.cpu_count(), "versions": versions, "commit": git.stdout.strip() or "unknown"}


def _where(args: argparse.Namespace) -> dict[str, Any]:
    machine = _machine()
    cpu = f"{machine['cpu']}, {machine['cores']} cores"
    return {
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else cpu,
        "isa": launch.isa(),
        "versions": machine["versions"],
        "commit": machine["commit"],
    }


def _append(args: argparse.Namespace, record: dict[str, Any]) -> None:
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        with args.json.open("a") as file:
            file.write(json.dumps(record) + "\n")


def skip(args: argparse.Namespace, reason: str, **record: Any) -> None:
    """Print and record that a contender was not measured, and why."""
    print(f"{record['op']:16} {record.get('shape', '')!s:28} {record['contender']:26} skipped: {reason}", flush=True)
    _append(args, record | {"ms": None, "skipped": reason} | _where(args))


def report(
    args: argparse.Namespace, *, flops: float = math.nan, bytes: float = math.nan, **record: Any
) -> dict[str, Any]:
    """Print one aligned line and append one record: op, shape, dtype, sparsity, contender, ms, spread, gflops, gbs, ...

    flops and bytes are the useful work of one run; nan where the figure makes no sense.
    """
    seconds = record["ms"] / 1e3
    record |= {
        "gflops": None if math.isnan(flops) else flops / seconds / 1e9,
        "gbs": None if math.isnan(bytes) else bytes / seconds / 1e9,
        **_where(args),
    }
    text = f"{record['op']:16} {record.get('shape', '')!s:28} {record['contender']:26} {record['ms']:10.4f} ms"
    if record["gflops"] is not None:
        text += f" {record['gflops']:9.1f} GFLOP/s"
    if record["gbs"] is not None:
        text += f" {record['gbs']:8.2f} GB/s"
    print(f"{text}  spread {record['spread']:.0%}", flush=True)
    _append(args, record)
    return record
