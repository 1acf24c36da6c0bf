"""Optimisers: components, parameter groups, learning rates and the clipping of each component.

A component is "connector", "vision" or "text". Every rule follows allenai/molmo 793fa38 (olmo.optim, olmo.train).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from molmo_ds.config import ComponentConfig, LoraConfig, OptimConfig
from molmo_ds.model.lora import is_base
from molmo_ds.model.molmo import Molmo, component, decays
from molmo_ds.model.vision import used_layers

COMPONENTS = ("connector", "vision", "text")
CHUNK = 1 << 16  # elements whose squares are summed in fp32


def frozen_names(model: Molmo, optim: OptimConfig, lora: LoraConfig | None = None) -> set[str]:
    """Parameters that stay as they are: frozen components, the base embedding, ViT blocks whose output nobody reads,
    and what has an adapter.

    The reference leaves those blocks in the optimizer without a gradient, which skips them: the same thing.
    """
    first_unused = used_layers(model.config.vision)[-1] + 1
    unused = tuple(
        f"vision.layers.{i}." for i in range(first_unused, model.config.vision.num_hidden_layers)
    )
    return {
        name
        for name, _ in model.named_parameters()
        if getattr(optim, component(name)).freeze
        or (optim.freeze_embedding and name == "embed.embedding")
        or name.startswith(unused)
        or (lora is not None and is_base(name, lora))
    }


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict]:
    """Optimizer groups, decayed and not, of each component; frozen parameters are left out, and so are empty groups.

    Each group carries its "component" and its "names" (in the order of its parameters) with what the optimizer needs.
    """
    groups: dict[tuple[str, bool], dict] = {}
    for part in COMPONENTS:
        settings: ComponentConfig = getattr(optim, part)
        decay = optim.weight_decay if settings.weight_decay is None else settings.weight_decay
        for decayed in (True, False):
            groups[part, decayed] = {
                "params": [],
                "names": [],
                "component": part,
                "lr": settings.lr,
                "weight_decay": decay if decayed else 0.0,
            }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups[component(name), decays(name)]
            group["params"].append(parameter)
            group["names"].append(name)
    return [group for group in groups.values() if group["params"]]


def split_groups(
    groups: list[dict], marks: Callable[[str, nn.Parameter], dict[str, Any]]
) -> list[dict]:
    """The groups, cut where `marks` of their parameters differ; each carries its marks."""
    out = []
    for group in groups:
        parts: dict[tuple, dict] = {}
        for parameter, name in zip(group["params"], group["names"]):
            marked = marks(name, parameter)
            part = parts.setdefault(
                tuple(marked.items()), {**group, **marked, "params": [], "names": []}
            )
            part["params"].append(parameter)
            part["names"].append(name)
        out += parts.values()
    return out


def build_optimizer(groups: list[dict], optim: OptimConfig) -> torch.optim.Optimizer:
    """torch's AdamW or SGD over `parameter_groups`."""
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, betas=tuple(optim.betas), eps=optim.eps)
    return torch.optim.SGD(groups)


def learning_rate(optim: OptimConfig, part: str, step: int, max_steps: int) -> float:
    """The rate of a component at a step; the first update is step 1.

    Linear warm-up from warmup_min_lr, a cosine down to alpha_f of the peak at t_max (or max_steps), then flat.
    """
    settings: ComponentConfig = getattr(optim, part)
    peak = settings.lr
    warmup = settings.warmup_steps
    end = optim.t_max or max_steps
    if step < warmup:
        start = 0.1 * peak if optim.warmup_min_lr is None else optim.warmup_min_lr
        return start + (peak - start) * min(step, warmup) / warmup
    low = peak * optim.alpha_f
    if step >= end:
        return low
    return low + (peak - low) * (1 + math.cos(math.pi * (step - warmup) / (end - warmup))) / 2


def norm_limit(optim: OptimConfig, step: int) -> float:
    """The schedule of the largest gradient norm of a component; 0 = no clipping."""
    early = step <= optim.grad_clip_warmup_steps and optim.grad_clip_warmup_steps > 0
    return optim.max_grad_norm * (optim.grad_clip_warmup_factor if early else 1.0)


def norm_limit_used(optim: OptimConfig, step: int) -> float:
    """The limit that the update of `step` is clipped to: as in the reference, the schedule acts one step late."""
    return optim.max_grad_norm if step <= 1 else norm_limit(optim, step - 1)


@torch.no_grad()
def clip(
    gradients: dict[str, list[Tensor]],
    squares_sum: Callable[[Tensor], object],
    limit: float,
    owned: dict[str, list[Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Scale each component's gradients in place so that its norm is at most `limit` (0 = leave them).

    Args:
        gradients: component -> this rank's pieces.
        squares_sum: sums a float64 tensor over the ranks, in place.
        owned: those of `gradients` that this rank counts, so that every element of every parameter is counted by
            exactly one rank; None = all.

    Returns:
        Component -> norm before clipping (0-dimensional), for the components in COMPONENTS.
    """
    device = next((g.device for pieces in gradients.values() for g in pieces), torch.device("cpu"))
    squares = torch.zeros(len(COMPONENTS), dtype=torch.float64, device=device)
    counted = gradients if owned is None else owned
    for i, part in enumerate(COMPONENTS):
        # by chunks: an fp32 sum over the millions of a flat partition was 2e-4 off on a CPU
        if pieces := [
            c for g in counted.get(part, ()) for c in g.reshape(-1).split(CHUNK) if c.numel()
        ]:
            squares[i] = torch.stack([n.double() ** 2 for n in torch._foreach_norm(pieces)]).sum()
    squares_sum(squares)
    norms = squares.sqrt()
    for part, norm in zip(COMPONENTS, norms):
        if limit > 0 and gradients.get(part):
            torch._foreach_mul_(gradients[part], (limit / (norm + 1e-6)).clamp(max=1.0).float())
    return dict(zip(COMPONENTS, norms))
