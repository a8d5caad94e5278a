"""Device tables that tell one launch of a multi-tensor kernel where all its tensors lie, uploaded without a sync."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# int64 columns of a row: numel, scope, addresses of weight, gradient, mask, group, three states, step (0: none), and in
# the last how many chunks the tensors before this one in the list have
COLUMNS = 16


class Table(NamedTuple):
    """What one launch covers: tensors of equal dtypes and alignment."""

    rows: Tensor  # (T, 16) int64
    chunks: Tensor  # (P, 2) int32: row, number of the chunk in its tensor
    first: int  # where the partial sums of this launch begin among those of the plan
    dtypes: tuple[torch.dtype, ...]  # of weight, gradient, states, as far as there are any
    aligned: bool  # every address is a multiple of 16 bytes and every numel of 8, so that accesses may be 128 bits
    masked: bool  # some tensor has a mask
    scoped: bool  # some tensor has a scope
    chunk: int  # elements of a chunk


class Plan(NamedTuple):
    """The launches that cover a list of tensors."""

    tables: list[Table]
    chunk_scopes: Tensor  # (P,) int32: the scope of every chunk of all tables in order
    programs: int  # programs that an always-launched kernel may use: one per multiprocessor

    def partials(self) -> Tensor:
        """Where the programs of a sweep leave their sums: (6, P) float64."""
        return torch.empty(6, self.chunk_scopes.numel(), dtype=torch.float64, device=self.chunk_scopes.device)

    def histograms(self, scopes: int, dtype: torch.dtype) -> Tensor:
        """Where radix selection counts digits, zero: (scopes, rounds, 2048) int64. dtype: of the comparison."""
        rounds = 6 if dtype == torch.float64 else 3
        return torch.zeros(scopes, rounds, 2048, dtype=torch.int64, device=self.chunk_scopes.device)


_plans: OrderedDict[tuple, Plan] = OrderedDict()  # by content, so that an entry is never stale
_integers: OrderedDict[tuple, Tensor] = OrderedDict()
_CAPACITY = 64
_captured: dict[tuple, object] = {}  # what a CUDA graph reads at every replay, kept for good


def _upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Each array as a tensor on the device, all in one copy; each begins at a multiple of 16 bytes."""
    if device.type != "cuda":
        return [torch.from_numpy(a) for a in arrays]
    begins = np.cumsum([0] + [-(a.nbytes // -16) * 16 for a in arrays]).tolist()
    pinned = torch.empty(begins[-1], dtype=torch.uint8, pin_memory=True)
    host = pinned.numpy()
    for a, begin in zip(arrays, begins, strict=False):
        host[begin : begin + a.nbytes] = a.reshape(-1).view(np.uint8)
    copy = pinned.to(device, non_blocking=True)
    if torch.cuda.is_current_stream_capturing():
        _captured[("upload", pinned.data_ptr())] = pinned  # the graph repeats the copy
    return [
        copy[begin : begin + a.nbytes].view(torch.int64 if a.dtype == np.int64 else torch.int32).view(a.shape)
        for a, begin in zip(arrays, begins, strict=False)
    ]


def _cached(cache: OrderedDict, key: tuple, device: torch.device, make):  # type: ignore[no-untyped-def]
    """make() under a key that holds the content, per stream; never kept from a capture, where nothing has run yet.

    A capture takes what any stream has uploaded before: a graph that is replayed without copies is faster. By then that
    upload has ended, since torch.cuda.graph synchronises before it captures.
    """
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            known = next((value for other, value in cache.items() if other[:-1] == key), None)
            if known is None:
                return make()
            _captured[key] = known
            return known
        key = (*key, torch.cuda.current_stream(device).cuda_stream)
    if key in cache:
        cache.move_to_end(key)
        return cache[key]
    cache[key] = made = make()
    if len(cache) > _CAPACITY:
        cache.popitem(last=False)
    return made


def integers(values: Sequence[int], device: torch.device) -> Tensor:
    """A small int64 tensor on the device, uploaded once."""
    key = (tuple(values), device)
    return _cached(_integers, key, device, lambda: _upload([np.array(values, dtype=np.int64)], device)[0])


def plan(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor] = (),
    masks: Sequence[Tensor] = (),
    groups: Sequence[Tensor] = (),
    states: Sequence[Sequence[Tensor]] = (),
    steps: Sequence[Tensor] = (),
    *,
    scopes: Sequence[int],
    device: torch.device | None = None,
    chunk: int = 16384,
) -> Plan:
    """Tables over dense tensors, walked in storage order; every list but weights may be empty.

    states: up to three lists. chunk is a multiple of 8, so that no byte of a packed mask belongs to two chunks. Tensors
    without elements are left out. The caller keeps the tensors alive until the launch.
    """
    floats = [column for column in (weights, grads, *states) if column]
    columns = [weights, grads, masks, groups, *states, *[()] * (3 - len(states)), steps]
    addresses = [[t.data_ptr() if t.numel() else 0 for t in column] or [0] * len(weights) for column in columns]
    dtypes = [[t.dtype for t in column] for column in floats]
    numels = [w.numel() for w in weights]
    device = weights[0].device if device is None else device
    key = (device, chunk, *map(tuple, addresses), *map(tuple, dtypes), *numels, *scopes)

    def make() -> Plan:
        rows = np.zeros((len(weights), COLUMNS), dtype=np.int64)
        rows[:, 0], rows[:, 1] = numels, scopes
        rows[:, 2 : 2 + len(addresses)] = np.transpose(addresses)
        counts = -(rows[:, 0] // -chunk)
        rows[:, -1] = np.cumsum(counts) - counts
        return _plan(rows, [*zip(*dtypes, strict=True)], chunk, device)

    return _cached(_plans, key, device, make)


def _plan(rows: np.ndarray, dtypes: list[tuple[torch.dtype, ...]], chunk: int, device: torch.device) -> Plan:
    aligned = (rows[:, [2, 3, 6, 7, 8]] % 16 == 0).all(axis=1) & (rows[:, 0] % 8 == 0)
    kinds = [(d, bool(a)) for d, a in zip(dtypes, aligned, strict=True)]
    of_kinds, arrays, scopes = [], [], [np.zeros(0, dtype=np.int32)]
    for kind in dict.fromkeys(kinds):
        of_kind = rows[[k == kind and n > 0 for k, n in zip(kinds, rows[:, 0], strict=True)]]
        counts = -(of_kind[:, 0] // -chunk)
        P = int(counts.sum())
        if P == 0:
            continue
        row = np.repeat(np.arange(len(of_kind)), counts)
        number = np.arange(P) - np.repeat(np.cumsum(counts) - counts, counts)
        of_kinds.append((kind, of_kind))
        arrays += [of_kind, np.stack([row, number], axis=1).astype(np.int32)]
        scopes.append(of_kind[row, 1].astype(np.int32))
    *uploaded, chunk_scopes = _upload([*arrays, np.concatenate(scopes)], device)
    tables, first = [], 0
    for (kind, of_kind), table_rows, chunks in zip(of_kinds, uploaded[::2], uploaded[1::2], strict=True):
        tables.append(
            Table(
                rows=table_rows,
                chunks=chunks,
                first=first,
                dtypes=kind[0],
                aligned=kind[1],
                masked=bool((of_kind[:, 4] != 0).any()),
                scoped=bool((of_kind[:, 1] >= 0).any()),
                chunk=chunk,
            )
        )
        first += chunks.shape[0]
    programs = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return Plan(tables, chunk_scopes, programs)
