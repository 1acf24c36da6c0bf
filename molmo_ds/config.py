"""Every dataclass of a run, and how a YAML file with dotted overrides becomes one; the only importer of omegaconf."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass(frozen=True)
class VisionConfig:
    """A ViT. MetaCLIP is `clip`; `dinov2` has LayerScale; `siglip` has neither class token nor pre-LayerNorm."""

    model_type: str = "clip"  # clip | siglip | dinov2
    image_size: int = 336  # side of one crop in pixels
    patch_size: int = 14
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 23
    num_attention_heads: int = 16
    hidden_act: str = "quick_gelu"  # quick_gelu | gelu | gelu_pytorch_tanh
    layer_norm_eps: float = 1e-5
    num_positions: Optional[int] = None  # patches in the position table (no class token); None = those of a crop
    feature_layers: tuple[int, ...] = (-2, -9)  # block outputs that are concatenated, in this order
    attention_dropout: float = 0.0
    initializer_range: float = 0.02


@dataclass(frozen=True)
class ConnectorConfig:
    """What turns the features of a crop into a few vectors of the decoder's width."""

    pooling: str = "attention_meanq"  # attention_meanq | attention (query = first patch) | stack
    pooling_size: int = 2  # windows of pooling_size x pooling_size patches
    projector: str = "mlp"  # mlp (SwiGLU) | linear
    padding_embed: str = "pad_and_partial_pad"  # none | pad_embed | regress | pad_and_partial_pad
    intermediate_size: Optional[int] = None  # of the mlp; None = text.intermediate_size
    feature_dropout: float = 0.0
    initializer_range: float = 0.02


@dataclass(frozen=True)
class TextConfig:
    """A decoder of the Qwen2, OLMo, OLMo2, OLMoE or Llama kind."""

    model_type: str = "qwen2"  # qwen2 | olmo | olmo2 | olmoe | llama; names the hub layout, the fields below decide
    vocab_size: int = 152064  # words of the padded tokenizer; the image tokens' ids start here
    embedding_size: int = 152064  # rows of the base embedding and of the head
    additional_vocab_size: int = 128  # rows of the second embedding
    hidden_size: int = 3584
    intermediate_size: int = 18944  # of one half of the SwiGLU (or of one expert)
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    head_dim: Optional[int] = None  # None = hidden_size / num_attention_heads
    rope_theta: float = 1e6
    rope_scaling: Optional[dict[str, Any]] = None  # transformers' dictionary; only "llama3" and "default" are known
    norm_type: str = "rms"  # rms | layer (LayerNorm without weights, OLMo v1)
    rms_norm_eps: float = 1e-6
    attention_bias: bool = True  # on q, k, v
    qk_norm: bool = False  # RMSNorm over the whole q and k projections
    norm_after: bool = False  # normalise the branch's output (OLMo2) instead of its input
    clip_qkv: Optional[float] = None
    num_experts: int = 0  # 0 = dense
    num_experts_per_tok: int = 0
    norm_topk_prob: bool = False
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = False
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0  # where the target is not learnt
    response_residual_dropout: float = 0.0  # where it is
    embedding_dropout: float = 0.0
    initializer_range: float = 0.02


@dataclass(frozen=True)
class ImageConfig:
    """How a picture becomes crops and image tokens."""

    crop_mode: str = "overlap-and-resize-c2"  # overlap-and-resize-c2 | resize
    max_crops: int = 12  # high-resolution crops; the global view comes on top
    overlap_margins: tuple[int, int] = (4, 4)  # patches, left/top and right/bottom
    resize: str = "clip"  # clip | siglip | dinov2 | metaclip: interpolation and normalisation
    pad_value: float = 0.0  # before normalisation
    use_col_tokens: bool = True
    legacy_image_mask: bool = True  # released weights expect the padding mask one crop off
    exact: bool = False  # float32 crops equal to the reference instead of uint8 crops


# (mean, standard deviation) of the channels by ImageConfig.resize; bytes are divided by 255 first
PIXEL_STATISTICS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "metaclip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True)
class MolmoConfig:
    """One architecture."""

    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    images: ImageConfig = field(default_factory=ImageConfig)


@dataclass(frozen=True)
class PromptConfig:
    """How an annotation becomes text."""

    prompt_templates: str = "uber_model"  # none | uber_model
    message_format: str = "role"  # none | role
    system_prompt: str = "demo_or_style"  # none | style | style_and_length | demo_or_style
    always_start_with_space: bool = True
    default_inference_len: Optional[int] = 65
    root_subsegments: bool = True  # divide a picture's loss weights by sqrt(number of annotations)
    shuffle_messages: bool = True


