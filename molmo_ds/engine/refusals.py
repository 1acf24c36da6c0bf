"""Which strategies exclude each other, each with its cause and the nearest that runs."""

from collections.abc import Iterator
from typing import Any

from molmo_ds.config import RunConfig


def pairs(strategy: Any, config: RunConfig, world: int) -> Iterator[tuple[bool, str]]:
    """(whether it is so, what is wrong and what to use instead), plain slips first.

    Args:
        strategy: a ds_config.Strategy.
        world: the number of ranks.
    """
    ds, ours, stage, zero = strategy.ds, strategy.ours, strategy.stage, strategy.ds.get("zero_optimization", {})
    kind, stages, sequence = strategy.engine, ours.get("stages", 1), ours.get("sequence_parallel_size", 1)
    block, tensors = ds.get("expert_parallel", {}), ds.get("tensor_parallel", {}).get("autotp_size", 1)
    experts = block.get("autoep_size", 1) if block.get("enabled") else 1
    text, schedule = config.model.text, ours.get("schedule")
    heads, keys, number = text.num_attention_heads, text.num_key_value_heads, text.num_experts
    hpz = zero.get("zero_hpz_partition_size", 1)
    devices = {zero.get(key, {}).get("device", "none") for key in ("offload_param", "offload_optimizer")}
    offloads = devices != {"none"}
    quantised = any(zero.get(f"zero_quantized_{what}") for what in ("weights", "gradients"))

    known = ("engine", "stages", "schedule", "sequence_parallel_size")
    unknown = sorted(set(ours) - set(known))
    yield bool(unknown), f"molmo_ds has no setting {unknown[:1]}; it has {', '.join(known)}"
    yield "sequence_parallel_size" in ds, "write sequence_parallel_size inside the molmo_ds block, not beside it"
    yield stages > 1 and kind != "pipeline", 'stages needs "engine": "pipeline" in its molmo_ds block'
    yield bool(schedule) and kind != "pipeline", 'schedule needs "engine": "pipeline" in its molmo_ds block'
    yield schedule not in (None, "dualpipev"), f"there is no schedule {schedule!r}; write dualpipev or leave it out"
    yield sequence > 1 and kind != "sequence", 'sequence_parallel_size needs "engine": "sequence" in its molmo_ds block'
    alone = block.get("enabled") and experts < 2
    yield bool(alone), "autoep_size must be 2 or more; without expert parallelism leave expert_parallel out"

    if kind == "pipeline":
        yield (
            stage != 1 or stages < 2,
            "DeepSpeed's pipeline keeps whole gradients on each stage and clips wrongly without ZeRO, so it runs with "
            f"ZeRO stage 1 (not {stage}) and 2 or more stages; see ds_configs/pipe_zero1.json",
        )
        yield (
            tensors > 1,
            "there are no tensor-parallel pipeline stages; use ds_configs/zero3_tp.json or pipe_zero1.json",
        )
        yield offloads, "a pipeline stage does not offload its optimizer; use ds_configs/zero3_offload.json"
        yield (
            text.tie_word_embeddings,
            "tied embeddings would be two tensors on two stages; set model.text.tie_word_embeddings=false",
        )
        micro_steps = config.global_batch * stages // (world * config.micro_batch)
        yield (
            strategy.folded and micro_steps < 2 * stages,
            f"DualPipeV on {stages} stages needs {2 * stages} micro-batches in a step, and global_batch="
            f"{config.global_batch} makes {micro_steps}; raise it or use ds_configs/pipe_zero1.json",
        )
    if kind == "sequence":
        yield (
            sequence < 2 or bool(heads % sequence) or bool(keys % sequence and sequence % keys),
            f"sequence_parallel_size={sequence} must be 2 or more and divide {heads} attention heads and {keys} "
            "key-value heads (or be a multiple of the latter)",
        )
        both = "and sequence parallelism want the same ranks; use"
        yield experts > 1, f"expert parallelism {both} ds_configs/zero3_ep.json or ds_configs/zero3_sp.json"
        yield tensors > 1, f"tensor parallelism {both} ds_configs/zero3_tp.json or ds_configs/zero3_sp.json"
    if experts > 1:
        ranks = world // stages
        yield not number, "a dense model has no experts to spread; use ds_configs/zero3.json"
        yield bool(number % experts), f"autoep_size={experts} does not divide {number} experts; use a divisor of both"
        yield (
            bool(ranks % experts),
            f"autoep_size={experts} does not divide the {ranks} ranks that share a stage; use a divisor or other ranks",
        )
        yield stage == 0, "experts need ZeRO, which keeps them in groups of their own; use ds_configs/zero2_ep.json"
        yield (
            hpz > 1,
            "DeepSpeed has no zero_hpz_partition_size beside experts; use ds_configs/zero3_ep.json without it",
        )
        yield quantised, "DeepSpeed does not quantise weights or gradients beside experts; use ds_configs/zero3_ep.json"
        yield offloads, "experts are not offloaded; use ds_configs/zero3_ep.json or ds_configs/zero3_offload.json"
    if tensors > 1:
        inner = 0 if number else text.intermediate_size
        yield (
            any(size % tensors for size in (heads, keys, inner)),
            f"autotp_size={tensors} must divide {heads} attention heads, {keys} key-value heads and the MLP's width "
            f"{text.intermediate_size}; use a divisor or ds_configs/zero3_sp.json",
        )
        yield stage == 0, "tensor parallelism needs ZeRO 1, 2 or 3; use ds_configs/zero3_tp.json"
        yield hpz > 1, "zero_hpz_partition_size would cut across tensor-parallel ranks; use ds_configs/zero3_hpz.json"
        yield offloads, "tensor-parallel ranks do not offload; use ds_configs/zero3_tp.json or zero3_offload.json"
        own = sorted(set(ds["tensor_parallel"]) - {"autotp_size"})
        yield bool(own), f"our decoder splits itself, so tensor_parallel takes autotp_size only; leave {own} out"
    ahead = any(zero.get("offload_optimizer", {}).get(f"pipeline_{what}") for what in ("read", "write"))
    yield "nvme" in devices and stage != 3, "only ZeRO-3 keeps anything on NVMe; use ds_configs/zero3_nvme.json"
    yield "nvme" in devices and hpz > 1, "hpZ's second copy does not go to NVMe; use ds_configs/zero3_nvme.json"
    yield ahead, "swapping ahead (pipeline_read, pipeline_write) was never tried; leave both out"
    yield (
        hpz > 1 and bool(world % hpz),
        f"zero_hpz_partition_size={hpz} does not divide {world} ranks; use the number of GPUs of a node",
    )
