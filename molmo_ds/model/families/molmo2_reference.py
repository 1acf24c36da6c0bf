"""The configuration of Molmo2's reference as a MolmoConfig.

Source: allenai/molmo2 at f3cb108, olmo/models/video_olmo, olmo/nn and olmo/preprocessing.
"""

import warnings
from dataclasses import replace
from typing import Any

from molmo_ds.architecture import MolmoConfig, VideoConfig
from molmo_ds.model.families.molmo2 import ALIKE, from_released, refuse_unknown
from molmo_ds.settings import in_sentences

REFERENCE = {  # the reference's name of a size of the text model -> that of config.json
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "layer_norm_eps": "layer_norm_eps",
    "attention_layer_norm": "use_qk_norm",
    "attention_layer_norm_type": "qk_norm_type",
    "full_attention_layers": "rope_scaling_layers",
}
KNOWN = {  # parts of the reference's configuration -> settings that mean another network with any other value
    "llm": {
        "activation_type": "swiglu",
        "attention_layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "block_type": "sequential",
        "can_predict_extra_tokens": False,
        "clip_qkv": None,
        "include_bias": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "normalize_input_embeds": False,
        "rope": True,
        "rope_mscale": None,
        "rope_mscale_all_dim": None,
        "scale_logits": False,
        "sliding_attention_rope_scaling": False,
        "use_position_ids": True,
    },
    "vision_backbone": {
        "image_padding_embed": None,
        "image_pooling_2d": "attention_meanq",
        "image_projector": "mlp",
        "share_connector": False,
        "use_deepstack": False,
    },
    "vit": {
        "attention_dropout": 0.0,
        "image_dropout_rate": 0.0,
        "image_model_type": "siglip",
        "normalize": "siglip",
        "residual_dropout": 0.0,
        "resize_mode": "siglip",
    },
    "image": {
        "crop_mode": "overlap-and-resize-c2",
        "use_single_crop_col_tokens": False,
        "use_single_crop_start_token": True,
    },
    "video": {
        "max_subtitle_tokens": None,
        "time_mode": "per-frame-compact",
        "use_frame_special_tokens": True,
    },
}
YARN = {  # the same for the rotary positions
    "rope_type": "rope_type",
    "rope_factor": "factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_low_freq_factor": "low_freq_factor",
    "rope_original_max_position_embeddings": "original_max_position_embeddings",
    "rope_attention_factor": "attention_factor",
    "rope_beta_fast": "beta_fast",
    "rope_beta_slow": "beta_slow",
}


