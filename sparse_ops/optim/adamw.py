"""AdamW with penalty, update, mask and exact threshold statistics in one pass over the weights."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sparse_ops.ops.bound_sweep import BoundAdamw
from sparse_ops.ops.regularized_adamw import regularized_adamw_
from sparse_ops.optim.fused import check_numbers, in_storage_of
from sparse_ops.optim.steady import STEP, SteadySteps


class AdamW(SteadySteps, torch.optim.AdamW):
    """torch.optim.AdamW's rule, signature, parameter groups and state_dict, in one fused pass, with a sweep or without.

    The penalty of a sparsifier joins the gradient, as a term of the loss would; weight decay stays decoupled.
    `foreach`, `fused` and `capturable` are accepted and kept for exchange with torch.optim.AdamW, but choose nothing;
    `lr` may be a 0-dim tensor: on CUDA the device reads it, so that nothing waits and a captured graph follows its
    changes; betas may be tensors too, but the host reads them, which waits. Gradients are only read. Under GradScaler
    the step unscales and skips by itself; the counts of steps lie beside the weights, so that on CUDA nothing waits for
    the device. `state_dict` has them where torch.optim.AdamW keeps them: beside the weights if `fused` or `capturable`,
    else on the CPU. state_dtype=torch.float32 keeps the moments of half parameters in float32 (default: the parameter's
    dtype); a loaded state keeps the precision it was saved in. ValueError for differentiable=True and for sparse
    gradients. On the CPU a group that is updated whole is bound, see `SteadySteps`.
    """

    _bound_sweep = BoundAdamw

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        if differentiable:
            raise ValueError("AdamW: differentiable is True; the fused step writes in place and has no gradient")
        check_numbers("AdamW", lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            fused=fused,
        )
        self._keep_state_in(state_dtype)
        self.release()

    def _kept_state(self, group: dict[str, Any]) -> tuple[str, ...]:
        moments = "exp_avg", "exp_avg_sq"
        return (*moments, "max_exp_avg_sq", STEP) if group["amsgrad"] else (*moments, STEP)

    def _numbers(self, group: dict[str, Any]) -> dict[str, Any]:
        beta1, beta2 = map(float, group["betas"])
        decays = {name: float(group[name]) for name in ("eps", "weight_decay")}
        return {"beta1": beta1, "beta2": beta2, **decays, "maximize": bool(group["maximize"])}

    def _any_update(self, group: dict[str, Any]) -> list[Tensor]:
        amsgrad, numbers = bool(group["amsgrad"]), self._numbers(group)
        updated: list[Tensor] = []
        for bucket in self._buckets(group, lambda p: self._state_of(p, amsgrad)):
            states = bucket.states
            steps: list[Tensor] = [state["step"] for state in states]
            if bucket.found_inf is None:
                torch._foreach_add_(steps, 1)
            else:  # a step that the device skips does not count
                torch._foreach_add_(steps, [(1 - bucket.found_inf).reshape(())] * len(steps))
            regularized_adamw_(
                bucket.params,
                bucket.grads,
                in_storage_of(bucket.params, states, "exp_avg"),
                in_storage_of(bucket.params, states, "exp_avg_sq"),
                in_storage_of(bucket.params, states, "max_exp_avg_sq") if amsgrad else [],
                steps,
                bucket.masks,
                bucket.groups,
                bucket.scopes,
                *bucket.tables,
                penalty=bucket.penalty,
                lr=self._rate(group, bucket.params[0].device),
                **numbers,
                grad_scale=bucket.grad_scale,
                found_inf=bucket.found_inf,
            )
            self._bind(group, bucket)
            updated += bucket.params
        return updated

    def _state_of(self, p: Tensor, amsgrad: bool) -> dict[str, Any]:
        """The state as torch.optim.AdamW makes and loads it; the count of steps is float32 on the weight's device."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p, dtype=self.state_dtype)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=self.state_dtype)
        if amsgrad and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = torch.zeros_like(p, dtype=self.state_dtype)
        if state["step"].dtype != torch.float32 or state["step"].device != p.device:
            state["step"] = state["step"].to(p.device, torch.float32, non_blocking=p.is_cuda)
        return state

    def state_dict(self) -> dict[str, Any]:
        """That of torch.optim.AdamW; it waits for the device where the counts of steps have to leave it."""
        packed = super().state_dict()
        states = dict(packed["state"])
        for group in packed["param_groups"]:
            if not (group.get("fused") or group.get("capturable")):
                for index in group["params"]:
                    if index in states and states[index]["step"].device.type != "cpu":
                        states[index] = states[index] | {"step": states[index]["step"].cpu()}
        return packed | {"state": states}
