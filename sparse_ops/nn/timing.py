"""Timing alternatives against each other, for a choice that is kept, on a machine that other programs use too."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

LEAST_ROUNDS, SOON = 4, 8  # rounds in any case; rounds after which times that agree end the measurement
SECONDS = 0.3  # no round begins later, but for LEAST_ROUNDS
AGREE = 0.08  # the least times of the two orders, relative to each other
# A short run is repeated until a sample lasts this long. Short samples find gaps between the time slices, of some
# milliseconds, that other programs take.
SAMPLE_SECONDS = {"cpu": 5e-5, "cuda": 2e-3}
# A run that takes longer than this with one thread, and that many times as long as another for each thread, twice
# in a row, is not timed further: bfloat16 without an instruction for it takes a second where float32 takes 10 ms.
HOPELESS_SECONDS, HOPELESS_RATIO = 0.1, 20
TURN_SECONDS = 5e-4  # an alternative's turn in a round is as many samples as fit into this, of which the first warm up

Run = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Least milliseconds of each run; busy: other programs disturbed the measurement; threads: torch's, during it."""

    ms: tuple[float, ...]
    busy: bool
    threads: int


def compare(runs: Sequence[Run], device: torch.device) -> Times:
    """Time every run in turn, in rounds that go through them forwards and backwards.

    The least time and not the median, since other programs only ever add to it. More rounds follow while the two orders
    disagree. Threads that wait for each other lose a time slice of some milliseconds wherever another program holds a
    core: 15 ms where a layer takes 0.4 ms, in every call. So on the CPU, where the orders keep disagreeing or threads
    make a run slower, all of them are timed again with one thread, which waits for nobody.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    with _threads(1):
        alone = [_least(run, 1, 3, device) for run in runs]
        most = _hopeless(alone, threads)  # of those, a first call may have compiled a kernel
        alone = [min(s, _least(run, 1, 1, device)) if s > most else s for run, s in zip(runs, alone, strict=True)]
    kept = [i for i, s in enumerate(alone) if s <= _hopeless(alone, threads)]
    runs, of_kept = [runs[i] for i in kept], [alone[i] for i in kept]
    times = _measure(runs, device, of_kept)
    if threads > 1 and times.busy:
        with _threads(1):
            times = Times(_measure(runs, device, of_kept).ms, True, 1)
    ms = dict(enumerate(1e3 * s for s in alone)) | dict(zip(kept, times.ms, strict=True))
    return Times(tuple(ms.values()), times.busy, times.threads)


def _hopeless(alone: Sequence[float], threads: int) -> float:
    """The seconds with one thread beyond which a run is not timed against the others."""
    return max(HOPELESS_SECONDS, HOPELESS_RATIO * threads * min(alone))


@contextmanager
def _threads(n: int) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measure(runs: Sequence[Run], device: torch.device, alone: Sequence[float]) -> Times:
    """alone: about the seconds of each run, with one thread on the CPU."""
    sample = SAMPLE_SECONDS.get(device.type, SAMPLE_SECONDS["cuda"])
    repeats = [max(1, round(sample / max(s, 1e-7))) for s in alone]
    samples = [min(8, max(1, round(TURN_SECONDS / max(s * n, 1e-7)))) for s, n in zip(alone, repeats, strict=True)]
    least = [[float("inf")] * len(runs) for _ in range(2)]
    begin, cpu = time.perf_counter(), device.type == "cpu" and torch.get_num_threads() > 1
    for r in itertools.count(1):
        order = range(len(runs)) if r % 2 else range(len(runs) - 1, -1, -1)
        for i in order:
            least[r % 2][i] = min(least[r % 2][i], _least(runs[i], repeats[i], samples[i], device))
        if r % 2:
            continue
        steady = all(abs(a - b) <= AGREE * min(a, b) for a, b in zip(*least, strict=True))
        # Waking a thread takes microseconds, but 60 where another program has its core: longer than a small layer.
        waits = cpu and any(min(a, b) > 1.2 * s + 2e-5 for a, b, s in zip(*least, alone, strict=True))
        late = time.perf_counter() - begin > SECONDS
        if waits or (steady and r >= SOON) or (late and r >= LEAST_ROUNDS):
            break
    ms = tuple(1e3 * min(pair) for pair in zip(*least, strict=True))
    return Times(ms, waits or not steady, torch.get_num_threads())


def _least(run: Run, repeats: int, samples: int, device: torch.device) -> float:
    """The shortest of some samples, in seconds per run; fewer of them where they take much longer than expected."""
    best, start = float("inf"), time.perf_counter()
    for _ in range(samples):
        _sync(device)
        begin = time.perf_counter()
        for _ in range(repeats):
            run()
        _sync(device)
        end = time.perf_counter()
        best = min(best, (end - begin) / repeats)
        if end - start > 4 * TURN_SECONDS:
            break
    return best


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
