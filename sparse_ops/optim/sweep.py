"""The Sweep: which weights a training method watches, and the tensors that carry its state from step to step."""

import math
import operator
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sparse_ops import checks
from sparse_ops.masks import PackedMask
from sparse_ops.ops.add_penalty_grad import add_penalty_grad_
from sparse_ops.ops.hypersparse_loss import KNEE
from sparse_ops.ops.sweep_finish import sweep_finish_
from sparse_ops.ops.sweep_observe import sweep_observe_
from sparse_ops.optim import verify
from sparse_ops.optim.packed import PackedBits, unpacked_state

PENALTIES = ("none", "l1", "l2", "growing_l2", "hypersparse")
CANDIDATE_SHARE = 64  # room for one candidate in 64 weights; the bracket aims at half of the room at most


class StepHooks(NamedTuple):
    """Called around each step that is not skipped; where `before` returns False, the weights are left alone in it."""

    before: Callable[[], bool]
    after: Callable[[], None]


class ForgetAdded:
    """The hook that a sweep puts on its weights until their next backward; it keeps nothing alive."""

    def __init__(self, sweep: "Sweep") -> None:
        self._sweep = weakref.ref(sweep)

    def __call__(self, _: Tensor) -> None:
        sweep = self._sweep()
        if sweep is not None:
            sweep.forget_added()


