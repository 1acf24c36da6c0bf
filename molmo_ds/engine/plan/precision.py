"""precision=auto, settled before a run begins: bf16 on a GPU, fp32 on a CPU; a resumed run keeps its own on all ranks.

On a CPU whose products are so much faster in bf16 (`ops/linear/library.py`) that a step of the run would gain, a line
says so: held-out scores of long runs have not been compared there, so bf16 is the user's choice.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from molmo_ds.config import RunConfig
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import AUTO, read_strategy
from molmo_ds.ops.linear import library
from molmo_ds.stores import same_run

log = logging.getLogger("molmo_ds")
WIDE = 256  # of a decoder; a step of one 128 wide gains a tenth (Sapphire Rapids with AMX)
GAIN = 1.5  # of products, casts included
Precision = Literal["fp32", "bf16"]


def settled(config: RunConfig, world: World, folder: Path) -> RunConfig:
    """The run with the precision it computes in, the same on every rank.

    Args:
        folder: of the run; one that is there already keeps its precision.
    """
    on_gpu = world.device.type == "cuda"
    given = config.precision
    if given == "auto":
        given = world.agree(partial(_earlier, config, folder, on_gpu))
    if given == "bf16" and not on_gpu and world.rank == 0:
        library.warn_without_bf16()
    if given is not None:
        return replace(config, precision=given)
    if on_gpu:
        return replace(config, precision="bf16")
    if _would_cast(config):
        gain = min(world.gather(library.bf16_gain()))
        if gain >= GAIN:
            log.info(
                "precision=auto: fp32. bf16 products run at %.1f x its rate here; precision=bf16 takes less time.",
                gain,
            )
    return replace(config, precision="fp32")


def _would_cast(config: RunConfig) -> bool:
    # whether bf16 would be fp32 weights under autocast, in layers wide enough to gain by it
    casts = config.strategy == AUTO or read_strategy(config.strategy).casts
    return casts and not config.compile and config.model.text.hidden_size >= WIDE


def _earlier(config: RunConfig, folder: Path, on_gpu: bool) -> Precision | None:
    # the precision of a run that this one continues
    saved = same_run.earlier(config, folder)
    if saved is None:
        return None
    said = saved.get("precision", "auto")
    if said != "auto":
        return said
    # of a version that settled none
    return "bf16" if on_gpu else "fp32"
