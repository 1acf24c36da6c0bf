"""Training steps of a network as the engine makes them, without an engine: losses, backward, clipping, optimizer."""

from collections.abc import Callable

import torch

from molmo_ds.batch import Batch
from molmo_ds.config import ComponentConfig, OptimConfig
from molmo_ds.engine.compiled import compile_layers
from molmo_ds.engine.optim import (
    build_optimizer,
    clip,
    frozen_names,
    norm_limit_used,
    parameter_groups,
)
from molmo_ds.model.molmo import Molmo

OPTIM = OptimConfig(
    connector=ComponentConfig(lr=2e-4),
    vision=ComponentConfig(lr=6e-6),
    text=ComponentConfig(lr=2e-5),
)


def stepper(
    weights: Molmo,
    micro_batches: list[Batch],
    device: torch.device,
    compiled: bool = False,
    checkpointing: str = "none",
    bf16: bool | None = None,
) -> Callable[[int], torch.Tensor]:
    """A function of the step's number that trains a copy of `weights` once and returns the cross-entropy.

    Args:
        bf16: whether under autocast; None = on a GPU.
    """
    with device:
        model = Molmo(weights.config, checkpointing=checkpointing)
    model.load_state_dict(weights.state_dict())
    if compiled:
        compile_layers(model)
    for name in frozen_names(model, OPTIM):
        model.get_parameter(name).requires_grad_(False)
    groups = parameter_groups(model, OPTIM)
    on_gpu = device.type == "cuda"
    casts = on_gpu if bf16 is None else bf16
    optimizer = build_optimizer(groups, OPTIM, fused=on_gpu or None)
    total = sum(float(batch.loss_weights.sum()) for batch in micro_batches)

    def step(number: int) -> torch.Tensor:
        loss = torch.zeros((), device=device)
        for batch in micro_batches:
            # without its cache, as the engine has it
            with torch.autocast(device.type, torch.bfloat16, casts, cache_enabled=False):
                ce_sum, z_sum, _ = model(batch.to(device).weighted(1 / total))
            (ce_sum + z_sum).backward()
            loss += ce_sum.detach()
        gradients: dict[str, list[torch.Tensor]] = {}
        for group in groups:
            gradients.setdefault(group["component"], []).extend(p.grad for p in group["params"])
        limit = norm_limit_used(OPTIM, number)
        clip(gradients, lambda squares: None, limit, groups=optimizer.param_groups)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step
