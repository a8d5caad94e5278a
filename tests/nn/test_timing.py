"""The timing behind measured choices: what is least counts, and a busy machine does not decide."""

import time

import pytest
import torch

from sparse_ops.nn import choice, timing
from sparse_ops.nn.timing import Times

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)


def waiting(milliseconds, delay=lambda: 0.0):
    """A run of this length, and what `delay` adds to it, whatever other programs do."""

    def run():
        end = time.perf_counter() + (milliseconds + delay()) / 1e3
        while time.perf_counter() < end:
            pass

    return run


def test_the_least_of_each_run_counts():
    """Every second call takes ten times as long."""
    state = [0]

    def sometimes():
        state[0] += 1
        return 9.0 * (state[0] % 2)

    times = timing.compare([waiting(1.0, sometimes), waiting(2.0), waiting(0.01)], CPU)
    assert times.ms == pytest.approx((1.0, 2.0, 0.01), rel=0.2)


def test_threads_that_wait_for_a_core_are_timed_as_one(two_threads):
    """As on a machine where every parallel run waits for another program's time slice."""
    threads = lambda: 15.0 * (torch.get_num_threads() > 1)  # noqa: E731
    begin = time.perf_counter()
    times = timing.compare([waiting(0.4, threads), waiting(0.2, threads), waiting(0.04, threads)], CPU)
    assert times.busy and times.threads == 1
    assert times.ms == pytest.approx((0.4, 0.2, 0.04), rel=0.2)
    assert time.perf_counter() - begin < 5


def test_times_that_never_settle_are_called_busy(monkeypatch):
    """Each order has its own time for the first run."""
    monkeypatch.setattr(timing, "SECONDS", 0.05)
    last = [""]

    def run(name, slow_after):
        def late():
            slow, last[0] = last[0] == slow_after, name
            return 0.5 * slow

        return waiting(1.0, late)

    times = timing.compare([run("a", "b"), run("b", "nothing")], CPU)
    assert times.busy
    assert times.ms == pytest.approx((1.0, 1.0), rel=0.2)


@pytest.mark.parametrize(
    "times, sparse, reason",
    [
        (Times((2.0, 1.0), False, 2), True, "2.00 times as fast"),
        (Times((1.11, 1.0), False, 2), True, "1.11 times as fast"),
        (Times((1.07, 1.0), False, 2), False, "sparse is 1.07 times as fast, less than 1.1"),
        (Times((0.5, 1.0), False, 2), False, "sparse is 0.50 times as fast"),
        (Times((2.0, 1.0), True, 1), True, "2.00 times as fast (the machine was busy; 1 thread)"),
    ],
)
def test_a_layer_is_swapped_only_for_a_gain_that_lasts(times, sparse, reason):
    assert choice.judge(times) == (sparse, reason)


def test_a_hopeless_run_is_timed_twice(two_threads):
    """The order of the times stays that of the runs."""
    calls = [0]

    def count():
        calls[0] += 1
        return 0.0

    times = timing.compare([waiting(200.0, count), waiting(0.4), waiting(0.2)], CPU)
    assert calls[0] == 2
    assert times.ms == pytest.approx((200.0, 0.4, 0.2), rel=0.2)


def test_a_slow_first_call_is_not_hopeless(two_threads):
    """As where it compiles a kernel."""
    calls = [0]

    def first():
        calls[0] += 1
        return 200.0 if calls[0] == 1 else 0.0

    times = timing.compare([waiting(0.2, first), waiting(0.4)], CPU)
    assert times.ms == pytest.approx((0.2, 0.4), rel=0.2)