@in_sentences("The model's configuration")
def from_reference(values: dict[str, Any]) -> MolmoConfig:
    """The `model` part of the reference's config.yaml as a MolmoConfig; ValueError for what no Molmo2 uses."""
    said = values["llm"]
    refuse_unknown(said, KNOWN["llm"])
    refuse_unknown(values["vision_backbone"], KNOWN["vision_backbone"])
    tower = values["vision_backbone"]["vit"]
    head = tower["image_emb_dim"] // tower["image_num_heads"]
    heads = {"image_head_dim": head, "image_num_key_value_heads": tower["image_num_heads"]}
    refuse_unknown(tower, KNOWN["vit"] | heads)
    half = int(said["mlp_hidden_size"] or said["mlp_ratio"] * said["d_model"]) // 2
    text = {name: said.get(name) for name in (*ALIKE, "rope_theta")}
    text["qkv_bias"] = said.get("qkv_bias", False)
    text |= {theirs: said.get(name) for name, theirs in REFERENCE.items()}
    text["num_key_value_heads"] = text["num_key_value_heads"] or text["num_attention_heads"]
    text["max_position_embeddings"] = (
        said.get("max_position_embeddings") or said["max_sequence_length"]
    )
    text["intermediate_size"] = half
    if said.get("rope_type", "default") != "default":
        text["rope_scaling"] = {
            theirs: said[name] for name, theirs in YARN.items() if said.get(name) is not None
        }
    backbone = values["vision_backbone"]
    vit = backbone["vit"]
    tower = {
        "hidden_size": vit["image_emb_dim"],
        "intermediate_size": vit["image_mlp_dim"],
        "num_hidden_layers": vit["image_num_layers"],
        "num_attention_heads": vit["image_num_heads"],
        "hidden_act": vit["image_mlp_activations"],
        "layer_norm_eps": vit["image_norm_eps"],
        "initializer_range": vit.get("initializer_range", 0.02),
        **{name: vit[name] for name in ("image_default_input_size", "image_patch_size")},
        "image_num_pos": vit["image_num_pos"],
    }
    adapter = {
        "intermediate_size": half,
        "pooling_attention_mask": backbone["pooling_attention_mask"],
        "vit_layers": backbone["vit_layers"],
        "image_feature_dropout": backbone.get("image_feature_dropout", 0.0),
    }
    made = from_released(
        {
            "text_config": text,
            "vit_config": tower,
            "adapter_config": adapter,
            "tie_word_embeddings": said.get("weight_tying", False),
        }
    )
    attention = values.get("bi_directional_attn") or "causal"
    pictures = values["mm_preprocessor"]["image"]
    frames = values["mm_preprocessor"].get("video")  # HeMolmo's says nothing of videos
    if frames is not None:
        single = pictures.get("use_single_crop_col_tokens")
        columns = pictures["use_col_tokens"] if single is None else single
        refuse_unknown(pictures | {"use_single_crop_col_tokens": columns}, KNOWN["image"])
    return replace(
        made,
        connector=replace(made.connector, pooling_size=_pooling(pictures)),
        text=replace(
            made.text,
            embedding_size=said.get("embedding_size") or said["vocab_size"],
            image_attention=attention,
            response_residual_dropout=said.get("response_residual_dropout", 0.0),
        ),
        images=replace(
            made.images,
            max_crops=pictures["max_crops"],
            several_max_crops=pictures.get("max_multi_image_crops") if _several(pictures) else None,
            overlap_margins=tuple(pictures["overlap_margins"]),
            use_col_tokens=pictures["use_col_tokens"],
        ),
        video=VideoConfig() if frames is None else _frames(frames),
    )


def _several(pictures: dict[str, Any]) -> bool:
    """Whether a sample may have more than one picture."""
    return (pictures.get("max_images") or 1) > 1


def _pooling(pictures: dict[str, Any]) -> int:
    """The side of a window of patches; several pictures are pooled as one is."""
    side = pictures.get("pooling_h", 2)
    alike = {"pooling_w": side}
    if _several(pictures):
        alike |= {f"multi_image_pooling_{axis}": side for axis in "hw"}
        most = pictures.get("max_multi_image_crops") or 0
        if most > pictures["max_crops"]:
            raise ValueError(
                f"max_multi_image_crops is {most}; supported: at most max_crops={pictures['max_crops']}."
            )
    refuse_unknown(pictures, alike)
    return side


def _frames(said: dict[str, Any]) -> VideoConfig:
    """The frames of a video as a configuration of the reference takes them."""
    side = said["pooling_h"]
    rates = said["max_fps"] if isinstance(said["max_fps"], list) else [said["max_fps"]]
    kind, _, seconds = said["subtitle_mode"].partition("_")
    refuse_unknown(said, KNOWN["video"] | {"pooling_w": side})
    if len(rates) != 1 or kind != "frame":
        raise ValueError(
            f"max_fps is {said['max_fps']} and subtitle_mode '{said['subtitle_mode']}'; supported: one rate, "
            "and frame_ with seconds."
        )
    if not said["time_sampling"]:
        warnings.warn(
            "The model was made with time_sampling false; frames of a video are taken by their times here.",
            stacklevel=2,
        )
    return VideoConfig(
        max_frames=said["max_frames"],
        max_fps=rates[0],
        frame_sample_mode=said["frame_sample_mode"],
        pooling_size=side,
        per_frame_special_token=said["per_frame_special_token"],
        subtitle_seconds=float(seconds),
    )
