"""Every dataclass of a run: keyword-only, frozen, each choice a Literal, each number with its range.

Fields are checked by pydantic whenever one is made; what must hold between fields is in rules.py. YAML and the command
line are settings.py.
"""

from __future__ import annotations

import os
from dataclasses import field
from typing import Annotated, Literal, Optional, get_args

from annotated_types import Ge, Le
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from molmo_ds.architecture import (
    Checked,
    Count,
    Crops,
    MolmoConfig,
    NotNegative,
    Positive,
    Rate,
    Share,
    Size,
    Whole,
)


def home(path: str) -> str:
    """The path with a leading `~` as the home folder; ValueError where there is no such user."""
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise ValueError(
            f"there is no home folder {path.split('/')[0]}; write ./{path} if it is a name"
        )
    return whole


Factor = Annotated[float, Ge(1e-6), Le(1e6)]  # of a loss; what float32 keeps next to 1
Place = Annotated[str, AfterValidator(home)]  # a path or URL; `~` is the home folder
Component = Literal["connector", "vision", "text"]
COMPONENTS: tuple[Component, ...] = get_args(Component)


@dataclass(frozen=True, kw_only=True)
class PromptConfig(Checked):
    """The way from an annotation to text."""

    # questions of styles that have none; _v2 is Molmo2's: options in many forms, answered by name and text
    prompt_templates: Literal["none", "uber_model", "uber_model_v2"] = "uber_model"
    # role = "User: ... Assistant:"; chat = <|im_start|> and <|im_end|> of the tokenizer
    message_format: Literal["none", "role", "chat"] = "role"
    # _v2 are Molmo2's: a style or none by its kind alone, no space where no length is told
    system_prompt: Literal[
        "none",
        "style",
        "style_and_length",
        "demo_or_style",
        "style_and_length_v2",
        "demo_or_style_v2",
    ] = "demo_or_style"
    # percent = <point x="1.0" ...>; html = <points coords="1 1 010 ...">, groups split by ; or tabs (v1)
    pointing_format: Literal["percent", "html-v1", "html-v2"] = "percent"
    always_start_with_space: bool = True  # the first turn too, as in the reference
    # length that a prompt asks for, in 15 characters; None = none
    default_inference_len: Optional[Whole] = 65
    root_subsegments: bool = True  # divide a picture's loss weights by sqrt(number of annotations)
    root_length: bool = False  # multiply them by 2 / sqrt(answer tokens of the annotation)
    last_answer_only: bool = False  # of a conversation learn the last answer only
    shuffle_messages: bool = True  # the order of a picture's annotations
    # pictures stand at the end of the first question; a sample has one annotation then
    image_last: bool = False


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Checked):
    """One data set of a mixture."""

    path: Place = ""  # (required) folder or URL of indexed shards, or a glob of tars
    rate: Optional[NotNegative] = None  # share of samples; None = by the square root of the size
    group: str = "all"  # sources of a group share the group's rate
    # samples in the square-root rule, instead of the real number; below 1 a share of that
    size: Optional[Positive] = None
    sampling_rate: Positive = 1.0  # factor on the square root of the size
    style: str = ""  # of every annotation, instead of its own
    weight: Factor = 1.0  # factor on the loss of every annotation
    # weight of every answer token, in place of both roots; an annotation's weight still counts
    token_weight: Optional[Positive] = None
    # as data.prompts.root_subsegments and root_length, for this source; None = those
    root_subsegments: Optional[bool] = None
    root_length: Optional[bool] = None  # see root_subsegments
    max_crops: Optional[Crops] = None  # of a picture; None = model.images.max_crops
    # each annotation of a record is a sample of its own, with the record's pictures
    split_annotations: bool = False


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """The stream of batches."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    # empty = the same for all groups
    group_rates: dict[str, NotNegative] = field(default_factory=dict)
    tokenizer: Place = ""  # (required) folder of a transformers tokenizer
    prompts: PromptConfig = field(default_factory=PromptConfig)
    sequence_length: Size = 4096  # tokens of one packed sequence
    crops_per_sequence: Size = 39  # crop budget of one packed sequence
    # pack fills by tokens, knapsack by tokens and crops; to_max, to_128 = one sample, padded
    packing: Literal["pack", "knapsack", "to_max", "to_128"] = "pack"
    crop_weight: NotNegative = 30.0  # tokens that a crop is worth in packing = knapsack
    pool_size: Size = 48  # samples a lane chooses from when it packs
    seed: Whole = 95818  # of the order of samples and of their prompts
    # processes per rank that read and decode; 0 = in the rank itself
    num_workers: Annotated[int, Ge(0), Le(1024)] = 2
    # sequences that each of them prepares ahead
    prefetch_factor: Annotated[int, Ge(1), Le(1024)] = 4
    max_bad_share: Share = 0.001  # undecodable samples above this share stop the run


@dataclass(frozen=True, kw_only=True)
class ComponentConfig(Checked):
    """The optimisation of one component."""

    lr: NotNegative = 1e-5  # peak of the learning rate
    matrix_lr: NotNegative = 0.02  # peak of the rate of hidden matrices, which only muon reads
    warmup_steps: Whole = 200  # steps until the learning rate is at its peak
    weight_decay: Optional[NotNegative] = None  # None = optim.weight_decay
    betas: Optional[tuple[Rate, Rate]] = None  # of AdamW; None = optim.betas
    eps: Optional[Positive] = None  # of AdamW; None = optim.eps
    freeze: bool = False  # nothing of it learns


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Checked):
    """AdamW, SGD or Muon with a cosine schedule, per component as the reference does."""

    # sgd is for comparisons; muon makes the updates of hidden matrices orthogonal and leaves the rest to AdamW
    name: Literal["adamw", "sgd", "muon"] = "adamw"
    connector: ComponentConfig = field(default_factory=lambda: ComponentConfig(lr=2e-4))
    vision: ComponentConfig = field(
        default_factory=lambda: ComponentConfig(lr=6e-6, warmup_steps=2000)
    )
    text: ComponentConfig = field(
        default_factory=lambda: ComponentConfig(lr=2e-5, warmup_steps=2000)
    )
    freeze_embedding: bool = True  # the base table only; head and additional rows train
    betas: tuple[Rate, Rate] = (0.9, 0.95)  # of AdamW, for components that have none of their own
    eps: Positive = 1e-6  # as betas
    momentum: Rate = 0.95  # of muon
    weight_decay: NotNegative = 0.0  # of components that have none of their own
    max_grad_norm: NotNegative = 1.0  # of each component; 0 = no clipping
    # for so many steps the limit is grad_clip_warmup_factor times higher
    grad_clip_warmup_steps: Whole = 0
    grad_clip_warmup_factor: Positive = 1.0  # see grad_clip_warmup_steps
    # where the warm-up starts; None = a tenth of the peak
    warmup_min_lr: Optional[NotNegative] = 0.0
    alpha_f: Share = 0.1  # final share of the peak
    t_max: Optional[Count] = None  # step at which the cosine ends; None = max_steps
    z_loss: NotNegative = 1e-4  # factor of the z-loss


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Checked):
    """Adapters of the linear layers of some components, of which all else is then frozen."""

    components: tuple[Component, ...] = ()  # that get adapters
    rank: Size = 16  # inner width of an adapter
    alpha: Positive = 32.0  # the adapter's output is multiplied by alpha / rank
    dropout: Rate = 0.0  # of the adapter's input


@dataclass(frozen=True, kw_only=True)
class EvaluatorConfig(Checked):
    """What is measured during training under a name: the loss of shards, or the answers to a `task`."""

    path: Place = ""  # folder, URL or glob of shards whose loss is taken
    # instead of path: shards whose loss is taken together, each with its own style, weight and crops
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    # of the shards; what is not given is as in data.prompts
    prompts: Optional[PromptConfig] = None
    task: str = ""  # TASK[:SPLIT] of `molmo-ds evaluate --list` whose questions are answered
    data_folder: Place = "data"  # folder of the task's shards, as `molmo-ds download` writes them
    examples: Count = 2048  # the first samples of each source, or the first questions of task
    interval: Optional[Count] = 1000  # steps between two evaluations; None = only at the end
    at_end: bool = True  # once more after the last step
    # then it ends with what it has; None = half of timeout_seconds
    max_seconds: Optional[Positive] = None


@dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """One run; saved resolved with its checkpoints, and enough to run again."""

    preset: str = "tiny"  # a function of presets/; model.* overrides it
    model: MolmoConfig = field(default_factory=MolmoConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluators: dict[str, EvaluatorConfig] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    # a DeepSpeed JSON; `auto`: the cheapest of ds_configs whose planned memory fits; or `accelerate`: what
    # accelerate launch was given
    strategy: Place = "ds_configs/zero3.json"
    # a checkpoint, or its URL, whose weights (nothing else) start this run
    init_from: Optional[Place] = None
    out: Place = ""  # (required) folder of this run, or its URL (s3://, gs://, weka://, r2://)
    # local folder that a remote `out` is written to first; None = below TMPDIR
    scratch: Optional[Place] = None
    resume: bool = True  # continue from the newest whole checkpoint in `out`
    overwrite: bool = False  # allow a folder that holds another run
    max_steps: Count = 30000  # of the whole run
    # instead of max_steps: passes over the samples of the shards, of which max_steps is then made
    epochs: Optional[Positive] = None
    # end this process after that step without changing the schedule
    stop_after: Optional[Count] = None
    # end this process with a checkpoint after that time; the same command continues the run
    time_limit_seconds: Optional[Positive] = None
    dry_run: bool = False  # build everything and read one batch; nothing is trained or written
    global_batch: Size = 8  # sequences per step = lanes
    micro_batch: Size = 1  # sequences per rank and micro-step; divides global_batch
    # auto = bf16 (autocast) on a GPU, else fp32; a resumed run keeps its own
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # what is recomputed in the backward pass; offload = full, inputs kept on the CPU
    activation_checkpointing: Literal[
        "none",
        "full",
        "one_in_two",
        "one_in_three",
        "one_in_four",
        "two_in_three",
        "three_in_four",
        "vision",
        "offload",
    ] = "none"
    # torch.compile of ViT blocks and decoder layers; None = where it is proven, docs/evidence/gpu.md
    compile: Optional[bool] = None
    # torch's word, with compile=true
    compile_mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    seed: Whole = 6198  # of first weights and dropout
    save_interval: Count = 1000  # steps between two checkpoints; one more at the end
    async_save: bool = True  # the next steps go on; an update waits for the copy to host memory
    keep_checkpoints: Count = 2  # the newest stay
    keep_every: Optional[Count] = None  # every Nth checkpoint stays
    # steps between two lines of log.jsonl and TensorBoard, which hold their means
    log_interval: Count = 10
    profile_steps: tuple[Count, ...] = ()  # steps to be timed by phase and traced, into out/profile
    # project of Weights & Biases to log to (WANDB_MODE=offline keeps it local)
    wandb: Optional[str] = None
    wandb_entity: Optional[str] = None  # user or team of Weights & Biases
    wandb_group: Optional[str] = None  # of runs that belong together
    wandb_tags: tuple[str, ...] = ()  # words to find the run by
    # silence of a rank that ends the run
    timeout_seconds: Annotated[int, Ge(1), Le(10_000_000)] = 600
    check_collectives: bool = False  # name the rank and the collective where ranks disagree
