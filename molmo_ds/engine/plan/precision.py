"""precision=auto, settled before a run begins: a resumed run keeps its own, and all ranks compute in the same.

A new run is bf16 on a GPU. On a CPU it is fp32, but bf16 where weights stay fp32, the decoder is wide enough and every
host multiplies matrices in bf16 so much faster (`ops/linear/library.py`) that a step gains.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import yaml

from molmo_ds.config import RunConfig
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import AUTO, read_strategy
from molmo_ds.ops.linear import library

log = logging.getLogger("molmo_ds")
WIDE = 256  # of a decoder; a step of one 128 wide gains a tenth (Sapphire Rapids with AMX)
GAIN = 1.5  # of products, casts included
Precision = Literal["fp32", "bf16"]


def settled(config: RunConfig, world: World, folder: Path) -> RunConfig:
    """The run with the precision it computes in, the same on every rank.

    Args:
        folder: of the run; one that is there already keeps its precision.
    """
    if config.precision != "auto":
        return config
    on_gpu = world.device.type == "cuda"
    kept = world.agree(partial(_earlier, config, folder, on_gpu))
    if kept is not None:
        return replace(config, precision=kept)
    if on_gpu:
        return replace(config, precision="bf16")
    casts = config.strategy == AUTO or read_strategy(config.strategy).casts
    if config.model.text.hidden_size < WIDE or config.compile or not casts:
        return replace(config, precision="fp32")
    gain = min(world.gather(library.bf16_gain()))
    chosen: Precision = "bf16" if gain >= GAIN else "fp32"
    log.info("precision=auto: %s, since bf16 products run at %.1f x fp32's rate.", chosen, gain)
    return replace(config, precision=chosen)


def _earlier(config: RunConfig, folder: Path, on_gpu: bool) -> Precision | None:
    # the precision of a run that this one continues
    saved = folder / "config.yaml"
    if not config.resume or not saved.is_file():
        return None
    said = yaml.safe_load(saved.read_text()).get("precision", "auto")
    if said != "auto":
        return said
    # of a version that settled none
    return "bf16" if on_gpu else "fp32"
