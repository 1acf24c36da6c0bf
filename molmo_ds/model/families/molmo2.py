"""Molmo2 itself: the released config.json as a MolmoConfig, and back.

Unlike Molmo's, this config.json describes the tower too. Sources: allenai/molmo2 at f3cb108, the converter of
olmo/models/video_olmo; huggingface/transformers v5.23.0, src/transformers/models/molmo2/configuration_molmo2.py.
"""

from dataclasses import replace
from typing import Any

from molmo_ds.architecture import (
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VisionConfig,
)
from molmo_ds.presets.molmo2 import VIDEO
from molmo_ds.presets.towers import SIGLIP2
from molmo_ds.settings import in_sentences, to_dict

OWN = "molmo_ds"  # the field of config.json that holds the MolmoConfig
IDS = {  # fields of config.json -> special token, counted from vocab_size
    "image_start_token_id": 0,
    "image_end_token_id": 1,
    "image_patch_id": 2,
    "image_high_res_id": 2,
    "image_col_id": 3,
    "low_res_image_start_token_id": 4,
    "image_low_res_id": 6,
    "frame_start_token_id": 7,
    "frame_end_token_id": 8,
}
ALIKE = (  # fields of TextConfig that text_config calls the same
    "vocab_size",
    "additional_vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "initializer_range",
    "rope_scaling",
    "norm_after",
    "attention_dropout",
    "residual_dropout",
    "embedding_dropout",
)


@in_sentences("The model's configuration")
def from_released(values: dict[str, Any]) -> MolmoConfig:
    """The config.json of a released folder as a MolmoConfig; its tokens of pictures see each other."""
    adapter = values["adapter_config"]
    said = values["text_config"]
    given = {name: said[name] for name in ALIKE if said.get(name) is not None}
    if given.get("head_dim") == said["hidden_size"] / said["num_attention_heads"]:
        del given["head_dim"]
    norm = said.get("use_qk_norm", True)
    bias = said.get("qkv_bias", False)
    scaled = said.get("rope_scaling_layers")
    text = TextConfig(
        model_type="qwen2" if bias else "olmo3" if said.get("norm_after") else "qwen3",
        embedding_size=said["vocab_size"],
        rope_theta=float(said["rope_theta"]),
        rope_scaling_layers=None if scaled is None else tuple(scaled),
        rms_norm_eps=said["layer_norm_eps"],
        attention_bias=bias,
        qk_norm=norm,
        qk_norm_per_head=norm and said.get("qk_norm_type") == "qwen3",
        image_attention="image_tokens",
        tie_word_embeddings=values.get("tie_word_embeddings", False),
        **given,
    )
    inner = adapter["intermediate_size"]
    connector = ConnectorConfig(
        padding_embed="none",
        pooling_mask=adapter.get("pooling_attention_mask", True),
        intermediate_size=None if inner == text.intermediate_size else inner,
        feature_dropout=adapter.get("image_feature_dropout", 0.0),
        initializer_range=adapter.get("initializer_range", 0.02),
    )
    tower = values.get("vit_config") or values["vision_config"]
    return MolmoConfig(
        family="molmo2",
        text=text,
        vision=_vision(tower, adapter["vit_layers"]),
        connector=connector,
        images=ImageConfig(
            resize="siglip", max_crops=8, several_max_crops=8, legacy_image_mask=False
        ),
        video=VIDEO,
    )


def refuse_unknown(values: dict[str, Any], known: dict[str, Any]) -> None:
    """ValueError for a setting with another value than the known one, which also counts where none is given."""
    for name, value in known.items():
        given = values.get(name)
        if given is not None and given != value:
            raise ValueError(
                f"{name} is '{given}', which means another network; supported: {value}."
            )


