"""Components, parameter groups, learning rates and the clipping of each component.

A component is "connector", "vision" or "text". Every rule follows allenai/molmo 793fa38 (olmo.optim, olmo.train).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from molmo_ds.config import COMPONENTS, ComponentConfig, LoraConfig, OptimConfig
from molmo_ds.engine import optimizers
from molmo_ds.model.lora import is_base
from molmo_ds.model.molmo import Molmo, component, decays, is_hidden_matrix
from molmo_ds.model.vision import used_layers

CHUNK = 1 << 16  # elements whose squares are summed in fp32
LAUNCH = 320  # chunks that a kernel over many tensors takes at once on a GPU


def frozen_names(model: Molmo, optim: OptimConfig, lora: LoraConfig | None = None) -> set[str]:
    """Frozen parameters: those of frozen components, the base embedding, ViT blocks whose output is not used,
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
    Under Muon those of hidden matrices are groups of their own, with "matrices".
    """
    groups: dict[tuple[str, bool, bool], dict] = {}
    for part in COMPONENTS:
        settings: ComponentConfig = getattr(optim, part)
        decay = optim.weight_decay if settings.weight_decay is None else settings.weight_decay
        moments = {
            "betas": tuple(optim.betas if settings.betas is None else settings.betas),
            "eps": optim.eps if settings.eps is None else settings.eps,
        }
        for decayed in (True, False):
            shared = {
                "component": part,
                "weight_decay": decay if decayed else 0.0,
            }
            groups[part, decayed, False] = {
                "params": [],
                "names": [],
                "lr": settings.lr,
                **shared,
                **({} if optim.name == "sgd" else moments),
            }
            groups[part, decayed, True] = {
                "params": [],
                "names": [],
                "lr": settings.matrix_lr,
                "matrices": True,
                **shared,
            }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = optim.name == "muon" and is_hidden_matrix(name, parameter)
            group = groups[component(name), decays(name), matrix]
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


def build_optimizer(
    groups: list[dict], optim: OptimConfig, fused: bool | None = None
) -> torch.optim.Optimizer:
    """AdamW, SGD or Muon over `parameter_groups`, whose own betas and eps come before those of `optim`.

    Args:
        fused: torch's one kernel for AdamW, for GPUs, which reads and writes each number once and needs no temporaries.
            torch's default there moves five times the bytes and holds temporaries as large as a sub-group of ZeRO-3.
    """
    if optim.name == "adamw":
        betas = tuple(optim.betas)
        return optimizers.ScalingAdamW(groups, betas=betas, eps=optim.eps, fused=fused)
    if optim.name == "muon":
        return optimizers.MuonAndAdamW(groups, optim, fused)
    return torch.optim.SGD(groups)


def learning_rate(
    optim: OptimConfig, part: str, step: int, max_steps: int, matrices: bool = False
) -> float:
    """The rate of a component, or of its hidden matrices under Muon, at a step; the first update is step 1.

    Linear warm-up from warmup_min_lr, a cosine down to alpha_f of the peak at t_max (or max_steps), then flat.
    """
    settings: ComponentConfig = getattr(optim, part)
    peak = settings.matrix_lr if matrices else settings.lr
    warmup = settings.warmup_steps
    end = optim.t_max or max_steps
    if step < warmup:
        start = 0.1 * peak if optim.warmup_min_lr is None else optim.warmup_min_lr
        return start + (peak - start) * min(step, warmup) / warmup
    low = peak * optim.alpha_f
    if step >= end:
        return low
    done = (step - warmup) / (end - warmup)
    return low + (peak - low) * (1 + math.cos(math.pi * done)) / 2


def rates(optim: OptimConfig, step: int, max_steps: int) -> dict[str, float]:
    """lr/PART of each component at a step, and lr/PART/matrices under Muon."""
    found = {f"lr/{part}": learning_rate(optim, part, step, max_steps) for part in COMPONENTS}
    if optim.name == "muon":
        for part in COMPONENTS:
            found[f"lr/{part}/matrices"] = learning_rate(optim, part, step, max_steps, True)
    return found


def norm_limit(optim: OptimConfig, step: int) -> float:
    """The schedule of the largest gradient norm of a component; 0 = no clipping."""
    early = step <= optim.grad_clip_warmup_steps and optim.grad_clip_warmup_steps > 0
    return optim.max_grad_norm * (optim.grad_clip_warmup_factor if early else 1.0)


def norm_limit_used(optim: OptimConfig, step: int) -> float:
    """The limit that the update of `step` is clipped to: as in the reference, the schedule acts one step late."""
    return optim.max_grad_norm if step <= 1 else norm_limit(optim, step - 1)


def joined(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Flat views of the tensors that are not empty; those that follow each other in memory are one.

    ZeRO-3's gradients are slices of one buffer, which a kernel then goes through at once.
    """
    out: list[Tensor] = []
    for tensor in tensors:
        if not tensor.numel():
            continue
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor
        if out and follows(flat, out[-1]):
            last = out[-1]
            size = last.numel() + flat.numel()
            out[-1] = last.as_strided((size,), (1,), last.storage_offset())
        else:
            out.append(flat)
    return out


