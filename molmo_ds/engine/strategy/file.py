"""A strategy file as it lies there: JSON read with its slips in sentences, and the shape of every block that is read.

DeepSpeed checks the names inside `zero_optimization`, `bf16` and others itself, and ignores the rest without a word:
those are checked here.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic's

from molmo_ds import rules
from molmo_ds.architecture import Count, NotNegative, Positive, Whole
from molmo_ds.setting_list import legal

Auto = Literal["auto"]
Switch = bool | Auto
Number = Count | Auto
WholeNumber = Whole | NotNegative | Auto  # 5e8 is usual
Text = str
Block = dict[str, Any]
STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

# fmt: off
Offload = with_config(STRICT)(TypedDict("Offload", {
    "device": Literal["none", "cpu", "nvme"], "nvme_path": Text | None, "buffer_count": Number, "buffer_size": Number,
    "max_in_cpu": WholeNumber, "pin_memory": Switch, "pipeline_read": Switch, "pipeline_write": Switch,
    "fast_init": Switch, "ratio": NotNegative,
}, total=False))
Zero = with_config(STRICT)(TypedDict("Zero", {
    "stage": Annotated[int, Ge(0), Le(3)], "offload_param": Offload, "offload_optimizer": Offload,
    "reduce_bucket_size": WholeNumber, "allgather_bucket_size": WholeNumber, "sub_group_size": WholeNumber,
    "stage3_prefetch_bucket_size": WholeNumber, "stage3_param_persistence_threshold": WholeNumber,
    "stage3_max_live_parameters": WholeNumber, "stage3_max_reuse_distance": WholeNumber,
    "stage3_gather_16bit_weights_on_model_save": Switch, "overlap_comm": Switch, "contiguous_gradients": Switch,
    "reduce_scatter": Switch, "allgather_partitions": Switch, "round_robin_gradients": Switch,
    "zero_hpz_partition_size": Number, "zero_quantized_weights": Switch, "zero_quantized_gradients": Switch,
}, total=False))
Switched = with_config(STRICT)(TypedDict("Switched", {"enabled": Switch}, total=False))
Named = with_config(STRICT)(TypedDict("Named", {"type": Text, "params": Block}, total=False))
Autocast = with_config(STRICT)(TypedDict("Autocast", {
    "enabled": Switch, "dtype": Text, "lower_precision_safe_modules": list[str],
}, total=False))
Types = with_config(STRICT)(TypedDict("Types", {"grad_accum_dtype": Text}, total=False))
Experts = with_config(STRICT)(TypedDict("Experts", {"enabled": bool, "autoep_size": Count}, total=False))
Tensors = with_config(STRICT)(TypedDict("Tensors", {"autotp_size": Count}, total=False))
Aio = with_config(STRICT)(TypedDict("Aio", {
    "block_size": Count, "queue_depth": Count, "intra_op_parallelism": Count, "single_submit": bool,
    "overlap_events": bool,
}, total=False))
Ours = with_config(STRICT)(TypedDict("Ours", {
    "engine": Text, "stages": Count, "schedule": Text, "sequence_parallel_size": Count, "slots": Count,
    "slot_tokens": Count, "prefill_tokens": Count, "compile": bool, "graphs": bool,
    "weights": Literal["int8", "fp8"],
}, total=False))
File = with_config(STRICT)(TypedDict("File", {
    "molmo_ds": Ours, "zero_optimization": Zero, "optimizer": Named, "scheduler": Named, "fp16": Switched,
    "bf16": Switched, "torch_autocast": Autocast, "data_types": Types, "expert_parallel": Experts,
    "tensor_parallel": Tensors, "aio": Aio, "flops_profiler": Switched, "activation_checkpointing": Block,
    "comms_logger": Switched, "tensorboard": Switched, "wandb": Switched, "csv_monitor": Switched, "comet": Switched,
    "pipeline": Block, "checkpoint": Block, "data_efficiency": Switched, "compression_training": Block,
    "compile": Block, "autotuning": Switched, "zenflow": Block, "timers": Block, "train_batch_size": Number,
    "train_micro_batch_size_per_gpu": Number, "gradient_accumulation_steps": Number, "steps_per_print": Number,
    "gradient_clipping": NotNegative | Auto, "communication_data_type": Text | None, "prescale_gradients": Switch,
    "seq_parallel_communication_data_type": Text, "gradient_predivide_factor": Positive, "sparse_gradients": Switch,
    "zero_allow_untested_optimizer": Switch, "zero_force_ds_cpu_optimizer": Switch, "wall_clock_breakdown": Switch,
    "memory_breakdown": Switch, "dump_state": Switch, "disable_allgather": Switch, "sequence_parallel_size": Number,
}, total=False))
# keys that DeepSpeed knows and we have no use for
OTHERS = {
    "managed_gradient_accumulation", "gradient_allreduce_op", "graph_harvesting", "use_data_before_expert_parallelism",
    "train_step",
}
# names inside of the blocks that DeepSpeed 0.19 reads name by name, or that the run leaves out before it reads them
NAMES = {
    "optimizer": "type params legacy_fusion",
    "scheduler": "type params",
    "fp16": "enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis"
    " min_loss_scale fp16_master_weights_and_grads",
    "torch_autocast": "enabled dtype lower_precision_safe_modules",
    "data_types": "grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules",
    "aio": "block_size queue_depth intra_op_parallelism single_submit overlap_events use_gds",
    "activation_checkpointing": "partition_activations number_checkpoints contiguous_memory_optimization"
    " synchronize_checkpoint_boundary profile cpu_checkpointing",
    "flops_profiler": "enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file",
    "pipeline": "stages partition seed_layers activation_checkpoint_interval pipe_partitioned grad_partitioned"
    " use_reentrant",
    "timers": "throughput",
    "tensorboard": "enabled output_path job_name",
    "wandb": "enabled group team project",
    "csv_monitor": "enabled output_path job_name",
    "expert_parallel": "enabled autoep_size expert_tensor_parallel_size validate_folding_routing async_split_plan"
    " preset_model moe_layer_pattern expert_pattern router_pattern use_grouped_mm disable_triton_grouped_mm route_norm"
    " route_scale score_apply combine_impl row_weighting_impl gate_up_impl comm_backend comm_num_sm comm_qp_margin"
    " comm_max_tokens_per_rank num_expert_groups num_limited_groups score_func top_k load_balance_coeff"
    " routed_scaling_factor expert_w1 expert_w2 expert_w3 num_experts_attr top_k_attr has_shared_experts"
    " shared_experts_pattern shared_experts_gate_pattern expert_activation",
}
FORMS = {  # the right form of blocks that are easily written otherwise
    "zero_optimization": '{"stage": 3}',
    "zero_optimization.offload_param": '{"device": "cpu"}',
    "zero_optimization.offload_optimizer": '{"device": "cpu"}',
    "molmo_ds": '{"engine": "pipeline", "stages": 2}',
    "expert_parallel": '{"enabled": true, "autoep_size": 2}',
    "tensor_parallel": '{"autotp_size": 2}',
    "optimizer": '{"type": "AdamW", "params": {"lr": "auto"}}',
    "optimizer.params": '{"lr": "auto"}',
    "scheduler": '{"type": "WarmupLR", "params": {}}',
    "scheduler.params": '{"warmup_num_steps": "auto"}',
    "torch_autocast": '{"enabled": true, "dtype": "bfloat16"}',
    "data_types": '{"grad_accum_dtype": "fp32"}',
    "aio": '{"queue_depth": 8}',
    "activation_checkpointing": '{"partition_activations": false}',
    "fp16": '{"enabled": false}',
}
# fmt: on


def load(file: Path) -> dict[str, Any]:
    """The object of a strategy file.

    Raises ValueError, with a sentence for every mistake that names the file and the key, if it is not JSON, has a key
    that DeepSpeed does not know (which it would ignore without a word) or one twice, or a block of another shape.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        values = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise ValueError(f"The strategy file {file} is not JSON: it is no text in UTF-8.") from None
    except ValueError as error:
        raise ValueError(f"The strategy file {file} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(
            f"The strategy file {file} holds no JSON object; write DeepSpeed's settings in braces."
        )
    known = [*File.__annotations__, *OTHERS]
    said = list(_unknown(values, known, f"The strategy file {file}"))
    if said:
        raise ValueError(rules.together(said))
    check(values, str(file))
    for block, names in NAMES.items():
        said += _unknown(values.get(block, {}), names.split(), f"{file}: {block}")
    if said:
        raise ValueError(rules.together(said))
    return values


