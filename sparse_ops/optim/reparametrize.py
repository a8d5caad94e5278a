"""Weights in use as functions of trained ones: soft thresholds put on a model's layers and taken off again."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparse_ops.nn.parametrized import Form, put_on, take_off
from sparse_ops.ops.soft_threshold import Leaky, soft_threshold

FLOOR = 1e-4  # smaller magnitudes count as this in the derivative of |a|^p, which has no bound at 0


class SoftThreshold(Form):
    """w -> sign(w) relu(|w| - t_g), t_g = sigmoid(raw_g), times the group's sum of magnitudes where `relative`.

    raw: (1,), the weight is one group, or (filters,), a group each. unit="filter": whole filters vanish, w_f
    relu(||w_f|| - t) / ||w_f|| with t = sigmoid(raw) * the sum of the filters' 2-norms. A parametrization of
    torch.nn.utils.parametrize.
    """

    def __init__(self, raw: Tensor, *, relative: bool, leaky: Leaky, unit: str = "weight") -> None:
        super().__init__()
        self.raw = nn.Parameter(raw)
        self.relative, self.leaky, self.unit = relative, leaky, unit

    def forward(self, weight: Tensor) -> Tensor:
        """The weight in use."""
        share = torch.sigmoid(self.raw)
        if self.unit == "weight":
            return soft_threshold(weight, share, self.relative, self.leaky)
        wide = _wide(weight)
        norms = torch.linalg.vector_norm(wide.flatten(1), dim=1)
        left = soft_threshold(norms, share, self.relative, self.leaky)
        scale = left / torch.where(norms > 0, norms, 1.0)
        return (wide * scale.reshape(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)

    def penalty_gradient(self, y: Tensor, p: float) -> Tensor:
        """d/dy of the sum of |y|^p over what is not zero, of the filters' 2-norms where filters are the unit."""
        if self.unit == "weight":
            return y.sign() * p * y.abs().clamp_min(FLOOR) ** (p - 1)
        norms = torch.linalg.vector_norm(_wide(y).flatten(1), dim=1)
        factor = (p * norms.clamp_min(FLOOR) ** (p - 2)).to(y.dtype)
        return y * factor.reshape(-1, *[1] * (y.dim() - 1))


class Reparametrization:
    """A form on each of some weights of a model, in every module that holds the weight.

    The Parameter itself stays what the optimiser holds, `<module>.parametrizations.weight.original`.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        make: Callable[[str, nn.Parameter], SoftThreshold],
    ) -> None:
        self.weights = dict(weights)
        self.forms = {name: make(name, w).to(w.device) for name, w in weights.items()}
        names = {id(w): name for name, w in weights.items()}
        self._places: list[tuple[nn.Module, str]] = []
        for module in list(model.modules()):
            order = list(module._parameters)
            for leaf, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if id(parameter) in names:
                    put_on(module, leaf, self.forms[names[id(parameter)]], order)
                    self._places.append((module, leaf))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The thresholds, before their sigmoid."""
        return [form.raw for form in self.forms.values()]

    @torch.no_grad()
    def effective(self) -> dict[str, Tensor]:
        """Name -> the weight in use."""
        return {name: self.forms[name](w) for name, w in self.weights.items()}

    def zeros(self) -> int:
        """How many of the weights in use are zero."""
        return sum(y.numel() - int(y.count_nonzero()) for y in self.effective().values())

    @torch.no_grad()
    def remove(self, keep: bool) -> None:
        """Give the modules their plain Parameters back: with the weights in use (keep), or as they were trained.

        Copies of the model keep theirs, and their thresholds.
        """
        values = self.effective() if keep else {}
        for module, leaf in self._places:
            take_off(module, leaf)
        self._places = []
        for name, value in values.items():
            self.weights[name].copy_(value)

    def add_penalty_grad_(
        self, strength: float, p: float, climbing: Iterable[Tensor], grad_scale: Tensor | None = None
    ) -> None:
        """Add strength * d(sum |y|^p), y being the weights in use, to .grad of weights and thresholds that have one.

        climbing: the parameters whose optimiser maximises, which get the negative.
        """
        up = set(map(id, climbing))
        for name, weight in self.weights.items():
            form = self.forms[name]
            if weight.grad is None or form.raw.grad is None:
                continue
            with torch.enable_grad():
                y = form(weight)
            pull = form.penalty_gradient(y.detach(), p) * strength
            if grad_scale is not None:
                pull = pull * grad_scale.to(pull.dtype)
            for parameter, grad in zip(
                (weight, form.raw), torch.autograd.grad(y, (weight, form.raw), pull), strict=True
            ):
                assert parameter.grad is not None
                parameter.grad.add_(grad, alpha=-1 if id(parameter) in up else 1)


def _wide(t: Tensor) -> Tensor:
    """In float32, or as it is in float64."""
    return t if t.dtype == torch.float64 else t.float()


def logit(share: float) -> float:
    """The number of which `share`, in (0, 1), is the sigmoid."""
    return math.log(share) - math.log1p(-share)


class ThresholdGroup:
    """The thresholds as a parameter group of their own at the end of an optimiser's, until `remove`.

    lr_factor: what the first group's learning rate is multiplied with for this one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], lr_factor: float) -> None:
        self.optimizer, self.parameters = optimizer, parameters
        first = optimizer.param_groups[0]
        options: dict[str, Any] = {"params": parameters, "weight_decay": 0.0}
        for key in ("lr", "initial_lr"):
            if key in first:
                options[key] = first[key] * lr_factor  # a tensor gets a copy of its own
        optimizer.add_param_group(options)

    def _index(self) -> int | None:
        """Where it is now: load_state_dict makes new groups."""
        for i, group in enumerate(self.optimizer.param_groups):
            if any(p is self.parameters[0] for p in group["params"]):
                return i
        return None

    def set_weight_decay(self, value: float) -> None:
        """Of the thresholds alone."""
        index = self._index()
        assert index is not None
        self.optimizer.param_groups[index]["weight_decay"] = value

    def clip_gradients_(self, limit: float, grad_scale: Tensor | None = None) -> None:
        """Bring the thresholds' gradients into [-limit, limit], both times grad_scale."""
        for p in self.parameters:
            if p.grad is not None:
                bound = torch.full_like(p.grad, limit)
                if grad_scale is not None:
                    bound = bound * grad_scale.to(bound.dtype)
                p.grad.clamp_(-bound, bound)

    def climbing(self) -> list[Tensor]:
        """All parameters whose group maximises."""
        return [p for group in self.optimizer.param_groups if group.get("maximize") for p in group["params"]]

    def remove(self) -> None:
        """Take the group and its state out of the optimiser."""
        index = self._index()
        if index is not None:
            del self.optimizer.param_groups[index]
            for p in self.parameters:
                self.optimizer.state.pop(p, None)
