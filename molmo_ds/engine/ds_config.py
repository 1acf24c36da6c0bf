"""Strategy files, DeepSpeed's JSON plus one block `molmo_ds`: fills "auto", refuses in one sentence what cannot run."""

import copy
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from molmo_ds.config import MolmoConfig, RunConfig
from molmo_ds.engine import refusals, strategy_file, strategy_place
from molmo_ds.model.molmo import Molmo

ENGINES = ("zero", "sequence", "pipeline")


@dataclass(frozen=True)
class Strategy:
    """One file: `ds` goes to DeepSpeed, `ours` (engine, stages, sizes) does not."""

    path: str
    ds: dict[str, Any]
    ours: dict[str, Any] = field(default_factory=dict)

    @property
    def engine(self) -> str:
        """Which engine runs it."""
        return self.ours.get("engine", "zero")

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return self.ds.get("zero_optimization", {}).get("stage", 0)

    @property
    def folded(self) -> bool:
        """Whether a pipeline's stages lie on the ranks in a V, two on each, as DualPipeV runs them."""
        return self.ours.get("schedule") == "dualpipev"

    @property
    def name(self) -> str:
        """The file's name without ending."""
        return Path(self.path).stem


def read(path: str) -> Strategy:
    """Read a strategy file, `accelerate` = the DeepSpeed settings that `accelerate launch` was given.

    Raises ValueError, naming the file, if it is not there or not as engine/strategy_file.py reads it.
    """
    if path == "accelerate":
        values = _from_accelerate()
        return Strategy(path, values, values.pop("molmo_ds", {}))
    file = strategy_place.find(path)
    values = strategy_file.load(file)
    ours = values.pop("molmo_ds", {})
    return Strategy(str(file), values, ours)


def _from_accelerate() -> dict[str, Any]:
    import os

    if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        raise ValueError(
            "strategy=accelerate needs `accelerate launch --use_deepspeed` or a YAML file of accelerate with "
            "distributed_type: DEEPSPEED; otherwise name a file, for example strategy=ds_configs/zero3.json."
        )
    from accelerate.utils import DeepSpeedPlugin

    try:
        values = copy.deepcopy(DeepSpeedPlugin().deepspeed_config)
    except Exception as error:  # accelerate raises ValueError, KeyError, AttributeError and others
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"accelerate's settings for DeepSpeed cannot be read: {reason}.") from None
    values.pop("steps_per_print", None)  # infinity
    strategy_file.check(values, "accelerate's settings for DeepSpeed")
    return values