@dataclass(frozen=True)
class SourceConfig:
    """One data set of a mixture."""

    path: str = ""  # (required) folder or URL of indexed shards, or a glob of tars
    rate: Optional[float] = None  # share of samples; None = by the square root of the size
    group: str = "all"  # sources of a group share the group's rate
    size: Optional[int] = None  # overrides the size in the square-root rule


@dataclass(frozen=True)
class DataConfig:
    """The stream of batches."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    group_rates: dict[str, float] = field(default_factory=dict)  # empty = all groups alike
    tokenizer: str = ""  # (required) folder of a transformers tokenizer
    prompts: PromptConfig = field(default_factory=PromptConfig)
    sequence_length: int = 4096
    crops_per_sequence: int = 39  # crop budget of one packed sequence
    packing: str = "pack"  # pack | to_max | to_128
    pool_size: int = 48  # samples a lane chooses from when it packs
    seed: int = 95818
    num_workers: int = 2
    prefetch_factor: int = 4
    max_bad_share: float = 0.001  # undecodable samples above this share stop the run


@dataclass(frozen=True)
class ComponentConfig:
    """The optimisation of one component."""

    lr: float = 1e-5
    warmup_steps: int = 200
    weight_decay: Optional[float] = None  # None = optim.weight_decay
    freeze: bool = False


@dataclass(frozen=True)
class OptimConfig:
    """AdamW or SGD with a cosine schedule, per component as the reference does."""

    name: str = "adamw"  # adamw | sgd
    connector: ComponentConfig = field(default_factory=lambda: ComponentConfig(lr=2e-4))
    vision: ComponentConfig = field(default_factory=lambda: ComponentConfig(lr=6e-6, warmup_steps=2000))
    text: ComponentConfig = field(default_factory=lambda: ComponentConfig(lr=2e-5, warmup_steps=2000))
    freeze_embedding: bool = True  # the base table only; head and additional rows train
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-6
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # of each component; 0 = no clipping
    grad_clip_warmup_steps: int = 0  # for so many steps the limit is grad_clip_warmup_factor times higher
    grad_clip_warmup_factor: float = 1.0
    warmup_min_lr: Optional[float] = 0.0  # None = a tenth of the peak
    alpha_f: float = 0.1  # final share of the peak
    t_max: Optional[int] = None  # step at which the cosine ends; None = max_steps
    z_loss: float = 1e-4


@dataclass(frozen=True)
class LoraConfig:
    """Adapters beside the linear layers of some components, of which all else is then frozen."""

    components: tuple[str, ...] = ()  # of connector, vision, text
    rank: int = 16
    alpha: float = 32.0  # the adapter's output is multiplied by alpha / rank
    dropout: float = 0.0


@dataclass(frozen=True)
class HeldOutConfig:
    """Data that is not trained on, whose loss is logged; packed and prompted as the training data is."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)  # empty = none
    interval: int = 1000  # steps between two evaluations; one more at the end
    batches: int = 8  # global batches of each, every time the same


