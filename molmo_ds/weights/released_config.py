"""MolmoConfig from and to other configurations: released config.json, the reference's YAML, transformers' backbones.

The released config.json says nothing of the vision tower; ours adds one field, `molmo_ds`, that holds the whole
MolmoConfig.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from molmo_ds import presets
from molmo_ds.config import ConnectorConfig, ImageConfig, MolmoConfig, TextConfig, VisionConfig
from molmo_ds.settings import changed, from_dict, in_sentences, to_dict

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
PROMPTS = ("message_format", "always_start_with_space")  # that decide how a question is put
OWN = "molmo_ds"  # the field of config.json that holds the MolmoConfig
TOWERS = {"openai": "clip", "clip": "clip", "siglip": "siglip", "dino": "dinov2", "dinov2": "dinov2"}
RESIZES = {"default": "clip", "siglip": "siglip", "dino": "dinov2", "dinov2": "dinov2", "metaclip": "metaclip"}
PADDED = (presets.molmo_7b_o(), presets.molmoe_1b())  # words fewer than embedding rows: special ids lie inside it
UNUSED = ("scale_logits", "normalize_input_embeds", "moe_shared_expert", "moe_interleave", "include_bias", "alibi")
SHARED = (  # fields of TextConfig that a released config.json calls the same
    "vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "initializer_range", "rope_theta", "norm_after", "clip_qkv",
)  # fmt: skip


def read_json(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A folder's JSON file; ValueError if there is none."""
    try:
        values = json.loads((folder / name).read_text())
    except OSError:
        raise ValueError(f"{folder} has no {name}; give the folder of a model.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / name} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{folder / name} holds no settings by name; copy the file again.")
    return values


def read(folder: Path) -> MolmoConfig:
    """The MolmoConfig of a released folder, or of our export.

    Crops are cut as its preprocessor_config.json says; ours repeats what `molmo_ds` holds. Raises ValueError.
    """
    values = read_json(folder)
    config = from_released(values)
    if OWN in values or not (folder / PREPROCESSOR).is_file():
        return config
    said = read_json(folder, PREPROCESSOR)
    given = {name: said[name] for name in ("max_crops", "overlap_margins") if said.get(name) is not None}
    return from_dict(MolmoConfig, to_dict(config) | {"images": to_dict(config.images) | given})


def prompts(folder: Path) -> dict[str, Any]:
    """Settings of PromptConfig that our export's processor_config.json repeats; a released folder has none of them."""
    if not (folder / PROCESSOR).is_file():
        return {}
    said = read_json(folder, PROCESSOR)
    return {name: said[name] for name in PROMPTS if name in said}


def override(config: MolmoConfig, changes: list[str] | tuple[str, ...]) -> MolmoConfig:
    """Apply `text.hidden_size=64` overrides; ValueError for a key that does not exist or a wrong value."""
    return changed(config, [change.removeprefix("model.") for change in changes])


def from_released(values: dict[str, Any]) -> MolmoConfig:
    """The config.json of a released folder (or of our export) as a MolmoConfig.

    Raises ValueError for another architecture.
    """
    if OWN in values:
        return from_dict(MolmoConfig, values[OWN])
    if "d_model" in values:  # MolmoE's is the reference's own, flat
        return from_reference(values)
    if values.get("model_type") != "molmo" or "hidden_size" not in values:
        kind = values.get("model_type") or values.get("architectures")
        raise ValueError(f"config.json describes a model of type '{kind}', which is not a released Molmo.")
    names = {
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "n_layers": "num_hidden_layers",
        "mlp_hidden_size": "intermediate_size",
    }
    return from_reference(values | {theirs: values.get(name) for theirs, name in names.items()})


