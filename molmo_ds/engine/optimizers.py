"""Optimizers: AdamW and Muon on CPUs and GPUs; torch's SGD needs nothing."""

import math
from typing import Any

import torch
from torch import Tensor

from molmo_ds.config import OptimConfig
from molmo_ds.ops.adamw import adamw
from molmo_ds.ops.linear import library


class ScalingAdamW(torch.optim.AdamW):
    """AdamW that also divides the gradients of a group by the group's "grad_scale", if it has one.

    Clipping then needs no pass of its own over the gradients. Where it is `fused`, by torch's one kernel over tensors
    of a group, for GPUs; else by `ops.adamw`, tensor by tensor. The state is that of torch's.
    """

    def step(self, closure: None = None) -> None:
        """Update group after group."""
        groups = self.param_groups
        try:
            for group in groups:
                if not group["fused"]:
                    self._update(group)
                    continue
                self.param_groups = [group]
                self.grad_scale = group.get("grad_scale")
                super().step(closure)
        finally:
            self.param_groups = groups

    @torch.no_grad()
    def _update(self, group: dict[str, Any]) -> None:
        scale = group.get("grad_scale")
        divisor = 1.0 if scale is None else float(scale)
        settings = (group["betas"], group["eps"], group["weight_decay"], divisor)
        for weight in group["params"]:
            if weight.grad is None:
                continue
            kept = self.state[weight]
            if not kept:
                kept["step"] = torch.zeros(())
                kept["exp_avg"] = torch.zeros_like(weight)
                kept["exp_avg_sq"] = torch.zeros_like(weight)
            kept["step"] += 1
            moments = (kept["exp_avg"], kept["exp_avg_sq"])
            adamw(weight, weight.grad, *moments, int(kept["step"]), group["lr"], *settings)


class Float32Muon(torch.optim.Muon):
    """torch's Muon with products of float32, for CPUs without bf16, where torch's take most of a step's time."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update matrix after matrix."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                kept = self.state[matrix]
                if "momentum_buffer" not in kept:
                    kept["momentum_buffer"] = torch.zeros_like(matrix.grad)
                mean = kept["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                slope = matrix.grad.lerp(mean, group["momentum"])
                rows, columns = matrix.shape
                scale = math.sqrt(max(1, rows / columns))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(_orthogonal(slope, group), alpha=-group["lr"] * scale)


def _orthogonal(slope: Tensor, group: dict[str, Any]) -> Tensor:
    # the iteration of torch.optim.Muon
    a, b, c = group["ns_coefficients"]
    tall = slope.shape[0] > slope.shape[1]
    x = slope.T if tall else slope
    x = x / x.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon for the groups with "matrices", its AdamW for the others: two optimizers with one state.

    An update of a matrix of shape [out, in] is orthogonal, times sqrt(out / in) where that is above 1.
    """

    def __init__(self, groups: list[dict], optim: OptimConfig, fused: bool | None = None) -> None:
        super().__init__(groups, {})
        matrices = [group for group in self.param_groups if "matrices" in group]
        others = [group for group in self.param_groups if "matrices" not in group]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            on_cpu = all(one.is_cpu for group in matrices for one in group["params"])
            kind = Float32Muon if on_cpu and not library.has_bf16() else torch.optim.Muon
            self.parts.append(kind(matrices, momentum=optim.momentum))
        if others:
            moments = {"betas": tuple(optim.betas), "eps": optim.eps}
            self.parts.append(ScalingAdamW(others, fused=fused, **moments))
        for part in self.parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:
        """Update the matrices, then the rest."""
        for part in self.parts:
            part.step()
