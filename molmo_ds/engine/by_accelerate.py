"""DeepSpeed by way of Accelerate, which hears nothing but what it is given."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from molmo_ds.engine.launch import World


def through_accelerate(
    model: nn.Module, optimizer: torch.optim.Optimizer, ds: dict[str, Any], world: World
) -> Any:
    """deepspeed.initialize by way of Accelerate; the DeepSpeed engine."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

    # a second engine in one process (tests) has settings of its own
    AcceleratorState._reset_state()
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    with told_by_arguments_alone():
        accelerator = Accelerator(
            gradient_accumulation_steps=ds["gradient_accumulation_steps"],
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=ds),
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
        )
        assert accelerator.num_processes == world.size, "accelerate does not see the process group"
        engine, _ = accelerator.prepare(model, optimizer)
    return engine


@contextlib.contextmanager
def told_by_arguments_alone() -> Iterator[None]:
    """Hide what `accelerate launch` left in the environment, which `ds` holds as far as it counts.

    Accelerate would follow --cpu without DeepSpeed, compile for --dynamo_backend and wrap for --use_fsdp.
    """
    left = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    for name in left:
        del os.environ[name]
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        yield
    finally:
        os.environ |= left
