"""DeepSpeed's configuration of a run: a strategy's own, with every "auto" filled and what the run owns put in."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch

from molmo_ds.architecture import MolmoConfig
from molmo_ds.config import RunConfig
from molmo_ds.engine.remembered import remembered
from molmo_ds.engine.strategy import Strategy, accumulation
from molmo_ds.model.molmo import Molmo

REDUCED = 500_000_000  # elements of a bucket of gradients, at most
PREFETCHED = 200_000_000  # elements that ZeRO-3 gathers ahead, at most
SHARE = 16  # part of the model that a bucket holds
SMALLEST = 1 << 19
REFUSALS = (AssertionError, ValueError, NotImplementedError)  # by which DeepSpeed refuses a setting


def resolve(strategy: Strategy, config: RunConfig, world_size: int, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration with every "auto" filled, after `refusals.refuse`.

    Batch sizes, precision and clipping belong to the run: ours clips each component, so DeepSpeed's clipping is off.
    Buckets hold a sixteenth of the model, up to REDUCED and PREFETCHED elements. Accelerate fills in the square of the
    decoder's width, less than one MLP matrix: each large gradient would be reduced alone.
    """
    ds = copy.deepcopy(strategy.ds)
    width = config.model.text.hidden_size
    elements = sum(_sizes(config.model))
    replicas = strategy.data_parallel_size(world_size)
    ds["train_micro_batch_size_per_gpu"] = config.micro_batch
    ds["gradient_accumulation_steps"] = accumulation(config, replicas)
    # DeepSpeed counts the ranks that share a sequence, or the decoder, as replicas
    ds["train_batch_size"] = config.global_batch * strategy.sequence * strategy.tensor
    ds["gradient_clipping"] = 0.0
    if strategy.experts > 1:
        ds["expert_parallel"] = _experts(ds["expert_parallel"], config)
    if strategy.tensor > 1:  # engine/parallel/tensor.py splits, so AutoTP must match nothing
        ds["tensor_parallel"]["partition_config"] = {"use_default_specs": False, "layer_specs": []}
    for block in ("optimizer", "scheduler", "tensorboard", "wandb", "csv_monitor", "fp16"):
        ds.pop(block, None)
    zero = ds.setdefault("zero_optimization", {})
    zero.setdefault("stage", 0)
    sizes = {
        "reduce_bucket_size": _bucket(REDUCED, elements),
        "stage3_prefetch_bucket_size": _bucket(PREFETCHED, elements),
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
            block["buffer_size"] = -(-max(_sizes(config.model)) // world_size)
    # its timer waits for the device in every forward
    ds.setdefault("timers", {"throughput": {"enabled": False}})
    # a prefetch mixes two groups of ranks, in an order that differs between ranks
    if strategy.experts > 1:
        zero["stage3_prefetch_bucket_size"] = 0
    half = uses_bf16(config, on_gpu)
    if strategy.casts:
        # DeepSpeed would reduce the gradients of the modules that it lists in bf16
        defaults = {"dtype": "bfloat16", "lower_precision_safe_modules": []}
        ds["torch_autocast"] = {**defaults, **ds["torch_autocast"], "enabled": half}
        ds.pop("bf16", None)
    else:
        ds["bf16"] = {"check_grad_overflow": False, **ds.get("bf16", {}), "enabled": half}
        if half and zero["stage"] > 0:
            ds.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    ds.setdefault("zero_allow_untested_optimizer", True)
    # ours is torch's, also where it is offloaded
    ds.setdefault("zero_force_ds_cpu_optimizer", False)
    ds["steps_per_print"] = 10**9
    left = sorted(_autos(ds))
    if left:
        raise ValueError(
            f'{strategy.path} leaves {left[0]} on "auto", which the run cannot fill; write a value.'
        )
    return ds


@remembered
def _sizes(model: MolmoConfig) -> tuple[int, ...]:
    with torch.device("meta"):
        return tuple(parameter.numel() for parameter in Molmo(model).parameters())


def _bucket(most: int, elements: int) -> int:
    # a bucket is allocated whole: a small model needs but a part of it
    return min(most, max(elements // SHARE, SMALLEST))


def uses_bf16(config: RunConfig, on_gpu: bool) -> bool:
    """Whether the network computes in bf16 (with fp32 master weights)."""
    return config.precision == "bf16" or (config.precision == "auto" and on_gpu)


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


def check_with_deepspeed(strategy: Strategy, ds: dict[str, Any], topology: Any = None) -> None:
    """Let DeepSpeed read the file before anything is built; ValueError with its first words if it will not.

    Args:
        topology: DeepSpeed's map of a pipeline's ranks.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(copy.deepcopy(ds), mpu=topology)
    # DeepSpeed raises AssertionError, ValueError, pydantic's errors and others
    except Exception as error:
        raise _refusal(strategy, error) from None


@contextmanager
def in_sentences(strategy: Strategy) -> Iterator[None]:
    """Make ValueErrors, which name the strategy's file, of what DeepSpeed refuses while an engine is made."""
    try:
        yield
    except Exception as error:
        # DeepSpeed raises the base class too; other heirs of it are no words on a setting
        of_settings = isinstance(error, REFUSALS) or type(error) is Exception
        if not of_settings or not _from_deepspeed(error):
            raise
        raise _refusal(strategy, error) from None


def _from_deepspeed(error: Exception) -> bool:
    return any(
        "deepspeed" in Path(frame.filename).parts for frame in extract_tb(error.__traceback__)
    )


def _refusal(strategy: Strategy, error: Exception) -> ValueError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    reason = "; ".join(lines[1:3]) if "validation error" in first and len(lines) > 2 else first
    return ValueError(f"DeepSpeed refuses {strategy.path}: {reason.rstrip('.')}.")


def _autos(node: Any, prefix: str = "") -> list[str]:
    if isinstance(node, dict):
        return [
            path
            for key, value in node.items()
            for path in _autos(value, f"{prefix}.{key}" if prefix else key)
        ]
    return [prefix] if node == "auto" else []
