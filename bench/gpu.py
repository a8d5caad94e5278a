"""Everything that needs a GPU, in minutes: correctness of every op, CUDA graphs, then benchmarks.

    python -m bench gpu --json bench/results/gpu.jsonl

Each check and each measured line is appended to the file at once. A check that fails, crashes or hangs is a record too,
and the rest goes on in a fresh process; what the time does not allow is recorded as skipped. The exit status is 1 if a
check failed. --device cpu runs the same checks in Triton's interpreter, on small tensors.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LOST = 75  # exit status of a worker whose device answers no more
CHECKS_SHARE = 0.6  # of the time: what correctness may take before the benchmarks begin
HUNG = 150.0  # seconds that one item may take; compiling its kernels is most of it


class Item(NamedTuple):
    """One check or benchmark: `run(args)` raises where it fails."""

    section: str  # "check", "graph" or "speed"
    name: str
    run: Callable[[argparse.Namespace], Any]
    seconds: float = 0.0  # about what it takes: it is not begun when less is left


class Skipped(Exception):
    """What an item raises that cannot run here; its text says why."""


def append(path: Path, **record: Any) -> None:
    """One JSON record, on disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def items(device: str) -> list[Item]:
    """All there is, most important first."""
    from bench import gpu_checks, gpu_graphs, gpu_run_checks, gpu_speed, gpu_sweep_checks

    correct = gpu_sweep_checks.CHECKS | gpu_run_checks.CHECKS | gpu_checks.CHECKS
    made = [Item("check", name, run) for name, run in correct.items()]
    made += [Item("graph", name, run) for name, run in gpu_graphs.CHECKS.items()]
    made.sort(key=lambda item: "f64" in item.name or "float64" in item.name)  # six digits to compile, and seldom used
    return made + ([Item("speed", *entry) for entry in gpu_speed.benchmarks()] if device == "cuda" else [])


def run_item(item: Item, args: argparse.Namespace) -> tuple[str, str]:
    """(status, detail): "ok", "failed", or "skipped" with the reason."""
    left = args.deadline - time.time()
    if item.section != "speed" and args.device == "cuda":
        left -= (1 - CHECKS_SHARE) * 60 * args.minutes
    if left <= item.seconds:
        return "skipped", "time"
    try:
        item.run(args)
    except Skipped as reason:
        return "skipped", str(reason)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            return "skipped", "memory"
        return "failed", "".join(traceback.format_exception(error))[-3000:]
    return "ok", ""


def device_answers(device: str) -> bool:
    """False after an illegal access, which leaves a CUDA context useless."""
    import torch

    try:
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except Exception:
        return False
    return True


