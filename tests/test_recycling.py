"""Memory of dead tensors is handed out again, and memory that somebody may still read is not."""

import torch

from sparse_ops import recycling
from sparse_ops.recycling import KEPT_CALLS, Recycler

SHAPE = (1 << 19,)  # of float32, 2 MiB


def fill(value):
    return recycling.empty(SHAPE, torch.empty(0)).fill_(value)


def test_dead_tensors_memory_comes_back_and_live_ones_stays():
    recycler = Recycler()
    first = recycler.run(fill, 1.0)
    address = first.data_ptr()
    kept = recycler.run(fill, 2.0)
    assert kept.data_ptr() != address and bool((first == 1).all())
    part = first[3:9]
    del first
    assert recycler.run(fill, 3.0).data_ptr() != address and bool((part == 1).all())
    del part
    assert recycler.run(fill, 4.0).data_ptr() == address


def test_what_was_sent_to_another_process_is_never_reused():
    recycler = Recycler()
    sent = recycler.run(fill, 1.0).share_memory_()
    there = torch.UntypedStorage._new_shared_fd_cpu(*sent.untyped_storage()._share_fd_cpu_())
    del sent
    for value in range(2, 5):
        recycler.run(fill, float(value))
    assert bool((torch.empty(0).set_(there, 0, SHAPE) == 1).all())


def test_sizes_that_are_no_longer_asked_for_are_given_back():
    recycler = Recycler()
    for n in range(1, 12):
        recycler.run(lambda n=n: recycling.empty((n << 19,), torch.empty(0)))
    most = recycler.bytes()
    for _ in range(KEPT_CALLS + 1):
        recycler.run(fill, 0.0)
    assert recycler.bytes() <= 4 << 20 < most