def _unknown(values: Mapping[str, Any], known: list[str], where: str) -> Iterator[str]:
    """A sentence for each key that is not known."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            yield f"{where} has the unknown key '{key}'; the nearest one is '{near}'."


def check(values: dict[str, Any], where: str) -> None:
    """Raise ValueError, a sentence for every block or value of another shape than DeepSpeed and the engines read."""
    try:
        TypeAdapter(File).validate_python(values)
    except ValidationError as error:
        said: dict[str, str] = {}
        for mistake in error.errors():
            key, hint = _place(mistake["loc"])
            said.setdefault(key, f"{where}: {_sentence(key, hint, _value(values, key))}")
        raise ValueError(rules.together(list(said.values()))) from None


def _sentence(key: str, hint: Any, value: Any) -> str:
    shown = json.dumps(value)
    last = key.rsplit(".", 1)[-1]
    if hint is Block or hasattr(hint, "__annotations__"):
        return f'{key} is {shown}; it must be a block: "{last}": {FORMS.get(key, _example(hint))}.'
    return f"{key} is {shown}; it must be {legal(hint)}."


def _example(hint: Any) -> str:
    return '{"enabled": true}' if "enabled" in getattr(hint, "__annotations__", {}) else "{}"


def _place(location: tuple[int | str, ...]) -> tuple[str, Any]:
    """The dotted key of a mistake and the type that it should have; after it pydantic names members of a union."""
    hint: Any = File
    keys = []
    for part in location:
        if part not in getattr(hint, "__annotations__", {}):
            break
        hint = hint.__annotations__[part]
        keys.append(str(part))
    return ".".join(keys), hint


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"'{twice[0]}' stands there twice")
    return dict(pairs)


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")
