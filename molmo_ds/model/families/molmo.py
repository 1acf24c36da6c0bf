"""Molmo itself: the released config.json, the reference's YAML and MolmoConfig, and what vLLM serves.

The released config.json says nothing of the vision tower; ours adds one field, `molmo_ds`, that holds the whole
MolmoConfig. Source: allenai/molmo at 793fa38, olmo/config.py; vLLM 0.33, model_executor/models/molmo.py.
"""

from dataclasses import replace
from typing import Any

from molmo_ds import presets
from molmo_ds.architecture import (
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VisionConfig,
)
from molmo_ds.model import families
from molmo_ds.model.families import hemolmo, molmo2, molmo2_reference
from molmo_ds.settings import from_dict, in_sentences, to_dict

OWN = "molmo_ds"  # the field of config.json that holds the MolmoConfig
TOWERS = {
    "openai": "clip",
    "clip": "clip",
    "siglip": "siglip",
    "dino": "dinov2",
    "dinov2": "dinov2",
}
RESIZES = {
    "default": "clip",
    "siglip": "siglip",
    "dino": "dinov2",
    "dinov2": "dinov2",
    "metaclip": "metaclip",
}
UNUSED = (
    "scale_logits",
    "normalize_input_embeds",
    "moe_shared_expert",
    "moe_interleave",
    "include_bias",
    "alibi",
)
SHARED = (  # fields of TextConfig that a released config.json calls the same
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "initializer_range",
    "rope_theta",
    "norm_after",
    "clip_qkv",
)
AUTO_CLASSES = (  # of transformers, by which people and pipelines load the model
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForVision2Seq",  # its name in transformers 4
)
REFERENCE = {  # the reference's name of a size -> that of a released config.json
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "mlp_hidden_size": "intermediate_size",
}


def from_released(values: dict[str, Any]) -> MolmoConfig:
    """The config.json of a released folder (or of our export) as a MolmoConfig.

    Raises ValueError for another architecture.
    """
    if OWN in values:
        return from_dict(MolmoConfig, values[OWN])
    if values.get("model_type") == "molmo2":
        return molmo2.from_released(values)
    if "d_model" in values:  # MolmoE's is the reference's own, flat
        return from_reference(values)
    if values.get("model_type") != "molmo" or "hidden_size" not in values:
        kind = values.get("model_type") or values.get("architectures")
        raise ValueError(
            f"config.json describes a model of type '{kind}', which is not a released Molmo."
        )
    return from_reference(values | {theirs: values.get(name) for theirs, name in REFERENCE.items()})


def is_later(values: dict[str, Any]) -> bool:
    """Whether the reference's model configuration is of its later code, which Molmo2 and HeMolmo have."""
    return "token_scorer" in values or "llm" in values


@in_sentences("The model's configuration")
def from_reference(values: dict[str, Any]) -> MolmoConfig:
    """The reference's model configuration (the `model` part of its config.yaml) as a MolmoConfig.

    What is missing takes the released models' values. Raises ValueError for what no released or trained Molmo uses.
    """
    if "token_scorer" in values:
        return hemolmo.from_reference(values)
    if "llm" in values:
        return molmo2_reference.from_reference(values)
    _refuse(values, "activation_type", ("swiglu", "llama_swiglu"))
    _refuse(values, "layer_norm_type", ("rms", "default"))
    for name in UNUSED:
        _refuse(values, name, (False,))
    for name in ("rope", "use_position_ids"):
        _refuse(values, name, (True,))
    _refuse(values, "image_pooling_w", (values.get("image_pooling_h") or 2,))
    given = {name: value for name, value in values.items() if value is not None}
    text = _text(given)
    tower = given.get("vision_backbone")
    vision = VisionConfig() if tower is None else _vision(tower)
    # null is the last block, as in the reference; released files name no tower
    nothing_said = tower is not None and values.get("vit_layers", ()) is None
    layers = (-1,) if nothing_said else given.get("vit_layers")
    half = _half(given)
    connector = ConnectorConfig(
        pooling=given.get("image_pooling_2d", "attention_meanq").replace("-", "_"),
        pooling_size=given.get("image_pooling_h", 2),
        projector=given.get("image_projector", "mlp"),
        padding_embed=_padding_embed(values),
        intermediate_size=half if half != text.intermediate_size else None,
        feature_dropout=given.get("image_feature_dropout", 0.0),
        initializer_range=given.get("initializer_range", 0.02),
    )
    images = ImageConfig(
        crop_mode=given.get("crop_mode", "overlap-and-resize-c2"),
        max_crops=given.get("max_crops", 12),
        overlap_margins=tuple(given.get("overlap_margins", (4, 4))),
        resize=RESIZES[tower.get("resize_mode") or "default"] if tower else "clip",
        pad_value=float(given.get("pad_value", 0.0)),
        use_col_tokens=given.get("use_col_tokens", True),
    )
    return MolmoConfig(
        text=text,
        vision=replace(vision, feature_layers=tuple(layers)) if layers else vision,
        connector=connector,
        images=images,
    )