def to_released(config: MolmoConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a released folder, with the field `molmo_ds` on top."""
    text = config.text
    vision = config.vision
    size = text.head_width
    kind = "qwen3" if text.qk_norm_per_head else "olmo"
    scaled = text.rope_scaling_layers
    shared = {"attn_implementation": "sdpa", "attention_dropout": 0.0}
    head = vision.hidden_size // vision.num_attention_heads
    tower = {
        "hidden_size": vision.hidden_size,
        "num_attention_heads": vision.num_attention_heads,
        "num_key_value_heads": vision.num_attention_heads,
        "head_dim": head,
        "float32_attention": True,
        "model_type": "molmo2",
    }
    return {
        "architectures": ["Molmo2ForConditionalGeneration"],
        "model_type": "molmo2",
        **{name: text.vocab_size + offset for name, offset in IDS.items()},
        "use_frame_special_tokens": True,
        "adapter_config": {
            **shared,
            **tower,
            "hidden_act": "silu",
            "intermediate_size": config.connector.intermediate_size or text.intermediate_size,
            "pooling_attention_mask": config.connector.pooling_mask,
            "text_hidden_size": text.hidden_size,
            "vit_layers": list(vision.feature_layers),
            "image_feature_dropout": config.connector.feature_dropout,
            "initializer_range": config.connector.initializer_range,
            "residual_dropout": 0.0,
        },
        "text_config": {
            **shared,
            **{name: getattr(text, name) for name in ALIKE},
            "head_dim": size,
            "hidden_act": "silu",
            "layer_norm_eps": text.rms_norm_eps,
            "model_type": "molmo2_text",
            "qk_norm_type": kind,
            "qkv_bias": text.attention_bias,
            "rope_scaling_layers": None if scaled is None else list(scaled),
            "rope_theta": text.rope_theta,
            "use_cache": True,
            "use_qk_norm": text.qk_norm,
        },
        "vit_config": {
            **shared,
            **tower,
            "hidden_act": vision.hidden_act,
            "image_default_input_size": [vision.image_size, vision.image_size],
            "image_num_pos": vision.num_positions or (vision.image_size // vision.patch_size) ** 2,
            "image_patch_size": vision.patch_size,
            "initializer_range": vision.initializer_range,
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": vision.layer_norm_eps,
            "num_hidden_layers": vision.num_hidden_layers,
            "residual_dropout": 0.0,
        },
        "initializer_range": text.initializer_range,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": dtype,
        OWN: to_dict(config),
    }


def not_servable(config: MolmoConfig) -> str | None:
    """Why the released format, hence vLLM and transformers, cannot say what a model does, None if it can."""
    text = config.text
    if text.image_attention != "image_tokens":
        return f"readers of Molmo2 know no image_attention={text.image_attention}"
    if text.num_experts or not text.qk_norm or text.embedding_size != text.vocab_size:
        return (
            "readers of Molmo2 know no experts, no attention without norms and no padded vocabulary"
        )
    connector = config.connector
    if connector.padding_embed != "none" or connector.pooling != "attention_meanq":
        return "readers of Molmo2 know no padding embedding and no pooling but attention_meanq"
    if not config.video.per_frame_special_token:
        return "readers of Molmo2 put tokens around each frame, not around the whole video"
    several = config.images.several_max_crops
    if several is not None and several < config.images.max_crops:
        return "readers of Molmo2 cut one of several pictures into as many crops as a single one"
    return None


def _vision(tower: dict[str, Any], layers: list[int]) -> VisionConfig:
    """The tower without the blocks after its last feature, which released folders count and do not hold."""
    count = tower["num_hidden_layers"]
    used = [layer % count for layer in layers]
    built = max(used) + 1
    size = tower["image_default_input_size"][0]
    patch = tower["image_patch_size"]
    positions = tower["image_num_pos"]
    return replace(
        SIGLIP2,
        image_size=size,
        patch_size=patch,
        hidden_size=tower["hidden_size"],
        intermediate_size=tower["intermediate_size"],
        num_hidden_layers=built,
        num_attention_heads=tower["num_attention_heads"],
        hidden_act=tower["hidden_act"],
        layer_norm_eps=tower["layer_norm_eps"],
        num_positions=None if positions == (size // patch) ** 2 else positions,
        feature_layers=tuple(layer - built for layer in used),
        initializer_range=tower.get("initializer_range", 0.02),
    )
