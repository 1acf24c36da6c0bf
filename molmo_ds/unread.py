"""Settings that a run was given and does not read, because another setting leaves them without a use.

Legal, and worth a word: a number that looks as if it counted does not.
"""

from functools import reduce
from typing import Any

from molmo_ds.config import COMPONENTS, EvaluatorConfig, RunConfig, SourceConfig


def told(config: RunConfig) -> list[str]:
    """A sentence that names every setting which is not the default and is not read, and why; none where all are."""
    default = RunConfig()
    found = [
        f"{key}={_value(config, key)} ({why})"
        for why, keys in _unread(config).items()
        for key in keys
        if _value(config, key) != _value(default, key)
    ]
    found += _roots(config) + _evaluators(config)
    return [f"This run does not read {'; '.join(found)}."] if found else []


def _unread(config: RunConfig) -> dict[str, list[str]]:
    """Why, and the settings that have no use for that reason."""
    optim = config.optim
    data = config.data
    why: dict[str, list[str]] = {}
    if optim.name != "muon":
        rates = [f"optim.{part}.matrix_lr" for part in COMPONENTS]
        why["optim.name=muon alone has it"] = ["optim.momentum", *rates]
    if optim.name == "sgd":
        parts = [f"optim.{part}.{key}" for part in COMPONENTS for key in ("betas", "eps")]
        why["optim.name=sgd has none"] = ["optim.betas", "optim.eps", *parts]
    warmup = ("optim.grad_clip_warmup_steps", "optim.grad_clip_warmup_factor")
    if optim.max_grad_norm == 0:
        why["optim.max_grad_norm=0 clips nothing"] = list(warmup)
    elif optim.grad_clip_warmup_steps == 0:
        why["optim.grad_clip_warmup_steps=0"] = [warmup[1]]
    elif optim.grad_clip_warmup_factor == 1:
        why["optim.grad_clip_warmup_factor=1 changes nothing"] = [warmup[0]]
    if not config.lora.components:
        why["lora.components names none"] = ["lora.rank", "lora.alpha", "lora.dropout"]
    if not config.compile:
        why["compile=true alone has it"] = ["compile_mode"]
    if config.wandb is None:
        why["wandb names no project"] = ["wandb_entity", "wandb_group", "wandb_tags"]
    if data.packing != "knapsack":
        why["data.packing=knapsack alone has it"] = ["data.crop_weight"]
    if data.packing in ("to_max", "to_128"):
        why[f"data.packing={data.packing} has no pool"] = ["data.pool_size"]
    if data.num_workers == 0:
        why["data.num_workers=0"] = ["data.prefetch_factor"]
    if config.out and "://" not in config.out:
        why["out is a local folder"] = ["scratch"]
    last = config.stop_after
    if last is not None and config.profile_steps and min(config.profile_steps) > last:
        why[f"stop_after={last} ends before"] = ["profile_steps"]
    learning = [part for name in COMPONENTS if not (part := getattr(optim, name)).freeze]
    for key in ("weight_decay", "betas", "eps"):
        if learning and all(getattr(part, key) is not None for part in learning):
            why[f"every component has its own {key}"] = [f"optim.{key}"]
    return why


def _roots(config: RunConfig) -> list[str]:
    """Roots that a source asks for and its token_weight replaces."""
    return [
        f"data.sources.{name}.{key}={value} (its token_weight replaces both roots)"
        for name, source in config.data.sources.items()
        for key in ("root_subsegments", "root_length")
        if source.token_weight is not None and (value := getattr(source, key))
    ]


def _evaluators(config: RunConfig) -> list[str]:
    """What belongs to a mixture, or to a task, where the loss of shards is taken."""
    found = []
    for name, one in config.evaluators.items():
        at = f"evaluators.{name}"
        if not one.task and one.data_folder != EvaluatorConfig().data_folder:
            found.append(f"{at}.data_folder={one.data_folder} (a task alone has it)")
        found += [
            f"{at}.sources.{source}.{key}={getattr(shards, key)} (each sample is taken once)"
            for source, shards in one.sources.items()
            for key in ("rate", "group", "size", "sampling_rate")
            if getattr(shards, key) != getattr(SourceConfig(), key)
        ]
    return found


def _value(config: RunConfig, key: str) -> Any:
    return reduce(getattr, key.split("."), config)