def follows(tensor: Tensor, other: Tensor) -> bool:
    """Whether a flat tensor begins where another one ends."""
    if not (tensor.is_contiguous() and other.is_contiguous() and tensor.dtype == other.dtype):
        return False
    same = tensor.untyped_storage()._cdata == other.untyped_storage()._cdata
    return same and tensor.storage_offset() == other.storage_offset() + other.numel()


def norms_of(tensors: list[Tensor]) -> Tensor:
    """Norms, 1-D in fp32, of parts of the tensors, each part small enough for a sum in fp32 to be right.

    On a GPU `_foreach_norm` adds chunks of CHUNK elements by itself, LAUNCH of them in a kernel; a larger tensor is one
    kernel over rows of CHUNK. On a CPU it does not: a sum over the millions of a flat partition was 2e-4 off.
    """
    rows = []
    small = []
    for tensor in tensors:
        flat = tensor.reshape(-1)
        whole = len(flat) - len(flat) % CHUNK
        if whole > LAUNCH * CHUNK or (whole and not flat.is_cuda):
            row = flat[:whole].view(-1, CHUNK)
            rows.append(torch.linalg.vector_norm(row, dim=1, dtype=torch.float32))
            flat = flat[whole:]
        if len(flat):
            small.append(flat)
    if small:
        rows.append(torch.stack(torch._foreach_norm(small, 2, torch.float32)))
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def norm_of(norms: Tensor) -> Tensor:
    """The norm of what has these norms, in double precision."""
    return torch.linalg.vector_norm(norms, dtype=torch.float64)


def scale(tensors: list[Tensor], factor: Tensor) -> None:
    """Multiply in place: a large tensor in a kernel of its own, the others LAUNCH chunks in a kernel."""
    small = []
    for tensor in tensors:
        if tensor.numel() > LAUNCH * CHUNK:
            tensor.mul_(factor)
        else:
            small.append(tensor)
    if small:
        torch._foreach_mul_(small, factor)


@torch.no_grad()
def clip(
    gradients: dict[str, list[Tensor]],
    squares_sum: Callable[[Tensor], object],
    limit: float,
    owned: dict[str, list[Tensor]] | None = None,
    groups: list[dict] | None = None,
) -> dict[str, Tensor]:
    """Scale each component's gradients in place so that its norm is at most `limit` (0 = leave them).

    Args:
        gradients: component -> this rank's pieces.
        squares_sum: sums a float64 tensor over the ranks, in place.
        owned: those of `gradients` that this rank counts, so that every element of every parameter is counted by
            exactly one rank; None = all.
        groups: of an optimizers.ScalingAdamW, which get what their gradients are to be divided by; these are then left
            alone.

    Returns:
        Component -> norm before clipping (0-dimensional), for the components in COMPONENTS.
    """
    device = next((g.device for pieces in gradients.values() for g in pieces), torch.device("cpu"))
    nothing = torch.zeros((), dtype=torch.float64, device=device)
    counted = gradients if owned is None else owned
    here = []
    for part in COMPONENTS:
        tensors = joined(counted.get(part, ()))
        here.append(norm_of(norms_of(tensors)) if tensors else nothing)
    squares = torch.stack(here).square_()
    squares_sum(squares)
    norms = squares.sqrt()
    if groups is not None:
        divisors = ((norms + 1e-6) / limit).clamp_(min=1.0).float() if limit > 0 else None
        for group in groups:
            at = COMPONENTS.index(group["component"])
            group["grad_scale"] = None if divisors is None else divisors[at]
    elif limit > 0:
        factors = (limit / (norms + 1e-6)).clamp_(max=1.0).float()
        for part, factor in zip(COMPONENTS, factors):
            scale(joined(gradients.get(part, ())), factor)
    return dict(zip(COMPONENTS, norms))
