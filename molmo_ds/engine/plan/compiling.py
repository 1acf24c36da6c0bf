"""compile unset, settled before a run begins: on for GPUs and runs whose layers were compiled whole, off elsewhere.

No compiled kernel has run on a GPU; what was shown without one is in docs/evidence/gpu.md. A resumed run keeps what it
was begun with, on all ranks, since compiled layers round in another way.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from molmo_ds.config import RunConfig
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.stores import same_run

log = logging.getLogger("molmo_ds")
# compute capabilities for which tools/bench/compiled_cubins.py has made cubins of whole layers
PROVEN = ((8, 0), (9, 0))


def settled(config: RunConfig, world: World, folder: Path) -> RunConfig:
    """The run with layers that are compiled or not, the same on every rank.

    Args:
        config: with a strategy that is settled; `compile_mode` counts with compile=true alone.
        folder: of the run; one that is there already keeps its choice.
    """
    if config.compile is not None:
        return config
    kept = world.agree(partial(_earlier, config, folder))
    if kept is not None:
        return replace(config, compile=kept)
    if world.device.type != "cuda":
        return replace(config, compile=False)
    reason = world.first_said(_refusal(config, world.device))
    if reason is None:
        log.info("compile: on. The first step takes longer; compile=false turns it off.")
    else:
        log.info("compile: off, because %s; compile=true turns it on.", reason)
    return replace(config, compile=reason is None, compile_mode="default")


def _refusal(config: RunConfig, device: torch.device) -> str | None:
    """Why compiled layers of this run are not proven on this GPU; None where they are."""
    major, minor = torch.cuda.get_device_capability(device)
    rows = (
        (torch.version.cuda is None, "this PyTorch makes no kernels for CUDA"),
        ((major, minor) not in PROVEN, f"it was not tried for GPUs of sm_{major}{minor}"),
        (config.model.family != "molmo", f"it was not tried for {config.model.family}"),
        (config.model.text.num_experts > 0, "experts are not compiled whole"),
        (read_strategy(config.strategy).folded, "it was not tried under DualPipeV"),
    )
    return next((reason for wrong, reason in rows if wrong), None)


def _earlier(config: RunConfig, folder: Path) -> bool | None:
    # the choice of a run that this one continues
    saved = same_run.earlier(config, folder)
    return None if saved is None else bool(saved.get("compile"))
