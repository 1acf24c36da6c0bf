"""Refusals: a table of strategies and runs that exclude each other, each with the nearest that can run.

A row is tested only after those above it have passed, so that it may rely on them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from molmo_ds.config import RunConfig
from molmo_ds.engine.strategy import (
    ENGINES,
    EXECUTION,
    LIMITS,
    NEEDS_BATCH,
    NEEDS_RANKS,
    PLAIN,
    SETTINGS,
    USUAL,
    Strategy,
)
from molmo_ds.engine.strategy.asked import Asked


@dataclass(frozen=True)
class Row:
    """A refusal; its sentence is a format string over the fields of Asked, as `a`, and what `refuse` adds."""

    name: str
    test: Callable[[Asked], bool]
    sentence: str


TABLE = [
    Row(
        "unknown engine",
        lambda a: a.s.engine not in ENGINES,
        "{path}: there is no engine '{a.s.engine}'; molmo_ds.engine is {engines}.",
    ),
    Row(
        "strategy to answer with",
        lambda a: a.s.engine == "inference",
        "{path} is a strategy to answer with; train with ds_configs/{a.training}.",
    ),
    Row(
        "limits without inference",
        lambda a: a.s.limits != USUAL or a.s.execution != PLAIN,
        '{path}: {limits} are of the engine "inference", with which nothing is trained; leave them out.',
    ),
    Row(
        "ranks that do not divide",
        lambda a: bool(a.world % a.s.shared),
        NEEDS_RANKS.replace("{shared}", "{a.s.shared}").replace("{world}", "{a.world}"),
    ),
    Row(
        "unknown setting",
        lambda a: bool(a.s.unknown),
        "{path}: molmo_ds has no setting ['{a.s.unknown[0]}']; it has {settings}.",
    ),
    Row(
        "DeepSpeed's own sequence key",
        lambda a: a.s.deepspeeds_sequence,
        "{path}: write sequence_parallel_size inside the molmo_ds block, not outside.",
    ),
    Row(
        "stages without pipeline",
        lambda a: a.s.stages > 1 and not a.pipeline,
        '{path}: stages needs "engine": "pipeline" in its molmo_ds block.',
    ),
    Row(
        "schedule without pipeline",
        lambda a: bool(a.s.schedule) and not a.pipeline,
        '{path}: schedule needs "engine": "pipeline" in its molmo_ds block.',
    ),
    Row(
        "unknown schedule",
        lambda a: a.s.schedule not in (None, "dualpipev"),
        "{path}: there is no schedule {a.s.schedule!r}; write dualpipev or leave it out.",
    ),
    Row(
        "sequence without engine",
        lambda a: a.s.sequence > 1 and a.s.engine != "sequence",
        '{path}: sequence_parallel_size needs "engine": "sequence" in its molmo_ds block.',
    ),
    Row(
        "experts over one rank",
        lambda a: a.s.experts_switched_on and a.s.experts < 2,
        "{path}: autoep_size must be 2 or more; without expert parallelism leave expert_parallel out.",
    ),
    Row(
        "selection without ZeRO",
        lambda a: (
            a.run.model.selection is not None
            and (a.pipeline or a.s.engine == "sequence" or a.s.tensor > 1 or a.s.experts > 1)
        ),
        "{path}: HeMolmo passes its decoder twice, which only ZeRO and one process do; use ds_configs/zero3.json.",
    ),
    # pipeline
    Row(
        "pipeline without ZeRO-1",
        lambda a: a.pipeline and (a.s.stage != 1 or a.s.stages < 2),
        "{path}: DeepSpeed's pipeline keeps whole gradients on each stage and clips wrongly without ZeRO, so it runs "
        "with ZeRO stage 1 (not {a.s.stage}) and 2 or more stages; see ds_configs/pipe_zero1.json.",
    ),
    Row(
        "pipeline and tensors",
        lambda a: a.pipeline and a.s.tensor > 1,
        "{path}: there are no tensor-parallel pipeline stages; use ds_configs/zero3_tp.json or pipe_zero1.json.",
    ),
    Row(
        "pipeline and offload",
        lambda a: a.pipeline and a.zero.offloads,
        "{path}: a pipeline stage does not offload its optimizer; use ds_configs/zero3_offload.json.",
    ),
    Row(
        "pipeline and tied",
        lambda a: a.pipeline and a.text.tie_word_embeddings,
        "{path}: tied embeddings would be two tensors on two stages; set model.text.tie_word_embeddings=false.",
    ),
    Row(
        "DualPipeV of few micro-batches",
        lambda a: a.pipeline and a.s.folded and a.micro_batches < 2 * a.s.stages,
        "{path}: DualPipeV on {a.s.stages} stages needs {least} micro-batches in a step, and global_batch="
        "{a.run.global_batch} makes {a.micro_batches}; raise it or use ds_configs/pipe_zero1.json.",
    ),
    # sequence
    Row(
        "sequence over unlike heads",
        lambda a: a.s.engine == "sequence" and (a.s.sequence < 2 or not a.heads_divide()),
        "{path}: sequence_parallel_size={a.s.sequence} must be 2 or more and divide {a.text.num_attention_heads} "
        "attention heads and {a.text.num_key_value_heads} key-value heads (or be a multiple of the latter).",
    ),
    Row(
        "sequence and tensors",
        lambda a: a.s.engine == "sequence" and a.s.tensor > 1,
        "{path}: tensor parallelism and sequence parallelism want the same ranks; use ds_configs/zero3_tp.json or "
        "ds_configs/zero3_sp.json.",
    ),
    # experts
    Row(
        "experts of a dense model",
        lambda a: a.s.experts > 1 and not a.text.num_experts,
        "{path}: a dense model has no experts to spread; use ds_configs/zero3.json.",
    ),
    Row(
        "experts that do not divide",
        lambda a: a.s.experts > 1 and bool(a.text.num_experts % a.s.experts),
        "{path}: autoep_size={a.s.experts} does not divide {a.text.num_experts} experts; use a divisor of both.",
    ),
    Row(
        "experts over too few ranks",
        lambda a: a.s.experts > 1 and bool(a.ranks % a.s.experts),
        "{path}: autoep_size={a.s.experts} does not divide the {a.ranks} ranks that share a stage; use a divisor or "
        "other ranks.",
    ),
    Row(
        "experts under ZeRO-0",
        lambda a: a.s.experts > 1 and a.s.stage == 0,
        "{path}: experts need ZeRO, which keeps them in groups of their own; use ds_configs/zero2_ep.json.",
    ),
    Row(
        "experts and hpZ",
        lambda a: a.s.experts > 1 and a.zero.hpz > 1,
        "{path}: DeepSpeed has no zero_hpz_partition_size with experts; use ds_configs/zero3_ep.json without it.",
    ),
    Row(
        "experts and quantised",
        lambda a: a.s.experts > 1 and a.zero.quantised,
        "{path}: DeepSpeed does not quantise weights or gradients with experts; use ds_configs/zero3_ep.json.",
    ),
    Row(
        "experts and NVMe",
        lambda a: a.s.experts > 1 and "nvme" in a.zero.devices,
        "{path}: experts do not go to NVMe; use ds_configs/zero3_ep_offload.json.",
    ),
    # tensors
    Row(
        "tensors that do not divide",
        lambda a: a.s.tensor > 1 and not a.columns_divide(),
        "{path}: autotp_size={a.s.tensor} must divide {a.text.num_attention_heads} attention heads, "
        "{a.text.num_key_value_heads} key-value heads and the MLP's width {a.text.intermediate_size}; use a divisor "
        "or ds_configs/zero3_sp.json.",
    ),
    Row(
        "tensors under ZeRO-0",
        lambda a: a.s.tensor > 1 and a.s.stage == 0,
        "{path}: tensor parallelism needs ZeRO 1, 2 or 3; use ds_configs/zero3_tp.json.",
    ),
    Row(
        "tensors and hpZ",
        lambda a: a.s.tensor > 1 and a.zero.hpz > 1,
        "{path}: zero_hpz_partition_size would cut across tensor-parallel ranks; use ds_configs/zero3_hpz.json.",
    ),
    Row(
        "tensors and NVMe",
        lambda a: a.s.tensor > 1 and "nvme" in a.zero.devices,
        "{path}: shards of tensor-parallel ranks do not go to NVMe; use ds_configs/zero3_tp_offload.json.",
    ),
    Row(
        "tensors with settings of AutoTP",
        lambda a: a.s.tensor > 1 and bool(a.s.tensor_settings),
        "{path}: our decoder splits itself, so tensor_parallel takes autotp_size only; leave {tensor_settings} out.",
    ),
    # ZeRO
    Row(
        "matrices in parts",
        lambda a: a.run.optim.name == "muon" and a.s.stage > 0,
        "{path}: optim.name=muon needs whole matrices, and ZeRO-{a.s.stage} cuts them into parts; use "
        "ds_configs/zero0.json or optim.name=adamw.",
    ),
    Row(
        "NVMe under ZeRO-2",
        lambda a: "nvme" in a.zero.devices and a.s.stage != 3,
        "{path}: only ZeRO-3 keeps anything on NVMe; use ds_configs/zero3_nvme.json.",
    ),
    Row(
        "NVMe and hpZ",
        lambda a: "nvme" in a.zero.devices and a.zero.hpz > 1,
        "{path}: hpZ's second copy does not go to NVMe; use ds_configs/zero3_nvme.json.",
    ),
    Row(
        "NVMe swapped ahead",
        lambda a: a.zero.optimizer.ahead,
        "{path}: swapping ahead (pipeline_read, pipeline_write) was never tried; leave both out.",
    ),
    Row(
        "hpZ over odd ranks",
        lambda a: a.zero.hpz > 1 and bool(a.world % a.zero.hpz),
        "{path}: zero_hpz_partition_size={a.zero.hpz} does not divide {a.world} ranks; use the number of GPUs of a "
        "node.",
    ),
    Row(
        "fp16",
        lambda a: a.owned.fp16,
        "{path} turns fp16 on, which needs a loss scale that this trainer does not keep; use bf16.",
    ),
    Row(
        "autocast to another type",
        lambda a: a.s.autocast not in ("bfloat16", "bf16", "torch.bfloat16", "auto"),
        "{path} sets torch_autocast.dtype={a.s.autocast}, and a run computes in bf16 or fp32; write bfloat16 and set "
        "precision.",
    ),
    Row(
        "offloaded weights under ZeRO-2",
        lambda a: a.zero.parameters.device != "none" and a.s.stage < 3,
        "{path}: offload_param needs ZeRO stage 3 or higher, not {a.s.stage}; see ds_configs/.",
    ),
    Row(
        "hpZ under ZeRO-2",
        lambda a: a.zero.hpz > 1 and a.s.stage < 3,
        "{path}: zero_hpz_partition_size needs ZeRO stage 3 or higher, not {a.s.stage}; see ds_configs/.",
    ),
    Row(
        "offload under ZeRO-0",
        lambda a: a.zero.optimizer.device != "none" and a.s.stage < 1,
        "{path}: offload_optimizer needs ZeRO stage 1 or higher, not {a.s.stage}; see ds_configs/.",
    ),
    # what the run owns
    Row(
        "gradients that are summed",
        lambda a: a.s.ds.get("gradient_allreduce_op", "mean") != "mean",
        "{path} sets gradient_allreduce_op, and the run weights its loss for the mean of the ranks' gradients; leave it"
        " out.",
    ),
    Row(
        "another clipping",
        lambda a: a.owned.gradient_clipping not in ("auto", 0, a.run.optim.max_grad_norm),
        "{path} sets gradient_clipping={a.owned.gradient_clipping} and the run clips each component to "
        'optim.max_grad_norm={a.run.optim.max_grad_norm}; write "auto" and set optim.max_grad_norm.',
    ),
    Row(
        "another optimizer",
        lambda a: bool(a.owned.optimizer),
        "{path} sets optimizer.params.{a.owned.optimizer[0]}, which the run owns; use optim.* instead.",
    ),
    Row(
        "another scheduler",
        lambda a: bool(a.owned.scheduler),
        "{path} sets scheduler.params.{a.owned.scheduler[0]}, which the run owns; use optim.* instead.",
    ),
    Row(
        "global batch that does not divide",
        lambda a: bool(a.run.global_batch % a.multiple),
        NEEDS_BATCH.format(
            batch="{a.run.global_batch}",
            replicas="{a.replicas}",
            micro="{a.run.micro_batch}",
            multiple="{a.multiple}",
        ),
    ),
    Row(
        "another global batch",
        lambda a: a.owned.train_batch_size not in ("auto", a.run.global_batch),
        "{path} sets train_batch_size={a.owned.train_batch_size}, but global_batch and micro_batch make it "
        '{a.run.global_batch}; write "auto".',
    ),
    Row(
        "another micro-batch",
        lambda a: a.owned.train_micro_batch_size_per_gpu not in ("auto", a.run.micro_batch),
        "{path} sets train_micro_batch_size_per_gpu={a.owned.train_micro_batch_size_per_gpu}, but global_batch and "
        'micro_batch make it {a.run.micro_batch}; write "auto".',
    ),
    Row(
        "another accumulation",
        lambda a: a.owned.gradient_accumulation_steps not in ("auto", a.accumulation),
        "{path} sets gradient_accumulation_steps={a.owned.gradient_accumulation_steps}, but global_batch and "
        'micro_batch make it {a.accumulation}; write "auto".',
    ),
]


def first(asked: Asked) -> Row | None:
    """The first row that holds."""
    return next((row for row in TABLE if row.test(asked)), None)


def refuse(strategy: Strategy, config: RunConfig, world: int) -> None:
    """Raise ValueError, one sentence with the cause and what to do, for the first row that holds.

    Args:
        world: the number of ranks.
    """
    asked = Asked(strategy, config, world)
    row = first(asked)
    if row is None:
        return
    sentence = row.sentence.format(
        a=asked,
        path=strategy.path,
        engines=", ".join(ENGINES),
        settings=", ".join(SETTINGS),
        limits=", ".join(LIMITS + EXECUTION),
        least=2 * strategy.stages,
        tensor_settings=list(strategy.tensor_settings),
    )
    raise ValueError(sentence)
