"""Memory of dead tensors for new ones, so that large outputs do not fault in new pages at each call."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# glibc keeps blocks below 32 MiB for the next allocation and hands larger ones back to the system, which has to clear
# every page of the next one: 84 ms for a copy of 51 MB, 3 ms for 26 MB (one thread, Zen 4, busy).
LEAST_BYTES = 1 << 20
KEPT_CALLS = 4  # that a block may wait to be used again

_active = threading.local()
_use_count = getattr(torch._C, "_storage_Use_Count", None)


class Recycler:
    """Blocks of memory that are handed out again when no tensor uses them any more; for any number of threads."""

    def __init__(self) -> None:
        self._blocks: list[torch.UntypedStorage] = []
        self._idle: dict[int, int] = {}  # calls of `run` since a block was handed out, by its address in Python
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous CPU tensor."""
        n = 1
        for size in shape:
            n *= size
        n *= dtype.itemsize
        with self._lock:
            best = None
            for block in self._blocks:
                size = block.nbytes()
                if n <= size <= 2 * n and (best is None or size < best.nbytes()) and self._free(block):
                    best = block
            if best is None:
                best = torch.UntypedStorage(n)
                self._blocks.append(best)
            self._idle[id(best)] = 0
            strides, step = [], 1
            for size in reversed(shape):
                strides.append(step)
                step *= max(1, size)
            return torch.empty(0, dtype=dtype).set_(best, 0, tuple(shape), tuple(reversed(strides)))

    @staticmethod
    def _free(block: torch.UntypedStorage) -> bool:
        """Whether no tensor uses it: of this process, or of another that it was sent to."""
        return _use_count(block._cdata) == 1 and not block.is_shared()  # type: ignore[misc]

    def _tidy(self) -> None:
        """Let go of what went to other processes, and of what calls no longer ask for, as after another batch size."""
        with self._lock:
            kept = []
            for block in self._blocks:
                self._idle[id(block)] += 1
                if self._idle[id(block)] <= KEPT_CALLS and not block.is_shared():
                    kept.append(block)
                else:
                    del self._idle[id(block)]
            self._blocks = kept

    def bytes(self) -> int:
        """What all blocks take."""
        with self._lock:
            return sum(block.nbytes() for block in self._blocks)

    def clear(self) -> None:
        """Give back what no tensor uses; the rest when its tensors go."""
        with self._lock:
            self._blocks.clear()
            self._idle.clear()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Large outputs of this thread's sparse ops come from here."""
        before = getattr(_active, "recycler", None)
        _active.recycler = self
        try:
            yield
        finally:
            _active.recycler = before

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args) inside of it: 2 us less than a `with`."""
        before = getattr(_active, "recycler", None)
        _active.recycler = self
        try:
            return function(*args)
        finally:
            _active.recycler = before
            if self._blocks:
                self._tidy()

    def __deepcopy__(self, memo: object) -> "Recycler":
        return Recycler()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Recycler, ()


def own_bytes() -> int:
    """The largest tensor that need not come from the thread's recycler."""
    return LEAST_BYTES - 1 if getattr(_active, "recycler", None) is not None else 2**63 - 1


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of like's dtype and device, from the thread's recycler where it has one."""
    recycler = getattr(_active, "recycler", None)
    if recycler is None or type(like) is not Tensor or like.device.type != "cpu" or _use_count is None:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    n = like.element_size()
    for size in shape:
        n *= size
    if n < LEAST_BYTES:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    return recycler.empty(shape, like.dtype)