def resolve(strategy: Strategy, config: RunConfig, world_size: int, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration with every "auto" filled; `refuse` has passed.

    Batch sizes, precision and clipping belong to the run: ours clips each component, so DeepSpeed's clipping is off.
    Bucket sizes follow the decoder's width as Accelerate fills them, but are never tiny.
    """
    ds = copy.deepcopy(strategy.ds)
    width = config.model.text.hidden_size
    bucket = max(width * width, 1 << 19)
    replicas = data_parallel_size(strategy, world_size)
    ds["train_micro_batch_size_per_gpu"] = config.micro_batch
    ds["gradient_accumulation_steps"] = accumulation(config, replicas)
    shared = sequence_size(strategy) * tensor_size(strategy)  # DeepSpeed counts the ranks of a group as replicas
    ds["train_batch_size"] = config.global_batch * shared
    ds["gradient_clipping"] = 0.0
    if expert_size(strategy) > 1:
        ds["expert_parallel"] = _experts(ds["expert_parallel"], config)
    if tensor_size(strategy) > 1:  # engine/tensor.py splits, so AutoTP shall match nothing
        ds["tensor_parallel"]["partition_config"] = {"use_default_specs": False, "layer_specs": []}
    for block in ("optimizer", "scheduler", "tensorboard", "wandb", "csv_monitor", "fp16"):
        ds.pop(block, None)
    zero = ds.setdefault("zero_optimization", {})
    zero.setdefault("stage", 0)
    sizes = {
        "reduce_bucket_size": bucket,
        "stage3_prefetch_bucket_size": int(0.9 * bucket),
        "stage3_param_persistence_threshold": 10 * width,
        "stage3_gather_16bit_weights_on_model_save": False,
    }
    for key, value in sizes.items():
        if zero.get(key) == "auto":
            zero[key] = value
    for block in (zero.get("offload_param", {}), zero.get("offload_optimizer", {})):
        if block.get("nvme_path") == "auto":
            block["nvme_path"] = tempfile.gettempdir()
        if block.get("buffer_size") == "auto":
            block["buffer_size"] = -(-_largest(config.model) // world_size)
    if expert_size(strategy) > 1:  # a prefetch mixes two groups of ranks, in an order that differs between ranks
        zero["stage3_prefetch_bucket_size"] = 0
    half = uses_bf16(config, on_gpu)
    if ds.get("torch_autocast"):
        ds["torch_autocast"] = {"dtype": "bfloat16", **ds["torch_autocast"], "enabled": half}
        ds.pop("bf16", None)
    else:
        ds["bf16"] = {**ds.get("bf16", {}), "enabled": half}
        if half and zero["stage"] > 0:
            ds.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    ds.setdefault("zero_allow_untested_optimizer", True)
    ds.setdefault("zero_force_ds_cpu_optimizer", False)  # ours is torch's, also where it is offloaded
    ds["steps_per_print"] = 10**9
    left = sorted(_autos(ds))
    if left:
        raise ValueError(f'{strategy.path} leaves {left[0]} on "auto", which the run cannot fill; write a value.')
    return ds


def _largest(model: MolmoConfig) -> int:
    with torch.device("meta"):
        return max(parameter.numel() for parameter in Molmo(model).parameters())


def uses_bf16(config: RunConfig, on_gpu: bool) -> bool:
    """Whether the network computes in bf16 (with fp32 master weights)."""
    return config.precision == "bf16" or (config.precision == "auto" and on_gpu)


def sequence_size(strategy: Strategy) -> int:
    """Ranks that share a sequence without DeepSpeed's knowledge."""
    return strategy.ours.get("sequence_parallel_size", 1)


def expert_size(strategy: Strategy) -> int:
    """Ranks over which the experts are spread."""
    block = strategy.ds.get("expert_parallel", {})
    return block.get("autoep_size", 1) if block.get("enabled") else 1


def tensor_size(strategy: Strategy) -> int:
    """Ranks that share the decoder's heads and columns."""
    return strategy.ds.get("tensor_parallel", {}).get("autotp_size", 1)


def _experts(block: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    # what AutoEP cannot guess about our layers, and guesses wrongly without a word
    text = config.model.text
    known = {
        "moe_layer_pattern": r"(.*\.)?(layers\.\d+|layer)\.mlp",
        "router_pattern": "gate",
        "expert_pattern": "experts",
        "expert_w1": "gate_up_proj",
        "expert_w2": "down_proj",
        "expert_w3": None,
        "has_shared_experts": False,
        "score_func": "softmax",
        "score_apply": "post",
        "top_k": text.num_experts_per_tok,
        "route_norm": text.norm_topk_prob,
    }
    return {**known, **{key: value for key, value in block.items() if value != "auto"}}


def data_parallel_size(strategy: Strategy, world_size: int) -> int:
    """Ranks that read different samples: all, divided by stages, tensor- and sequence-parallel sizes."""
    ours = strategy.ours
    shared = ours.get("stages", 1) * sequence_size(strategy)
    shared *= tensor_size(strategy)
    if world_size % shared:
        raise ValueError(f"{strategy.path} needs a multiple of {shared} ranks, and there are {world_size}.")
    return world_size // shared


def accumulation(config: RunConfig, replicas: int) -> int:
    """Micro-steps of a step; ValueError if the global batch does not divide."""
    per_micro_step = replicas * config.micro_batch
    if config.global_batch % per_micro_step:
        raise ValueError(
            f"global_batch={config.global_batch} does not divide by {replicas} ranks x micro_batch="
            f"{config.micro_batch}; choose a multiple of {per_micro_step}."
        )
    return config.global_batch // per_micro_step


def refuse(strategy: Strategy, config: RunConfig, world_size: int) -> None:
    """Raise ValueError, one sentence with the cause and what to do, for a combination that cannot run."""
    ds, zero, path = strategy.ds, strategy.ds.get("zero_optimization", {}), strategy.path
    stage = zero.get("stage", 0)
    if strategy.engine not in ENGINES:
        raise ValueError(f"{path}: there is no engine '{strategy.engine}'; molmo_ds.engine is {', '.join(ENGINES)}.")
    _refuse_pairs(strategy, config, world_size)
    if ds.get("fp16", {}).get("enabled") is True:
        raise ValueError(f"{path} turns fp16 on, which needs a loss scale that this trainer does not keep; use bf16.")
    for key, device in (("offload_param", 3), ("zero_hpz_partition_size", 3), ("offload_optimizer", 1)):
        on = zero.get(key, {}).get("device", "none") != "none" if "offload" in key else zero.get(key, 1) > 1
        if on and stage < device:
            raise ValueError(f"{path}: {key} needs ZeRO stage {device} or higher, not {stage}; see ds_configs/.")
    limit = ds.get("gradient_clipping", "auto")
    if limit not in ("auto", 0, config.optim.max_grad_norm):
        raise ValueError(
            f"{path} sets gradient_clipping={limit} and the run clips each component to optim.max_grad_norm="
            f'{config.optim.max_grad_norm}; write "auto" and set optim.max_grad_norm.'
        )
    for block, where in (("optimizer", "optim.*"), ("scheduler", "optim.*")):
        values = ds.get(block, {}).get("params", {})
        set_here = sorted(key for key, value in values.items() if value != "auto" and key != "torch_adam")
        if set_here:
            raise ValueError(f"{path} sets {block}.params.{set_here[0]}, which the run owns; use {where} instead.")
    owned = {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulation(config, data_parallel_size(strategy, world_size)),
    }
    for key, value in owned.items():
        if ds.get(key, "auto") not in ("auto", value):
            raise ValueError(
                f'{path} sets {key}={ds[key]}, but global_batch and micro_batch make it {value}; write "auto".'
            )


def _refuse_pairs(strategy: Strategy, config: RunConfig, world_size: int) -> None:
    data_parallel_size(strategy, world_size)
    for wrong, reason in refusals.pairs(strategy, config, world_size):
        if wrong:
            raise ValueError(f"{strategy.path}: {reason}.")


def check_with_deepspeed(strategy: Strategy, ds: dict[str, Any], grid: Any = None) -> None:
    """Let DeepSpeed read the file before anything is built; ValueError with its first words if it will not."""
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(copy.deepcopy(ds), mpu=grid)
    except Exception as error:  # DeepSpeed raises AssertionError, ValueError, pydantic's errors and others
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = "; ".join(lines[1:3] if "validation error" in lines[0] and len(lines) > 2 else lines[:1])
        raise ValueError(f"DeepSpeed refuses {strategy.path}: {reason or type(error).__name__}.") from None


def _autos(node: Any, prefix: str = "") -> list[str]:
    if isinstance(node, dict):
        return [path for key, value in node.items() for path in _autos(value, f"{prefix}.{key}" if prefix else key)]
    return [prefix] if node == "auto" else []
