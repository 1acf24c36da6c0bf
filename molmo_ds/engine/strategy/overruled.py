"""Says once, before the first step, what a strategy file asks for and the run does not do.

Optimiser, schedule, clipping, precision, recomputation and checkpoints belong to the run (engine/ds_config.py); where
the file wants another value that would count, engine/strategy/refusals.py refuses it.
"""

from collections.abc import Iterator
from typing import Any

from molmo_ds.config import RunConfig
from molmo_ds.engine.strategy import Strategy

SAME = {"adam": "adamw"}  # DeepSpeed's Adam decays weights as AdamW does
RUNS_OWN = {  # blocks of which nothing counts, and what the run has instead
    "activation_checkpointing": "activation_checkpointing={config.activation_checkpointing}",
    "checkpoint": "its checkpoints are its own",
    "compile": "compile={config.compile}",
    "zenflow": "DeepSpeed reads it inside of zero_optimization",
}
SWITCHED = {  # the same of blocks that count where they are enabled
    "tensorboard": "wandb and metrics.jsonl",
    "wandb": "the setting wandb",
    "csv_monitor": "metrics.jsonl",
    "data_efficiency": "its data are its own",
    "autotuning": "molmo-ds plan",
}


def told(strategy: Strategy, config: RunConfig, half: bool) -> list[str]:
    """At most one sentence: each setting of the file that does not count, with the run's own.

    Args:
        half: whether the network computes in bf16 (ds_config.uses_bf16).
    """
    rows = [*_blocks(strategy, config), *_values(strategy, config, half)]
    if not rows:
        return []
    said = "; ".join(f"{key} (the run: {own})" for key, own in rows)
    return [f"{strategy.path} says what does not count in this run: {said}."]


def _blocks(strategy: Strategy, config: RunConfig) -> Iterator[tuple[str, str]]:
    for name, own in RUNS_OWN.items():
        if strategy.ds.get(name):
            yield name, own.format(config=config)
    for name, own in SWITCHED.items():
        if _get(strategy, name, "enabled") is True:
            yield f"{name}.enabled=true", own
    if strategy.ds.get("aio") and "nvme" not in strategy.zero.devices:
        yield "aio", "nothing is on NVMe"


def _values(strategy: Strategy, config: RunConfig, half: bool) -> Iterator[tuple[str, str]]:
    kind = _get(strategy, "optimizer", "type")
    if kind is not None and SAME.get(kind.lower(), kind.lower()) != config.optim.name:
        yield f"optimizer.type={kind}", f"optim.name={config.optim.name}"
    kind = _get(strategy, "scheduler", "type")
    if kind is not None:
        yield f"scheduler.type={kind}", "a warm-up and a cosine, optim.*"
    if strategy.owned.gradient_clipping == 0 and config.optim.max_grad_norm != 0:
        yield "gradient_clipping=0", f"optim.max_grad_norm={config.optim.max_grad_norm:g}"
    if strategy.path == "accelerate":  # the rest is accelerate's own doing
        return
    own = f"precision={config.precision}, {'bf16' if half else 'fp32'} here"
    wanted = _get(strategy, "bf16", "enabled")
    if isinstance(wanted, bool) and wanted != half:
        yield f"bf16.enabled={str(wanted).lower()}", own
    if _get(strategy, "torch_autocast", "enabled") is True and not half:
        yield "torch_autocast.enabled=true", own
    steps = strategy.ds.get("steps_per_print", "auto")
    if steps != "auto":
        yield f"steps_per_print={steps:g}", f"log_interval={config.log_interval}"


def _get(strategy: Strategy, block: str, key: str) -> Any:
    return (strategy.ds.get(block) or {}).get(key)