@dataclass(frozen=True)
class RunConfig:
    """One run; saved resolved beside its checkpoints, and enough to run again."""

    preset: str = "tiny"  # a function of presets.py; model.* overrides it
    model: MolmoConfig = field(default_factory=MolmoConfig)
    data: DataConfig = field(default_factory=DataConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    strategy: str = "ds_configs/zero3.json"
    init_from: Optional[str] = None  # a checkpoint whose weights (nothing else) start this run
    out: str = ""  # (required) folder of this run
    resume: bool = True  # go on from the newest whole checkpoint in `out`
    overwrite: bool = False  # allow a folder that holds another run
    max_steps: int = 30000
    stop_after: Optional[int] = None  # end this process after that step without changing the schedule
    global_batch: int = 8  # sequences per step = lanes
    micro_batch: int = 1  # sequences per rank and micro-step
    precision: str = "auto"  # fp32 | bf16 | auto (bf16 on a GPU)
    activation_checkpointing: str = "none"  # none | full | one_in_two | vision | offload (full, inputs kept on the CPU)
    compile: bool = False  # torch.compile of ViT blocks and decoder layers
    seed: int = 6198
    save_interval: int = 1000
    async_save: bool = True  # the step waits for the copy to host memory only
    keep_checkpoints: int = 2
    keep_every: Optional[int] = None  # every Nth checkpoint stays
    log_interval: int = 10
    profile_steps: tuple[int, ...] = ()  # steps to be timed by phase and traced, into out/profile
    wandb: Optional[str] = None  # project of Weights & Biases to log to (WANDB_MODE=offline keeps it local)
    timeout_seconds: int = 600
    check_collectives: bool = False


def load(path: str | Path | None = None, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Preset, then YAML file, then `a.b=value` overrides.

    Raises ValueError, naming the nearest right key, for an unknown key or a value of the wrong type.
    """
    from molmo_ds import presets

    layers = []
    if path is not None:
        if not Path(path).is_file():
            raise ValueError(f"There is no configuration file {path}; give the path of a YAML file.")
        layers.append(OmegaConf.create(yaml.safe_load(Path(path).read_text()) or {}))
    for item in overrides:
        if "=" not in item:
            raise ValueError(f"'{item}' is not an override; write key=value, for example model.vision.hidden_size=64.")
    layers.append(OmegaConf.from_dotlist(list(overrides)))
    given = OmegaConf.merge(*layers)
    known = known_keys(RunConfig)
    for key in _leaves(given):
        _check_key(key, known)
    preset = given.get("preset") or RunConfig.preset
    base = OmegaConf.structured(dataclasses.replace(RunConfig(), preset=preset, model=presets.get(preset)))
    try:
        merged = OmegaConf.merge(base, given)
        return _freeze(OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ValueError(f"The configuration has a wrong value: {str(error).splitlines()[0]}") from None


def save(config: Any, path: str | Path) -> None:
    """Write a dataclass as YAML that `load` (or `from_dict`) reads back."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionaries, lists and numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))


def from_dict(kind: type, values: dict[str, Any]) -> Any:
    """The inverse of `to_dict` for one dataclass; unknown keys raise ValueError."""
    for key in _leaves(OmegaConf.create(values)):
        _check_key(key, known_keys(kind))
    try:
        return _freeze(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values)))
    except OmegaConfBaseException as error:
        raise ValueError(f"The configuration has a wrong value: {str(error).splitlines()[0]}") from None


def known_keys(kind: type, prefix: str = "") -> dict[str, tuple[str, Any]]:
    """Dotted name -> (type, default) of every field; a dictionary's entries are written `<name>`."""
    import typing

    hints, out = typing.get_type_hints(kind), {}
    for item in dataclasses.fields(kind):
        hint, name = hints[item.name], prefix + item.name
        default = item.default if item.default is not dataclasses.MISSING else item.default_factory()
        if dataclasses.is_dataclass(hint):
            out |= known_keys(hint, name + ".")
        elif typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
            out |= known_keys(typing.get_args(hint)[1], name + ".<name>.")
        else:
            out[name] = (str(item.type), default)
    return out


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if not OmegaConf.is_dict(node):
        return [prefix]
    return [leaf for key in node for leaf in _leaves(node._get_node(key), f"{prefix}.{key}" if prefix else str(key))]


def _check_key(key: str, known: dict[str, tuple[str, Any]]) -> None:
    parts = key.split(".")
    for name, (kind, _) in known.items():
        pattern = name.split(".")
        whole = len(pattern) == len(parts) or (len(pattern) < len(parts) and "dict[" in kind)
        if whole and all(p in ("<name>", q) for p, q in zip(pattern, parts)):
            return
    if any(n.startswith(key + ".") for n in known):
        return  # an empty section
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    leaf = difflib.get_close_matches(parts[-1], [n.rsplit(".", 1)[-1] for n in known], n=1, cutoff=0.75)
    same = [n for n in known if leaf and n.rsplit(".", 1)[-1] == leaf[0]]
    best = difflib.get_close_matches(key, same, n=1, cutoff=0.0) or near
    raise ValueError(f"There is no setting '{key}'; the nearest one is '{best[0]}'.")


def _freeze(value: Any) -> Any:
    # OmegaConf gives lists where the dataclass says tuple
    if dataclasses.is_dataclass(value):
        changes = {}
        for item in dataclasses.fields(value):
            old = getattr(value, item.name)
            new = tuple(old) if isinstance(old, list) and "tuple[" in str(item.type) else _freeze(old)
            changes[item.name] = new
        return type(value)(**changes)
    return {k: _freeze(v) for k, v in value.items()} if isinstance(value, dict) else value
