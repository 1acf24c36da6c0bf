"""A strategy file as typed fields: what it asks for, parsed once; no other file reads its JSON.

The file is DeepSpeed's own JSON plus one block `molmo_ds`. engine/strategy/file.py checks its shape,
engine/strategy/refusals.py whether what it asks for can run, engine/ds_config.py fills in what it leaves to the run.
"""

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from molmo_ds.config import RunConfig
from molmo_ds.engine.strategy import file as strategy_file
from molmo_ds.engine.strategy import place as strategy_place

AUTO = "auto"  # in place of a path: engine/plan/choice.py takes one
ENGINES = ("zero", "sequence", "pipeline", "inference")
LIMITS = ("slots", "slot_tokens", "prefill_tokens")  # settings of the engine that answers
EXECUTION = ("compile", "graphs", "weights")  # of the same engine
# of the block molmo_ds
SETTINGS = ("engine", "stages", "schedule", "sequence_parallel_size", *LIMITS, *EXECUTION)
NEEDS_RANKS = "{path} needs a multiple of {shared} ranks, and there are {world}."
NEEDS_BATCH = "global_batch={batch} does not divide by {replicas} ranks x micro_batch={micro}; choose a multiple of {multiple}."  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class Offload:
    """Where weights or the optimizer's state lie."""

    device: str = "none"  # or "cpu", "nvme"
    ahead: bool = False  # swapped while something else is computed


@dataclass(frozen=True, kw_only=True)
class Zero:
    """The block zero_optimization; sizes are numbers of elements, DeepSpeed's own where the file says "auto"."""

    stage: int = 0
    hpz: int = 1  # ranks over which a second copy of the weights is split
    quantised: bool = False  # weights or gradients on their way
    parameters: Offload = field(default_factory=Offload)
    optimizer: Offload = field(default_factory=Offload)
    reduce_bucket: float = 500_000_000
    prefetch_bucket: float = 50_000_000
    live_parameters: float = 1e9  # that ZeRO-3 keeps gathered for their next use

    @property
    def devices(self) -> set[str]:
        """Where weights and state lie, "none" for the ranks' own devices."""
        return {self.parameters.device, self.optimizer.device}

    @property
    def offloads(self) -> bool:
        """Whether weights or state lie elsewhere than on the ranks' devices."""
        return self.devices != {"none"}


@dataclass(frozen=True, kw_only=True)
class Owned:
    """What a file says of things that the run owns; "auto" or nothing leaves them to it."""

    fp16: bool = False
    gradient_clipping: float | str = "auto"
    train_batch_size: int | str = "auto"
    train_micro_batch_size_per_gpu: int | str = "auto"
    gradient_accumulation_steps: int | str = "auto"
    optimizer: tuple[str, ...] = ()  # names of its parameters
    scheduler: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a replica that answers has in flight."""

    slots: int = 64  # answers; with stages, of all groups together
    slot_tokens: int = 2304  # of a prompt and its answer
    prefill_tokens: int = 8192  # of one packed prefill


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a replica computes its answers."""

    compile: bool = False  # the decoder layers of a decode step, once for each bucket of shapes
    graphs: bool = True  # decode steps are replayed as CUDA graphs, on a GPU
    # what the decoder's matrices are kept in, by torchao
    weights: Literal["int8", "fp8"] | None = None
    # few shapes of decode steps; by default on a GPU and where layers are compiled
    buckets: bool | None = None


USUAL = Limits()
PLAIN = Execution()


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One file. Sizes are numbers of ranks that share something, 1 = they do not."""

    path: str
    ds: dict[str, Any]  # what DeepSpeed gets, as the file has it
    engine: str = "zero"  # which engine runs it, by the file
    stages: int = 1  # of a pipeline
    schedule: str | None = None  # of a pipeline
    sequence: int = 1  # ranks that share a sequence, without DeepSpeed's knowledge
    tensor: int = 1  # ranks that share the decoder's heads and columns
    experts: int = 1  # ranks over which the experts are spread
    zero: Zero = field(default_factory=Zero)
    owned: Owned = field(default_factory=Owned)
    limits: Limits = field(default_factory=Limits)
    execution: Execution = field(default_factory=Execution)
    unknown: tuple[str, ...] = ()  # settings of the block molmo_ds that there are not
    deepspeeds_sequence: bool = False  # whether DeepSpeed's own key sequence_parallel_size is there
    experts_switched_on: bool = False
    tensor_settings: tuple[str, ...] = ()  # of the block tensor_parallel, other than its size

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return self.zero.stage

    @property
    def folded(self) -> bool:
        """Whether a pipeline's stages lie on the ranks in a V, two on each, as DualPipeV runs them."""
        return self.schedule == "dualpipev"

    @property
    def name(self) -> str:
        """The file's name without ending."""
        return Path(self.path).stem

    @property
    def shared(self) -> int:
        """Ranks that read the same samples."""
        return self.stages * self.sequence * self.tensor

    @property
    def casts(self) -> bool:
        """Whether bf16 means fp32 weights under autocast; else the weights themselves are bf16."""
        block = self.ds.get("torch_autocast") or {}
        return block.get("enabled", True) is not False and bool(block)

    @property
    def autocast(self) -> str:
        """The type that torch_autocast computes in."""
        return (self.ds.get("torch_autocast") or {}).get("dtype", "bfloat16")

    def data_parallel_size(self, world: int) -> int:
        """Parts of the global batch that `world` ranks read; ValueError if they are no multiple of `shared`."""
        if world % self.shared:
            raise ValueError(NEEDS_RANKS.format(path=self.path, shared=self.shared, world=world))
        return world // self.shared

    def axes(self, world: int) -> dict[str, int]:
        """Sizes of the map of ranks (engine/grid.py) by axis."""
        data = self.data_parallel_size(world)
        return {
            "stage": self.stages,
            "data": data,
            "sequence": self.sequence,
            "tensor": self.tensor,
        }