class Sweep:
    """What one fused pass per step needs to know and leaves behind.

    weights: name -> parameter, all on one device. scopes: the row of each weight in the tensors of the sweep (default:
    all in row 0). The penalty, its strength, the masks and the tracked sparsity are set by a method; optimisers call
    `begin`, hand `operands` to their op, and call `finish`. Nothing here synchronises with a CUDA device but
    `metrics`, `state_dict` and check=True.

    Weights that are changed between two steps get exact coefficients before the next one. Changes are seen by torch's
    version counters and by addresses: what is written through `.data`, or by foreign code that does not count, is not.
    Call `refresh` after it, else one step uses the old threshold and coefficients.

    tolerance: the largest |ds/s| for which A is corrected instead of summed anew. exact_every: steps between two
    exact passes that are taken in any case. check=True recomputes threshold, coefficients and masks exactly after each
    step and raises AssertionError where they disagree.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        scopes: Sequence[int] | None = None,
        *,
        tolerance: float = 0.01,
        exact_every: int = 1000,
        check: bool = False,
    ) -> None:
        if not isinstance(weights, Mapping):
            raise TypeError(
                f"Sweep: weights is of type {type(weights).__name__}, expected a dict from names to Parameters"
            )
        checks.at_least_0("Sweep", "tolerance", tolerance)
        checks.at_least_0("Sweep", "exact_every", exact_every)
        if not weights:
            raise ValueError("Sweep: there are no weights to watch")
        rows = list(scopes) if scopes is not None else [0] * len(weights)
        if len(rows) != len(weights) or sorted(set(rows)) != list(range(max(rows) + 1)):
            raise ValueError(f"Sweep: scopes are {rows} for {len(weights)} weights; expected every row from 0 up")
        for name, w in weights.items():
            if not isinstance(w, nn.Parameter):
                raise TypeError(f"Sweep: weights[{name!r}] is of type {type(w).__name__}, expected a Parameter")
        devices = {name: w.device for name, w in weights.items()}
        first, device = next(iter(devices.items()))
        for name, other in devices.items():
            if other != device:
                raise ValueError(f"Sweep: {first} is on {device}, {name} on {other}; all must be on one device")
        for name, w in weights.items():
            if not checks.is_dense(w):
                raise ValueError(
                    f"{name} has gaps or overlaps in memory, strides {w.stride()} for {tuple(w.shape)}; make the "
                    "parameter of a contiguous tensor, or leave it out with exclude="
                )
        self.weights = dict(weights)
        self.scopes = dict(zip(weights, rows, strict=True))
        self.numel = [0] * (max(rows) + 1)
        for name, w in weights.items():
            self.numel[self.scopes[name]] += w.numel()
        self.tolerance, self.exact_every, self.check = tolerance, exact_every, check
        self.optimizer: torch.optim.Optimizer | None = None  # set by optim.hooks.attach
        self.hooks: StepHooks | None = None  # set by a method that acts between two epochs
        self.penalty = "none"
        self.ranks = [0] * len(self.numel)
        self.steps = 0
        self._names: dict[Tensor, str] = {w: name for name, w in weights.items()}
        self._operands: dict[tuple[int, ...], tuple[Sequence[Tensor], Any]] = {}  # by the ids of the parameters
        self._masks, self._groups = self._packed("mask", {}), self._packed("group", {})
        self._seen: list[tuple[int, int]] | None = None
        self._adopt = False
        self._added = False
        self._until_backward: list[Any] = []
        self._warned = False
        self._allocate(device)

    def _allocate(self, device: torch.device) -> None:
        R = len(self.numel)
        # shared out evenly over the scopes: a row as long as the largest scope's in each took 4 % of a network's bytes
        room = sum(self.numel) // (CANDIDATE_SHARE * R) + (1024 if R == 1 else 256)
        capacity = min(max(self.numel), room)
        double = any(w.dtype == torch.float64 for w in self.weights.values())
        self.coefficients = torch.zeros(R, 4, dtype=torch.float64, device=device)
        self.brackets = torch.zeros(R, 2, dtype=torch.float64, device=device)
        self.statistics = torch.zeros(R, 7, dtype=torch.float64, device=device)
        self.report = torch.zeros(R, 8, dtype=torch.float64, device=device)
        self.candidates = torch.zeros(R, capacity, dtype=torch.float64 if double else torch.float32, device=device)
        self._hits = torch.zeros(R, dtype=torch.float64, device=device)
        self._strengths = [[0.0] * R, [0.0] * R]  # what the first two columns of the coefficients hold
        self._row_numbers: dict[tuple[int, ...], Tensor] = {}  # on the device, of those that were filled together

    # What a method sets

    def set_penalty(
        self, name: str, strength: float | Sequence[float] = 0.0, kept_strength: float | Sequence[float] = 0.0
    ) -> None:
        """Add this penalty's gradient from the next step on; strengths are one number, or one for each scope."""
        if name not in PENALTIES:
            raise ValueError(f"Sweep: penalty is {name!r}; it may be one of {', '.join(PENALTIES)}")
        for column, given in enumerate((strength, kept_strength)):
            values = list(given) if isinstance(given, Sequence) else [given] * len(self.numel)
            if len(values) != len(self.numel) or not all(map(math.isfinite, values)):
                raise ValueError(
                    f"Sweep: the strength of {name} is {given}, expected finite numbers, one for each scope"
                )
            self._fill(column, list(map(float, values)))
        self.penalty = name

    def track(self, sparsities: float | Sequence[float] | None) -> None:
        """Know after each step the magnitude at these shares of each scope's weights; None stops it.

        With sparsity kappa over n weights it is the (floor(kappa n) + 1)-th smallest. A scope with kappa 0 is not
        tracked: its scale, ratio and bracket are 0, and of its statistics a step takes the sum of magnitudes alone,
        which shows what is not finite.
        """
        listed = [0.0 if sparsities is None else sparsities] * len(self.numel)
        if isinstance(sparsities, Sequence):
            listed = list(sparsities)
        if len(listed) != len(self.numel) or not all(0 <= kappa < 1 for kappa in listed):  # type: ignore[operator]
            raise ValueError(f"Sweep: tracked sparsities are {listed} for {len(self.numel)} scopes in [0, 1)")
        ranks = [math.floor(k * n) + 1 if k > 0 else 0 for k, n in zip(listed, self.numel, strict=True)]  # type: ignore[operator]
        if ranks == self.ranks:
            return
        self.ranks, self._seen = ranks, None
        for r, rank in enumerate(ranks):
            if rank == 0:  # with the scale left, a masked step of 4 M weights takes 2.9 ms instead of 2.3, one thread
                self.coefficients[r, 2:] = 0
                self.brackets[r] = 0

    @property
    def masks(self) -> dict[str, PackedMask]:
        """Name -> mask in force; empty when nothing is masked."""
        return dict(self._masks.masks)

    def set_masks(self, masks: Mapping[str, PackedMask]) -> None:
        """Hold these weights and their optimiser state at zero where the masks are 0, from now on; {} frees all.

        The weights are zeroed at once, the optimiser's state at its next step.
        """
        self._masks = self._packed("mask", masks)
        self._masks.apply(list(self.weights.items()))
        self._seen = None

    def rebind(self, weights: Mapping[str, nn.Parameter], masks: Mapping[str, PackedMask]) -> None:
        """Watch other parameters under these names from now on, and hold these masks alone, whose weights are zero.

        For layers that become sparse, whose `values` take a weight's place without a mask, or dense again.
        """
        self.weights.update(weights)
        self._names = {w: name for name, w in self.weights.items()}
        self.forget_added()
        self._masks = self._packed("mask", masks)
        self._seen = None

    def set_groups(self, groups: Mapping[str, PackedMask]) -> None:
        """For growing_l2: strength where the bit is 1, kept strength where it is 0."""
        self._groups = self._packed("group", groups)

    @property
    def groups(self) -> dict[str, PackedMask]:
        """Name -> group bits, as `set_groups` was given them."""
        return dict(self._groups.masks)

    def _fill(self, column: int, values: list[float]) -> None:
        """Write a column of the coefficients where it changes, by fills: a copy from the host waits for the device."""
        rows_of: dict[float, list[int]] = {}
        for row, (value, before) in enumerate(zip(values, self._strengths[column], strict=True)):
            if value != before:
                rows_of.setdefault(value, []).append(row)
        for value, rows in rows_of.items():
            if len(rows) == len(values):
                self.coefficients[:, column].fill_(value)
            else:
                key = tuple(rows)
                if key not in self._row_numbers:
                    self._row_numbers[key] = torch.tensor(rows, device=self.coefficients.device)
                self.coefficients[:, column].index_fill_(0, self._row_numbers[key], value)
        self._strengths[column] = values

    def _packed(self, what: str, masks: Mapping[str, PackedMask]) -> PackedBits:
        self._operands.clear()
        return PackedBits(what, {name: w.shape for name, w in self.weights.items()}, masks)

    # What an optimiser calls, around its update

    def begin_step(self) -> bool:
        """Before an update, with all gradients there: False where a method leaves the weights alone in this step."""
        if self.hooks is not None and not self.hooks.before():
            self.steps += 1
            self.forget_added()
            self.hooks.after()
            return False
        self.begin()
        return True

    def begin(self) -> None:
        """Before an update: exact coefficients where the weights were changed by someone else since the last one."""
        device = next(iter(self.weights.values())).device
        if device != self.coefficients.device:
            self._move(device)
        if self._adopt:
            self._adopt = False
        elif self._seen != self._state_of_weights():
            self.refresh()

    def operands(self, params: Sequence[Tensor]) -> tuple[list[int], list[Tensor], list[Tensor]]:
        """(scopes, packed masks, packed groups) of these parameters, as the ops take them."""
        key = tuple(map(id, params))
        known, found = self._operands.get(key, ((), None))
        if found is None or not all(map(operator.is_, known, params)):  # ids are those of a copied sweep's parameters
            names = [self._names.get(p) for p in params]
            scopes = [-1 if name is None else self.scopes[name] for name in names]
            found = scopes, self._masks.operands(names, params), self._groups.operands(names, params)
            groups = 0 if self.optimizer is None else len(self.optimizer.param_groups)
            while len(self._operands) >= 16 + 2 * groups:  # lists that differ from step to step are not kept for ever
                del self._operands[next(iter(self._operands))]
            self._operands[key] = list(params), found
        return found

    @property
    def penalty_now(self) -> str:
        """The penalty that the coming update has still to add: none where `add_penalty_grad_` has added it."""
        return "none" if self._added else self.penalty

    @property
    def added(self) -> bool:
        """True where `add_penalty_grad_` has brought the penalty into the gradients that the coming step will take."""
        return self._added

    def observe(self, without: Sequence[Tensor] = ()) -> None:
        """Masks and statistics of all weights but those that the optimiser's own sweep has covered."""
        covered = set(map(id, without))
        params: list[Tensor] = [w for w in self.weights.values() if id(w) not in covered]
        if params:
            scopes, masks, _ = self.operands(params)
            sweep_observe_(params, masks, scopes, self.coefficients, self.brackets, self.statistics, self.candidates)

    def finish(self) -> None:
        """After an update: threshold, coefficients and bracket of the next step."""
        self.steps += 1
        self.forget_added()
        on_cpu = self.statistics.device.type == "cpu"
        finite = not on_cpu or math.isfinite(self.statistics.numpy()[:, 0].sum())
        # on the CPU in numpy's view of the same memory, an operation of which costs a fifth
        report, hits = (self.report.numpy(), self._hits.numpy()) if on_cpu else (self.report, self._hits)
        counted = report[:, 6] + 0
        due = self.exact_every > 0 and self.steps % self.exact_every == 0
        captured = not on_cpu and torch.cuda.is_current_stream_capturing()  # a graph would take it at every replay
        self._finish(exact=due and not captured)
        hits += report[:, 2] * (report[:, 6] > counted)  # not of a step that the device has skipped
        self._seen = self._state_of_weights()
        if not finite:
            self.raise_non_finite()
        if on_cpu:
            self._warn_without_threshold()
        if self.check:
            self._verify()
        if self.hooks is not None:
            self.hooks.after()

    def refresh(self) -> None:
        """Exact threshold and coefficients of the weights as they are, after a change that was not an update.

        Changes that torch's version counters show are seen without it; those through `.data` are not.
        """
        self._operands.clear()  # a weight may lie in memory in another order now
        self._masks.apply(list(self.weights.items()))
        if any(self.ranks):
            self._finish(exact=True)
            if self.statistics.device.type == "cpu" and bool(self.report[:, 7].any()):
                self.raise_non_finite()
        self._seen = self._state_of_weights()

    @torch.no_grad()
    def add_penalty_grad_(self, grad_scale: Tensor | None = None) -> None:
        """Add the penalty to the gradients now, and not again in the step that follows.

        For after the last backward of a step. The gradients may then be scaled or replaced; it is the next backward
        that makes new ones, also where GradScaler has skipped the step.
        """
        self.begin()
        self.join_gradients(grad_scale)
        if not self._added:
            self._added = True
            forget = ForgetAdded(self)
            self._until_backward = [w.register_post_accumulate_grad_hook(forget) for w in self.weights.values()]

    def join_gradients(self, grad_scale: Tensor | None = None) -> None:
        """Add the penalty to .grad where it is not yet, and zero what the masks prune."""
        penalty, climbing = self.penalty_now, self._maximized()
        with_grad = [(w, w.grad) for w in self.weights.values() if w.grad is not None]
        if penalty != "none":
            descending = [(w, grad) for w, grad in with_grad if w not in climbing]
            ascending = [(w, grad) for w, grad in with_grad if w in climbing]
            self._join(descending, penalty, grad_scale)
            if ascending:  # the optimiser negates what it finds in .grad, and would the penalty with it
                one = torch.ones((), device=ascending[0][0].device)
                self._join(ascending, penalty, -(one if grad_scale is None else grad_scale))
        self._masks.apply([(self._names[w], grad) for w, grad in with_grad])

    def forget_added(self) -> None:
        """The gradients are computed anew: what `add_penalty_grad_` added is gone."""
        self._added = False
        for handle in self._until_backward:
            handle.remove()
        self._until_backward = []

    def mask_state(self, state: Mapping[Any, Mapping[str, Any]]) -> None:
        """Zero, where the masks prune, every tensor of an optimiser's state that has its weight's shape."""
        self._masks.apply(
            [
                (name, t)
                for name, weight in self.weights.items()
                for t in (state[weight].values() if weight in state else ())
                if isinstance(t, Tensor) and t.shape == weight.shape and t.is_floating_point()
            ]
        )

    # Numbers and resuming

    def metrics(self) -> dict[str, float]:
        """Scalars of the last step; `ds_over_s` is the relative change of the scale s of HyperSparse in that step.

        With several scopes threshold, scale and ratio have one entry per scope, `threshold/3`.
        """
        tracked = [r for r, rank in enumerate(self.ranks) if rank]
        rows, coefficients = self.report.tolist(), self.coefficients.tolist()
        values: dict[str, float] = {"strength": max((row[0] for row in coefficients), key=abs)}
        for r in tracked:
            suffix = f"/{r}" if len(self.numel) > 1 else ""
            values[f"threshold{suffix}"] = rows[r][0]
            values[f"scale{suffix}"], values[f"ratio{suffix}"] = coefficients[r][2:]
        if tracked:
            steps = sum(rows[r][6] for r in tracked)
            values["candidates"] = sum(rows[r][3] for r in tracked)
            values["ds_over_s"] = max((rows[r][4] for r in tracked), key=abs)
            values["exact_passes"] = sum(rows[r][5] for r in tracked)
            values["hit_rate"] = sum(self._hits[r].item() for r in tracked) / steps if steps else 0.0
        return values

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to continue bit for bit: tensors, numbers and strings."""
        return {
            "names": list(self.weights),
            "penalty": self.penalty,
            "ranks": list(self.ranks),
            "steps": self.steps,
            "primed": self._adopt or self._seen == self._state_of_weights(),
            "coefficients": self.coefficients.clone(),
            "brackets": self.brackets.clone(),
            "report": self.report.clone(),
            "hits": self._hits.clone(),
            "masks": self._masks.state_dict(),
            "groups": self._groups.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; the weights are loaded by their own state_dict, before or after."""
        if list(state["names"]) != list(self.weights):
            odd = sorted(set(state["names"]) ^ set(self.weights)) or ["their order"]
            raise ValueError(f"Sweep: the checkpoint's prunable weights differ from the model's: {', '.join(odd[:5])}")
        if tuple(state["coefficients"].shape) != tuple(self.coefficients.shape):
            found, own = state["coefficients"].shape[0], len(self.numel)
            raise ValueError(f"Sweep: the checkpoint has {found} scopes, this sweep {own}")
        for name, own_tensor in (
            ("coefficients", self.coefficients),
            ("brackets", self.brackets),
            ("report", self.report),
            ("hits", self._hits),
        ):
            own_tensor.copy_(state[name])
        self._strengths = self.coefficients[:, :2].t().tolist()
        self.statistics.zero_()
        self.penalty, self.ranks, self.steps = state["penalty"], list(state["ranks"]), state["steps"]
        device = self.coefficients.device
        self._masks = self._packed("mask", {k: unpacked_state(v, device) for k, v in state["masks"].items()})
        self._groups = self._packed("group", {k: unpacked_state(v, device) for k, v in state["groups"].items()})
        self._seen, self._adopt = None, bool(state["primed"])
        self.forget_added()

    def raise_non_finite(self) -> None:
        """ValueError naming the first weight that holds a NaN or an infinity, and the value."""
        for name, w in self.weights.items():
            bad = w.detach()[~torch.isfinite(w.detach())]
            if bad.numel():
                raise ValueError(
                    f"{name} holds {bad.numel()} non-finite values ({bad[0].item()}) after step {self.steps}"
                )
        raise ValueError(f"the sum of magnitudes is not finite after step {self.steps}: the weights overflow")

    # Inside

    def _finish(self, exact: bool) -> None:
        sweep_finish_(
            list(self.weights.values()),
            list(self.scopes.values()),
            self.ranks,
            self.coefficients,
            self.brackets,
            self.statistics,
            self.candidates,
            self.report,
            tolerance=self.tolerance,
            exact=exact,
        )

    def _state_of_weights(self) -> list[tuple[int, int]]:
        return [(w._version, w.data_ptr()) for w in self.weights.values()]

    def _join(self, pairs: Sequence[tuple[Tensor, Tensor]], penalty: str, grad_scale: Tensor | None) -> None:
        params, grads = [w for w, _ in pairs], [grad for _, grad in pairs]
        if params:
            scopes, _, groups = self.operands(params)
            add_penalty_grad_(grads, params, groups, scopes, self.coefficients, penalty=penalty, grad_scale=grad_scale)

    def _maximized(self) -> set[Tensor]:
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return {p for group in groups if group.get("maximize") for p in group["params"]}

    def _move(self, device: torch.device) -> None:
        for name in ("coefficients", "brackets", "statistics", "report", "candidates", "_hits"):
            setattr(self, name, getattr(self, name).to(device))
        self._row_numbers.clear()

    def _warn_without_threshold(self) -> None:
        if self._warned or self.penalty != "hypersparse" or self.coefficients.numpy()[:, 2].all():
            return
        thresholds, scales = self.report[:, 0].tolist(), self.coefficients[:, 2].tolist()
        for r, (rank, threshold, scale) in enumerate(zip(self.ranks, thresholds, scales, strict=True)):
            if rank == 0 or scale != 0:
                continue
            names = [name for name, scope in self.scopes.items() if scope == r]
            listed = names[0] if len(names) == 1 else f"{len(names)} weights"
            why = f"the {rank}-th smallest magnitude of {listed} is {threshold:.3g}, "
            if threshold == 0:
                why += "since more weights than the target are exactly zero"
            else:
                kind = str(self.candidates.dtype).removeprefix("torch.")
                why += f"so small that the scale {KNEE} / {threshold:.3g} or its product with N/A is no finite {kind}"
            warnings.warn(f"HyperSparse: {why}; no penalty is added while that is so", stacklevel=4)
            self._warned = True
            return

    def _verify(self) -> None:
        verify.masks_hold((name, self.weights[name], mask) for name, mask in self._masks.masks.items())
        for r, rank in enumerate(self.ranks):
            if rank:
                mine = [w for name, w in self.weights.items() if self.scopes[name] == r]
                threshold, (scale, ratio) = self.report[r, 0].item(), self.coefficients[r, 2:].tolist()
                largest = torch.finfo(self.candidates.dtype).max
                verify.scope_holds(r, mine, rank, self.tolerance, largest, threshold, scale, ratio)