@in_sentences("The model's configuration")
def from_reference(values: dict[str, Any]) -> MolmoConfig:
    """The reference's model configuration (the `model` part of its config.yaml) as a MolmoConfig.

    What is missing takes the released models' values. Raises ValueError for what no released or trained Molmo uses.
    """
    get = lambda name, default=None: default if values.get(name) is None else values[name]  # noqa: E731
    _refuse(values, "activation_type", ("swiglu", "llama_swiglu"))
    _refuse(values, "layer_norm_type", ("rms", "default"))
    for name in UNUSED:
        _refuse(values, name, (False,))
    moe = get("block_type") == "moe"
    heads, width = values["n_heads"], values["d_model"]
    half = int(get("mlp_hidden_size", get("mlp_ratio", 4) * width)) // 2
    # experts know no mlp_hidden_size, the connector does
    inner = int(get("mlp_ratio", 4) * width) // 2 if moe else half
    norm = "rms" if get("layer_norm_type", "rms") == "rms" else "layer"
    if norm == "layer" and get("layer_norm_with_affine", False):
        raise ValueError("layer_norm_type 'default' with layer_norm_with_affine is not supported; no Molmo uses it.")
    text = TextConfig(
        model_type=_family(values, norm),
        vocab_size=values["vocab_size"],
        embedding_size=get("embedding_size", values["vocab_size"]),
        additional_vocab_size=get("additional_vocab_size", 128),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=values["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=get("n_kv_heads", heads),
        head_dim=get("head_dim"),
        rope_theta=float(get("rope_theta", 1e4)),
        norm_type=norm,
        rms_norm_eps=float(get("layer_norm_eps", 1e-5)),
        attention_bias=get("qkv_bias", False),
        qk_norm=get("attention_layer_norm", False),
        norm_after=get("norm_after", False),
        clip_qkv=get("clip_qkv"),
        num_experts=values["moe_num_experts"] if moe else 0,
        num_experts_per_tok=values["moe_top_k"] if moe else 0,
        max_position_embeddings=get("max_position_embeddings", get("max_sequence_length", 4096)),
        tie_word_embeddings=get("weight_tying", False),
        **{name: get(name, 0.0) for name in ("attention_dropout", "residual_dropout", "embedding_dropout")},
        response_residual_dropout=get("response_residual_dropout", 0.0),
        initializer_range=get("initializer_range", 0.02),
    )
    tower = get("vision_backbone")
    vision = VisionConfig() if tower is None else _reference_vision(tower)
    connector = ConnectorConfig(
        pooling=get("image_pooling_2d", "attention_meanq").replace("-", "_"),
        pooling_size=get("image_pooling_h", 2),
        projector=get("image_projector", "mlp"),
        # released config.json files do not name it; a reference configuration that leaves it out has none
        padding_embed=get("image_padding_embed", "none" if "image_padding_embed" in values else "pad_and_partial_pad"),
        intermediate_size=half if half != inner else None,
        feature_dropout=get("image_feature_dropout", 0.0),
        initializer_range=get("initializer_range", 0.02),
    )
    images = ImageConfig(
        crop_mode=get("crop_mode", "overlap-and-resize-c2"),
        max_crops=get("max_crops", 12),
        overlap_margins=tuple(get("overlap_margins", (4, 4))),
        resize=RESIZES[tower.get("resize_mode") or "default"] if tower else "clip",
        pad_value=float(get("pad_value", 0.0)),
        use_col_tokens=get("use_col_tokens", True),
    )
    layers = get("vit_layers")
    return MolmoConfig(
        text=text,
        vision=replace(vision, feature_layers=tuple(layers)) if layers else vision,
        connector=connector,
        images=images,
    )


def to_released(config: MolmoConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a released folder, with the field `molmo_ds` on top.

    MolmoE's carries the OLMo names beside those of the others, because its readers look for them.
    """
    text = config.text
    width = text.intermediate_size * 2
    values = {
        "architectures": ["MolmoForCausalLM"],
        "auto_map": {
            "AutoConfig": "config_molmo.MolmoConfig",
            "AutoModelForCausalLM": "modeling_molmo.MolmoForCausalLM",
        },
        "model_type": "molmo",
        **{name: getattr(text, name) for name in SHARED},
        "attention_layer_norm": text.qk_norm,
        "intermediate_size": width,
        "layer_norm_eps": text.rms_norm_eps,
        "layer_norm_type": "rms" if text.norm_type == "rms" else "default",
        "qkv_bias": text.attention_bias,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_position_ids": True,
        "weight_tying": text.tie_word_embeddings,
        "torch_dtype": dtype,
    }
    if text.num_experts:
        values |= {
            "block_type": "moe", "d_model": text.hidden_size, "n_heads": text.num_attention_heads,
            "n_kv_heads": text.num_key_value_heads, "n_layers": text.num_hidden_layers, "mlp_hidden_size": None,
            "mlp_ratio": width // text.hidden_size if width % text.hidden_size == 0 else width / text.hidden_size,
            "moe_num_experts": text.num_experts, "moe_top_k": text.num_experts_per_tok,
            "additional_vocab_size": text.additional_vocab_size, "include_bias": False,
        }  # fmt: skip
    return values | {OWN: to_dict(config)}


@in_sentences("The model's configuration")
def text_config(values: dict[str, Any]) -> TextConfig:
    """The config.json of transformers' Qwen2, Llama, OLMo, OLMo2 or OLMoE as a TextConfig; ValueError for another."""
    kind = values.get("model_type")
    if kind not in ("qwen2", "llama", "olmo", "olmo2", "olmoe"):
        raise ValueError(f"A language model of type '{kind}' is not supported; use qwen2, llama, olmo, olmo2 or olmoe.")
    if values.get("use_sliding_window") or (kind != "qwen2" and values.get("attention_bias")) or values.get("mlp_bias"):
        raise ValueError(f"This {kind} model has sliding windows or biases that Molmo does not have.")
    rope = values.get("rope_parameters") or {}  # transformers 5; rope_theta and rope_scaling before
    scaling = {k: v for k, v in (values.get("rope_scaling") or rope).items() if k != "rope_theta"}
    rows, heads = values["vocab_size"], values["num_attention_heads"]
    padded = [p.text for p in PADDED if (p.text.model_type, p.text.embedding_size) == (kind, rows)]
    return TextConfig(
        model_type=kind,
        vocab_size=padded[0].vocab_size if padded else rows,
        embedding_size=rows,
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim"),
        rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 1e4),
        rope_scaling=None if scaling.get("rope_type", scaling.get("type", "default")) == "default" else scaling,
        norm_type="layer" if kind == "olmo" else "rms",
        rms_norm_eps=values.get("rms_norm_eps", 1e-6 if kind in ("qwen2", "llama") else 1e-5),
        attention_bias=kind == "qwen2",
        qk_norm=kind in ("olmo2", "olmoe"),
        norm_after=kind == "olmo2",
        clip_qkv=values.get("clip_qkv"),
        num_experts=values["num_experts"] if kind == "olmoe" else 0,
        num_experts_per_tok=values["num_experts_per_tok"] if kind == "olmoe" else 0,
        norm_topk_prob=bool(values.get("norm_topk_prob")),
        max_position_embeddings=values["max_position_embeddings"],
        initializer_range=values.get("initializer_range", 0.02),
    )


@in_sentences("The model's configuration")
def vision_config(values: dict[str, Any], name: str) -> tuple[VisionConfig, ImageConfig]:
    """The config.json of transformers' CLIP, SigLIP or DINOv2 as a tower, and how its crops are resized.

    Args:
        name: openai (or clip), metaclip, siglip, dinov2: what decides the layers taken (23 of OpenAI's 24).
    """
    resize = {"openai": "clip"}.get(name, name)
    if resize not in presets.TOWERS:
        raise ValueError(f"There is no vision tower '{name}'; use openai, metaclip, siglip or dinov2.")
    base = presets.TOWERS[resize]
    part = values.get("vision_config")
    kind = str(values.get("model_type") if part is None else part.get("model_type") or values.get("model_type"))
    kind = kind.removesuffix("_vision_model")
    if kind != base.model_type:
        raise ValueError(f"The vision tower '{name}' is a {base.model_type} model and the folder holds '{kind}'.")
    from transformers import AutoConfig  # files on the hub leave out what is its default

    defaults = AutoConfig.for_model(kind if kind == "dinov2" else kind + "_vision_model").to_dict()
    values = defaults | (values if part is None else part)
    if values.get("use_swiglu_ffn"):
        raise ValueError("DINOv2 giant (use_swiglu_ffn) is not supported; use DINOv2 large, base or small.")
    layers, size, patch = values["num_hidden_layers"], values["image_size"], values["patch_size"]
    # crops are as large as Molmo's, whatever the tower saw: SigLIP's 384 pixels hold 27 patches as 378 do
    crop, table = base.image_size, (size // patch) ** 2
    vision = VisionConfig(
        model_type=kind,
        image_size=crop,
        patch_size=patch,
        hidden_size=values["hidden_size"],
        intermediate_size=values.get("intermediate_size") or int(values["hidden_size"] * values.get("mlp_ratio", 4)),
        num_hidden_layers=layers - 1 if resize == "clip" else layers,
        num_attention_heads=values["num_attention_heads"],
        hidden_act=values["hidden_act"],
        layer_norm_eps=values["layer_norm_eps"],
        num_positions=None if table == (crop // patch) ** 2 else table,
        feature_layers=base.feature_layers,
    )
    return vision, ImageConfig(resize=resize)


def _family(values: dict[str, Any], norm: str) -> str:
    if values.get("block_type") == "moe":
        return "olmoe"
    if values.get("norm_after"):
        return "olmo2"
    if norm == "layer":
        return "olmo"
    return "qwen2" if values.get("qkv_bias") else "llama"


def _reference_vision(tower: dict[str, Any]) -> VisionConfig:
    kind = TOWERS.get(tower["image_model_type"])
    if kind is None:
        raise ValueError(f"There is no vision tower '{tower['image_model_type']}'; there are {', '.join(TOWERS)}.")
    size, patch = tower["image_default_input_size"][0], tower["image_patch_size"]
    positions = tower["image_num_pos"] - (kind != "siglip")
    return VisionConfig(
        model_type=kind,
        image_size=size,
        patch_size=patch,
        hidden_size=tower["image_emb_dim"],
        intermediate_size=tower["image_mlp_dim"],
        num_hidden_layers=tower["image_num_layers"],
        num_attention_heads=tower["image_num_heads"],
        hidden_act=tower["image_mlp_activations"],
        layer_norm_eps=tower["image_norm_eps"],
        num_positions=None if positions == (size // patch) ** 2 else positions,
        feature_layers=presets.TOWERS[kind].feature_layers,
        attention_dropout=tower.get("attention_dropout") or 0.0,
        initializer_range=tower.get("initializer_range") or 0.02,
    )


def _refuse(values: dict[str, Any], name: str, known: tuple[Any, ...]) -> None:
    if values.get(name) is not None and values[name] not in known:
        raise ValueError(f"{name} is '{values[name]}', which no Molmo uses; supported: {', '.join(map(str, known))}.")