def to_released(config: MolmoConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a released folder, with the field `molmo_ds` on top.

    MolmoE's carries the OLMo names with those of the others, because its readers look for them.
    """
    text = config.text
    width = text.intermediate_size * 2
    values = {
        "architectures": ["MolmoForCausalLM"],
        "auto_map": {"AutoConfig": "config_molmo.MolmoConfig"}
        | dict.fromkeys(AUTO_CLASSES, "modeling_molmo.MolmoForCausalLM"),
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
            "block_type": "moe",
            "d_model": text.hidden_size,
            "n_heads": text.num_attention_heads,
            "n_kv_heads": text.num_key_value_heads,
            "n_layers": text.num_hidden_layers,
            "mlp_hidden_size": None,
            "mlp_ratio": width // text.hidden_size
            if width % text.hidden_size == 0
            else width / text.hidden_size,
            "moe_num_experts": text.num_experts,
            "moe_top_k": text.num_experts_per_tok,
            "additional_vocab_size": text.additional_vocab_size,
            "include_bias": False,
        }
    return values | {OWN: to_dict(config)}


def not_servable(config: MolmoConfig) -> str | None:
    """Why vLLM's MolmoForCausalLM (0.33) cannot serve a model, None if it can."""
    connector = config.connector
    tower = families.tower(config.vision.model_type).not_served(config.vision)
    decoder = families.decoder(config.text.model_type).not_served(config.text)
    if tower or decoder:
        return tower or decoder
    if (connector.pooling, connector.projector, connector.pooling_size) != (
        "attention_meanq",
        "mlp",
        2,
    ):
        return "vLLM's Molmo pools 2 x 2 patches by attention_meanq and projects by an mlp"
    if (
        connector.padding_embed not in ("pad_and_partial_pad", "none")
        or connector.intermediate_size
    ):
        return "vLLM's Molmo has pad_and_partial_pad, and a connector as wide as the text's MLP"
    return None


def _half(given: dict[str, Any]) -> int:
    """Half of the SwiGLU's two matrices, as the reference writes its width."""
    return int(given.get("mlp_hidden_size", given.get("mlp_ratio", 4) * given["d_model"])) // 2


def _text(given: dict[str, Any]) -> TextConfig:
    moe = given.get("block_type") == "moe"
    width = given["d_model"]
    heads = given["n_heads"]
    words = given["vocab_size"]
    norm = "rms" if given.get("layer_norm_type", "rms") == "rms" else "layer"
    if norm == "layer" and given.get("layer_norm_with_affine", False):
        raise ValueError(
            "layer_norm_type 'default' with layer_norm_with_affine is not supported; no Molmo uses it."
        )
    # experts know no mlp_hidden_size, the connector does
    inner = int(given.get("mlp_ratio", 4) * width) // 2 if moe else _half(given)
    return TextConfig(
        model_type=_family(given, norm),
        vocab_size=words,
        embedding_size=given.get("embedding_size", words),
        additional_vocab_size=given.get("additional_vocab_size", 128),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=given["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=given.get("n_kv_heads", heads),
        head_dim=given.get("head_dim"),
        rope_theta=float(given.get("rope_theta", 1e4)),
        norm_type=norm,
        rms_norm_eps=float(given.get("layer_norm_eps", 1e-5)),
        attention_bias=given.get("qkv_bias", False),
        qk_norm=given.get("attention_layer_norm", False),
        norm_after=given.get("norm_after", False),
        clip_qkv=given.get("clip_qkv"),
        num_experts=given["moe_num_experts"] if moe else 0,
        num_experts_per_tok=given["moe_top_k"] if moe else 0,
        max_position_embeddings=given.get(
            "max_position_embeddings", given.get("max_sequence_length", 4096)
        ),
        tie_word_embeddings=given.get("weight_tying", False),
        attention_dropout=given.get("attention_dropout", 0.0),
        residual_dropout=given.get("residual_dropout", 0.0),
        embedding_dropout=given.get("embedding_dropout", 0.0),
        response_residual_dropout=given.get("response_residual_dropout", 0.0),
        initializer_range=given.get("initializer_range", 0.02),
    )


def _family(given: dict[str, Any], norm: str) -> str:
    if given.get("block_type") == "moe":
        return "olmoe"
    if given.get("norm_after"):
        return "olmo2"
    if norm == "layer":
        return "olmo"
    return "qwen2" if given.get("qkv_bias") else "llama"


def _padding_embed(values: dict[str, Any]) -> str:
    """Released config.json files do not name it; a reference configuration that leaves it out has none."""
    if values.get("image_padding_embed") is not None:
        return values["image_padding_embed"]
    return "none" if "image_padding_embed" in values else "pad_and_partial_pad"


def _vision(tower: dict[str, Any]) -> VisionConfig:
    kind = TOWERS.get(tower["image_model_type"])
    if kind is None:
        raise ValueError(
            f"There is no vision tower '{tower['image_model_type']}'; there are {', '.join(TOWERS)}."
        )
    base = presets.TOWERS[kind]
    height, size = tower["image_default_input_size"]
    if height != size:
        raise ValueError(
            f"The vision tower's crops have {height} x {size} pixels; they must be square."
        )
    resize = tower.get("resize_mode") or "default"
    if resize not in RESIZES:
        raise ValueError(f"resize_mode is '{resize}'; supported: {', '.join(RESIZES)}.")
    _refuse(tower, "residual_dropout", (0,))
    patch = tower["image_patch_size"]
    positions = tower["image_num_pos"] - base.class_tokens
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
        feature_layers=base.feature_layers,
        attention_dropout=tower.get("attention_dropout") or 0.0,
        initializer_range=tower.get("initializer_range") or 0.02,
    )


def _refuse(values: dict[str, Any], name: str, known: tuple[Any, ...]) -> None:
    if values.get(name) is not None and values[name] not in known:
        raise ValueError(
            f"{name} is '{values[name]}', which no Molmo uses; supported: {', '.join(map(str, known))}."
        )