def note(path: Path, **state: Any) -> None:
    """What a worker is at, written at once, since its supervisor reads it at any time."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(state))
    fresh.replace(path)


def work(listed: Sequence[Item], args: argparse.Namespace) -> None:
    """Run the items from number args.first on, a record each; exit with LOST where the device is lost."""
    for number, item in enumerate(listed):
        if number < args.first:
            continue
        note(args.state, number=number, name=item.name, section=item.section)
        begin = time.time()
        status, detail = run_item(item, args)
        seconds = round(time.time() - begin, 2)
        append(args.json, section=item.section, name=item.name, status=status, detail=detail, seconds=seconds)
        shown = detail.strip().splitlines()[-1] if detail else ""
        print(f"[{time.time() - args.begun:5.0f} s] {item.section:6} {item.name:44} {status} {shown}", flush=True)
        broken = status == "failed" and item.section == "graph"  # a capture may not have ended
        if broken or not device_answers(args.device):
            note(args.state, number=number + 1)
            sys.exit(LOST)
    note(args.state, number=len(listed))


def supervise(command: list[str], args: argparse.Namespace) -> None:
    """Run workers until every item has its record: one that crashes, hangs or loses the device is replaced."""
    first = 0
    while True:
        note(args.state, number=first)
        worker = subprocess.Popen([*command, "--first", str(first)])
        began = {first: time.time()}
        why = ""
        try:
            while worker.poll() is None:
                time.sleep(0.1)
                number = json.loads(args.state.read_text())["number"]
                hung = time.time() - began.setdefault(number, time.time()) > args.hung
                if hung or time.time() > args.deadline + 20:
                    why = f"hung: more than {args.hung:.0f} s" if hung else "cut short: the time is up"
                    worker.kill()
                    worker.wait()
        except BaseException:
            worker.kill()
            raise
        if worker.returncode == 0:
            return
        state = json.loads(args.state.read_text())
        first = state["number"]
        if worker.returncode == LOST and not why:
            continue
        if "name" not in state:  # it died before its first item: the next one would too
            append(args.json, section="check", name="start", status="failed", detail=f"exit {worker.returncode}")
            return
        detail = why or f"crashed: exit status {worker.returncode}"
        status = "skipped" if why.startswith("cut short") else "failed"
        append(args.json, section=state["section"], name=state["name"], status=status, detail=detail)
        print(f"{state['section']:6} {state['name']:44} {status} {detail}", flush=True)
        if time.time() > args.deadline + 20:
            return
        first += 1


def records_from(path: Path, begin: int) -> list[dict[str, Any]]:
    """The records of a file from byte `begin` on; a last line that was cut off is left out."""
    with path.open() as file:
        file.seek(begin)
        lines = file.read().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def summary(records: list[dict[str, Any]]) -> int:
    """Print one table of benchmarks and one of checks; 1 if a check failed, else 0."""
    print("\nBenchmarks (median of interleaved rounds; x: time of the reference over this one)")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in (r for r in records if r.get("ms")):
        key = record["op"], f"{record['shape']} {record['dtype']}", record.get("sparsity")
        groups.setdefault(key, []).append(record)
    for (op, shape, sparsity), lines in groups.items():
        reference = next((r for r in lines if _is_reference(r["contender"])), lines[0])
        print(f"  {op} {shape}" + (f" at {sparsity:.1%}" if sparsity is not None else ""))
        for r in lines:
            gbs = f"{r['gbs']:9.1f} GB/s" if r.get("gbs") else ""
            factor = reference["ms"] / r["ms"]
            spread = "timed once " if r["spread"] is None else f"spread {r['spread']:4.0%}"
            print(f"    {r['contender']:34} {r['ms']:11.4f} ms {factor:7.2f} x  {spread} {gbs}")
    states = [r for r in records if "status" in r]
    failed = [r for r in states if r["status"] == "failed"]
    skipped = [r for r in states if r["status"] == "skipped"]
    print(f"\n{len(states) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} skipped")
    for r in skipped:
        print(f"  skipped {r['section']:6} {r['name']:44} {r['detail']}")
    for r in failed:
        print(f"  FAILED  {r['section']:6} {r['name']:44} {r['detail'].strip().splitlines()[-1]}")
    return int(bool(failed))


def _is_reference(contender: str) -> bool:
    return any(word in contender for word in ("torch-fused", "torch.topk", "dense"))


def environment(args: argparse.Namespace) -> None:
    """What it ran on, as the first record; what is missing for certain is said before anything starts."""
    import torch

    from bench.common import _machine

    record = {"device": args.device, "torch": torch.__version__, **_machine()}
    if args.device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("gpu: torch sees no CUDA device; --device cpu runs the checks in Triton's interpreter")
        if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
            raise SystemExit("gpu: Triton needs a C compiler for its launchers; none of cc, gcc, clang is on the PATH")
    import triton

    append(args.json, section="environment", triton=triton.__version__, **record)
    print(f"gpu: {args.device}, torch {torch.__version__}, triton {triton.__version__}, {args.minutes:g} minutes")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=Path("bench/results/gpu.jsonl"), metavar="FILE")
    parser.add_argument("--minutes", type=float, default=8.5, help="no item is begun later")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--hung", type=float, default=HUNG, help="seconds after which an item counts as hung")
    parser.add_argument("--lanes", type=int, help="processes that share the checks (default: up to 6 on CUDA, else 1)")
    parser.add_argument("--only", default="", metavar="WORD", help="items whose name has this word")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)  # of a worker: the item to begin with
    parser.add_argument("--lane", default="all", help=argparse.SUPPRESS)  # of a worker: which items are its own
    parser.add_argument("--begun", type=float, default=time.time(), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.deadline = args.begun + 60 * args.minutes
    args.state = args.json.with_suffix(f".{args.lane}.state")
    args.threads, args.seed = 1, 0
    return args


def of_lane(listed: Sequence[Item], lane: str) -> list[Item]:
    """ "all", "speed", or "1of4": the checks that the second of four workers runs."""
    if lane == "all":
        return list(listed)
    if lane == "speed":
        return [item for item in listed if item.section == "speed"]
    index, count = map(int, lane.split("of"))
    return [item for item in listed if item.section != "speed"][index::count]


def supervise_lanes(command: list[str], args: argparse.Namespace, lanes: int) -> None:
    """Checks in several processes at once, since compiling is most of their time; then the benchmarks, alone."""

    def one(lane: str) -> None:
        mine = argparse.Namespace(**vars(args) | {"state": args.json.with_suffix(f".{lane}.state")})
        try:
            supervise([*command, "--lane", lane], mine)
        finally:
            mine.state.unlink(missing_ok=True)

    threads = [threading.Thread(target=one, args=(f"{i}of{lanes}",)) for i in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if args.device == "cuda":
        one("speed")


def prepare(device: str) -> None:
    """Before a kernel is imported: on the CPU Triton interprets it."""
    if device == "cpu":
        import numpy as np

        os.environ["TRITON_INTERPRET"] = "1"
        np.seterr(all="ignore")  # the interpreter computes with numpy; a GPU is silent


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    prepare(args.device)
    if args.first is not None:
        work(of_lane([item for item in items(args.device) if args.only in item.name], args.lane), args)
        return
    begin = args.json.stat().st_size if args.json.exists() else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the summary is printed
    status = 1
    try:
        environment(args)
        given = list(sys.argv[1:] if argv is None else argv)
        lanes = args.lanes or (min(6, (os.cpu_count() or 2) // 2) if args.device == "cuda" else 1)
        supervise_lanes([sys.executable, "-m", "bench", "gpu", *given, "--begun", str(args.begun)], args, lanes)
        status = 0
    finally:
        if args.json.exists():
            status = max(status, summary(records_from(args.json, begin)))
    sys.exit(status)