def read_strategy(path: str) -> Strategy:
    """Read a strategy file, `accelerate` = the DeepSpeed settings that `accelerate launch` was given.

    Raises ValueError, naming the file, if it is not there or not as engine/strategy/file.py reads it.
    """
    if path == AUTO:
        raise ValueError(
            "strategy=auto is for molmo-ds train, launch and plan; name a file here, for example "
            "ds_configs/zero3.json."
        )
    if path == "accelerate":
        return parse(path, _from_accelerate())
    file = strategy_place.find(path)
    return parse(str(file), strategy_file.load(file))


def _from_accelerate() -> dict[str, Any]:
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


def parse(path: str, values: dict[str, Any]) -> Strategy:
    """The typed fields of a file's JSON, whose shape engine/strategy/file.py has checked."""
    ds = dict(values)
    ours = ds.pop("molmo_ds", {})
    experts = ds.get("expert_parallel", {})
    switched_on = bool(experts.get("enabled"))
    tensor = ds.get("tensor_parallel", {})
    return Strategy(
        path=path,
        ds=ds,
        engine=ours.get("engine", "zero"),
        stages=ours.get("stages", 1),
        schedule=ours.get("schedule"),
        sequence=ours.get("sequence_parallel_size", 1),
        tensor=tensor.get("autotp_size", 1),
        experts=experts.get("autoep_size", 1) if switched_on else 1,
        zero=_zero(ds.get("zero_optimization", {})),
        owned=_owned(ds),
        limits=Limits(**{name: ours[name] for name in LIMITS if name in ours}),
        execution=Execution(**{name: ours[name] for name in EXECUTION if name in ours}),
        unknown=tuple(sorted(set(ours) - set(SETTINGS))),
        deepspeeds_sequence="sequence_parallel_size" in ds,
        experts_switched_on=switched_on,
        tensor_settings=tuple(sorted(set(tensor) - {"autotp_size"})),
    )


def _zero(block: dict[str, Any]) -> Zero:
    sizes = {
        "hpz": "zero_hpz_partition_size",
        "reduce_bucket": "reduce_bucket_size",
        "prefetch_bucket": "stage3_prefetch_bucket_size",
        "live_parameters": "stage3_max_live_parameters",
    }
    written = {name: block[key] for name, key in sizes.items() if block.get(key, "auto") != "auto"}
    return Zero(
        stage=block.get("stage", 0),
        quantised=any(block.get(f"zero_quantized_{what}") for what in ("weights", "gradients")),
        parameters=_offload(block.get("offload_param", {})),
        optimizer=_offload(block.get("offload_optimizer", {})),
        **written,
    )


def _offload(block: dict[str, Any]) -> Offload:
    ahead = any(block.get(f"pipeline_{what}") for what in ("read", "write"))
    return Offload(device=block.get("device", "none"), ahead=ahead)


def _owned(ds: dict[str, Any]) -> Owned:
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return Owned(
        fp16=ds.get("fp16", {}).get("enabled") is True,
        gradient_clipping=ds.get("gradient_clipping", "auto"),
        optimizer=_written(ds, "optimizer"),
        scheduler=_written(ds, "scheduler"),
        **{key: ds[key] for key in sizes if key in ds},
    )


def _written(ds: dict[str, Any], block: str) -> tuple[str, ...]:
    values = ds.get(block, {}).get("params", {})
    return tuple(
        sorted(key for key, value in values.items() if value != "auto" and key != "torch_adam")
    )


def accumulation(config: RunConfig, replicas: int) -> int:
    """Micro-steps of a step; ValueError if the global batch does not divide."""
    multiple = replicas * config.micro_batch
    if config.global_batch % multiple:
        batch = config.global_batch
        micro = config.micro_batch
        raise ValueError(
            NEEDS_BATCH.format(batch=batch, replicas=replicas, micro=micro, multiple=multiple)
        )
    return config.global_batch // multiple
