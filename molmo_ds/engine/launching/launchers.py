"""Says once, before the first step, what `accelerate launch` was told and the run does not do.

accelerate hands its settings to its processes in variables; those of DeepSpeed count with strategy=accelerate only, and
precision, clipping and accumulation belong to the run whatever the strategy.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from molmo_ds.config import RunConfig
from molmo_ds.engine import ds_config
from molmo_ds.engine.strategy import Strategy, accumulation

WHOLE = {  # variable that is "true" -> the option of accelerate that sets it
    "ACCELERATE_USE_FSDP": "--use_fsdp",
    "ACCELERATE_USE_MEGATRON_LM": "--use_megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "--use_parallelism_config",
}


def ignored(strategy: Strategy, config: RunConfig) -> list[str]:
    """At most one sentence: the settings of accelerate's that do not count, each with the run's own value."""
    files_count = strategy.path == "accelerate"
    rows = [*_of_the_run(config, strategy), *([] if files_count else _of_the_strategy(strategy))]
    told = [f"{option} {given} (the run: {own})" for option, given, own in rows]
    told += [option for name, option in WHOLE.items() if os.environ.get(name, "").lower() == "true"]
    if not told:
        return []
    why = "the run has its own" if files_count else f"strategy={strategy.path} counts"
    instead = "precision, global_batch, micro_batch, optim.max_grad_norm and compile"
    more = "" if files_count else "use strategy=accelerate for what it says of DeepSpeed, and "
    return [
        f"accelerate launch was told {', '.join(told)}: these do not count, because {why}; {more}set {instead}."
    ]


def _of_the_run(config: RunConfig, strategy: Strategy) -> Iterator[tuple[str, str, str]]:
    """(option, what accelerate was told, what the run does) where the two differ, of what the run always owns."""
    said = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    own = "bf16" if ds_config.uses_bf16(config, torch.cuda.is_available()) else "fp32"
    if said not in ("no", own):
        yield "--mixed_precision", said, f"precision={config.precision}, {own} here"
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    if backend != "NO" and not config.compile:
        yield "--dynamo_backend", backend.lower(), "compile=false"
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and torch.cuda.is_available():
        yield "--cpu", "true", "the GPU, unless CUDA_VISIBLE_DEVICES is empty"
    if strategy.path == "accelerate":
        # what follows is in the strategy then, and refused there where it contradicts the run
        return
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    ours = _accumulation(config, strategy)
    if steps not in ("auto", ours):
        yield "--gradient_accumulation_steps", steps, ours
    limit = os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "auto")
    if limit not in ("auto", "none") and limit != str(config.optim.max_grad_norm):
        yield "--gradient_clipping", limit, f"optim.max_grad_norm={config.optim.max_grad_norm}"


def _accumulation(config: RunConfig, strategy: Strategy) -> str:
    try:
        replicas = strategy.data_parallel_size(int(os.environ.get("WORLD_SIZE", 1)))
        return str(accumulation(config, replicas))
    except ValueError:  # refused in its own sentence a moment later
        return f"global_batch={config.global_batch}"


def _of_the_strategy(strategy: Strategy) -> Iterator[tuple[str, str, str]]:
    """The same of what a strategy file says."""
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if stage is not None and stage != str(strategy.stage):
        yield "--zero_stage", stage, str(strategy.stage)
    for what, own in (
        ("optimizer", strategy.zero.optimizer.device),
        ("param", strategy.zero.parameters.device),
    ):
        said = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what.upper()}_DEVICE")
        if said is not None and said != own:
            yield f"--offload_{what}_device", said, own
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file != "none" and Path(file).resolve() != Path(strategy.path).resolve():
        yield "--deepspeed_config_file", file, strategy.path
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false") == "true":
        yield "--zero3_save_16bit_model", "true", "tools/convert.py to-hub --dtype bf16"
