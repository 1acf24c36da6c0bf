"""Configurations of the reference that mean another network than ours are refused, not read as ours."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from molmo_ds.architecture import VideoConfig
from molmo_ds.config import PromptConfig
from molmo_ds.hub import load
from molmo_ds.hub.reference_prompts import prompts
from molmo_ds.model.families import molmo, molmo2
from molmo_ds.weights.released_config import FAMILY

TOWER = {
    "image_model_type": "siglip",
    "image_default_input_size": [98, 98],
    "image_patch_size": 14,
    "image_emb_dim": 32,
    "image_num_heads": 2,
    "image_num_layers": 3,
    "image_mlp_dim": 64,
    "image_num_pos": 49,
    "image_norm_eps": 1e-6,
    "image_mlp_activations": "gelu_pytorch_tanh",
    "resize_mode": "siglip",
}
MODEL = {
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "mlp_hidden_size": 88,
    "vocab_size": 512,
    "vision_backbone": TOWER,
    "rope": True,
    "use_position_ids": True,
    "image_pooling_h": 2,
    "image_pooling_w": 2,
    "include_bias": False,
    "layer_norm_type": "rms",
    "crop_mode": "resize",
}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rope": False}, "rope"),
        ({"use_position_ids": False}, "use_position_ids"),
        ({"image_pooling_w": 1}, "image_pooling_w"),
        ({"vision_backbone": TOWER | {"image_default_input_size": [98, 196]}}, "98 x 196"),
        ({"vision_backbone": TOWER | {"resize_mode": "torch-rng"}}, "torch-rng"),
    ],
)
def test_another_network_is_refused(changes: dict[str, Any], word: str) -> None:
    molmo.from_reference(MODEL)
    with pytest.raises(ValueError, match=rf"^[^\n]*{word}[^\n]*\.$"):
        molmo.from_reference(MODEL | changes)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"rope_impl": "interleave"}, "rope_impl"),
        ({"rope_factor": 8.0}, "rope_factor"),
        ({"vision_backbone": TOWER | {"image_registers": 4}}, "image_registers"),
        ({"block_type": "moe", "moe_dropless": False}, "moe_dropless"),
        ({"include_bias": None}, "include_bias"),
    ],
)
def test_a_setting_that_the_reference_refuses_or_that_is_not_its_own_is_refused(
    changes: dict[str, Any], word: str, tmp_path: Path
) -> None:
    usual = MODEL | {"activation_type": "llama_swiglu", "gin_bindings": [], "rope_impl": "llama"}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"model": usual}))
    load.of_reference(file)
    left = {name: value for name, value in (usual | changes).items() if value is not None}
    file.write_text(yaml.safe_dump({"model": left}))
    with pytest.raises(ValueError, match=rf"^[^\n]*{word}[^\n]*\.$"):
        load.of_reference(file)


def test_what_a_configuration_of_the_reference_leaves_out_has_the_references_default(
    tmp_path: Path,
) -> None:
    """Not that of the released models: allenai/molmo 793fa38, olmo/config.py."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"model": MODEL | {"embedding_size": 512}}))
    made, _ = load.of_reference(file)
    assert made.connector.pooling == "attention" and made.connector.padding_embed == "none"
    assert made.vision.feature_layers == (-1,) and made.text.tie_word_embeddings
    assert made.text.max_position_embeddings == 1024 and made.text.residual_dropout == 0.1


MOLMO2 = {
    "bi_directional_attn": "image_tokens",
    "llm": {
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 2,
        "n_layers": 2,
        "mlp_hidden_size": 88,
        "vocab_size": 512,
        "rope": True,
        "rope_theta": 1e6,
        "attention_layer_norm": True,
        "attention_layer_norm_type": "qwen3",
        "layer_norm_type": "rms",
        "layer_norm_eps": 1e-6,
        "max_sequence_length": 256,
        "clip_qkv": None,
    },
    "vision_backbone": {
        "vit": TOWER | {"image_head_dim": 16, "image_num_key_value_heads": 2},
        "pooling_attention_mask": True,
        "vit_layers": [-1],
        "use_deepstack": False,
    },
    "mm_preprocessor": {
        "image": {
            "crop_mode": "overlap-and-resize-c2",
            "max_crops": 6,
            "overlap_margins": [1, 2],
            "use_col_tokens": False,
            "pooling_h": 3,
            "pooling_w": 3,
            "max_images": None,
            "max_multi_image_crops": 4,  # of one picture in a sample
            "use_single_crop_col_tokens": False,
            "use_single_crop_start_token": True,
        },
        "video": {
            "max_frames": 24,
            "frame_sample_mode": "uniform_last_frame",
            "max_fps": [4],
            "time_sampling": True,
            "time_mode": "per-frame-compact",
            "subtitle_mode": "frame_2",
            "pooling_h": 4,
            "pooling_w": 4,
            "use_frame_special_tokens": True,
            "per_frame_special_token": False,
            "max_subtitle_tokens": None,
        },
    },
}
HEMOLMO = MOLMO2 | {
    "shared_low_high_embedding": True,
    "mm_preprocessor": {
        "crop_mode": "overlap-and-resize-c2",
        "max_crops": 6,
        "overlap_margins": [1, 2],
        "use_col_tokens": False,
        "num_high_res_features": 7,
        "image_pooling_h": 2,
        "image_pooling_w": 2,
        "low_res_from_low": 2,
    },
    "token_scorer": {
        "selection_model": "linear",
        "normalize_importance_scores": True,
        "four_scores_per_low_res_patch": True,
        "source": "all_layers",
        "low_res_features_drop": 0.0,
        "bp_low_res_end": -1,
        "bp_low_res_start": 0,
        "bp_patch_prior": False,
        "bp_low_res_embed": False,
        "high_res_patch_prior": True,
        "high_res_patch_prior_drop": 0.0,
        "unconditioned": False,
        "n_low_res_layers": None,
        "attention_scaling": None,
        "vector_query": None,
        "vector_query_scaling": None,
        "importance_norm": True,
    },
    "token_selector": {
        "hard": False,
        "noise": 0.0,
        "loss_weight": 0.01,
        "target_scale": 0.7,
        "loss_pow": 1,
        "dropout": 0,
        "loss": "batch-mean",
        "scale_at_test": False,
        "rescale": 1,
        "offset": 0.2,
    },
}


def changed(values: dict[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy with another value at a place."""
    if len(keys) > 1:
        value = changed(values.get(keys[0], {}), keys[1:], value)
    return values | {keys[0]: value}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("llm.clip_qkv", 0.5),
        ("llm.can_predict_extra_tokens", True),
        ("llm.rope_mscale", 1.0),
        ("llm.layer_norm_type", "default"),
        ("llm.attention_dropout", 1.5),  # a value that is no share is named, too
        ("vision_backbone.use_deepstack", True),
        ("vision_backbone.image_pooling_2d", "stack"),
        ("vision_backbone.image_padding_embed", "pad_embed"),
        ("vision_backbone.vit.image_model_type", "openai"),
        ("vision_backbone.vit.normalize", "openai"),
        ("vision_backbone.vit.residual_dropout", 0.1),
        ("vision_backbone.vit.image_head_dim", 8),
        ("mm_preprocessor.image.crop_mode", "resize"),
        ("mm_preprocessor.image.pooling_w", 2),
        ("mm_preprocessor.image.use_single_crop_col_tokens", True),
        ("mm_preprocessor.image.use_single_crop_start_token", False),
        ("mm_preprocessor.video.pooling_w", 3),
        ("mm_preprocessor.video.time_mode", "per-frame"),
        ("mm_preprocessor.video.max_fps", [2, 4]),
        ("mm_preprocessor.video.subtitle_mode", "truncate_100"),
        ("mm_preprocessor.video.use_frame_special_tokens", False),
    ],
)
def test_another_molmo2_is_refused(place: str, value: Any) -> None:
    name = place.rpartition(".")[2]
    with pytest.raises(ValueError, match=rf"(?s){name}.*\.$"):
        molmo.from_reference(changed(MOLMO2, place.split("."), value))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("shared_low_high_embedding", False),
        ("llm.scale_logits", True),
        ("mm_preprocessor.crop_mode", "resize"),
        ("mm_preprocessor.image_pooling_w", 3),
        ("mm_preprocessor.low_res_from_low", 3),
        ("mm_preprocessor.low_res_from_high", 2),
        ("token_scorer.selection_model", "random"),
        ("token_scorer.source", "last_layer"),
        ("token_scorer.high_res_patch_prior", False),
        ("token_scorer.unconditioned", True),
        ("token_scorer.vector_query", "from_the_start"),
        ("token_scorer.low_to_high_interpolation_factor", 3),
        ("token_scorer.learned_rescaling", "bias"),
        ("token_selector.hard", True),
        ("token_selector.noise", 0.1),
        ("token_selector.loss", "sum"),
        ("token_selector.attention_scaling", 0.5),
    ],
)
def test_another_hemolmo_is_refused(place: str, value: Any) -> None:
    name = place.rpartition(".")[2]
    with pytest.raises(ValueError, match=rf"{name}.*\.$"):
        molmo.from_reference(changed(HEMOLMO, place.split("."), value))


def test_pictures_and_frames_are_read() -> None:
    """Column tokens, windows and frames decide the tokens of a prompt; two columns of one picture are one place."""
    made = molmo.from_reference(MOLMO2)
    assert (made.images.max_crops, made.images.overlap_margins) == (6, (1, 2))
    assert not made.images.use_col_tokens and made.connector.pooling_size == 3
    assert made.video == VideoConfig(
        max_frames=24,
        max_fps=4.0,
        pooling_size=4,
        per_frame_special_token=False,
        subtitle_seconds=2.0,
    )
    # the released format cannot say it
    assert "around each frame" in molmo2.not_servable(made)
    assert molmo2.not_servable(replace(made, video=molmo2.VIDEO)) is None
    columns = ["mm_preprocessor", "image", "use_col_tokens"]
    assert molmo.from_reference(changed(MOLMO2, columns, True)).images.use_col_tokens
    several = changed(MOLMO2, ["mm_preprocessor", "image", "max_images"], 5)
    made = molmo.from_reference(several)  # 4 crops where a single picture has 6
    assert (made.images.max_crops, made.images.several_max_crops) == (6, 4)
    assert "one of several pictures" in molmo2.not_servable(replace(made, video=molmo2.VIDEO))
    with pytest.raises(ValueError, match="max_multi_image_crops is 7; supported: at most"):
        molmo.from_reference(
            changed(several, ["mm_preprocessor", "image", "max_multi_image_crops"], 7)
        )
    pooled = changed(several, ["mm_preprocessor", "image", "multi_image_pooling_h"], 2)
    with pytest.raises(ValueError, match="multi_image_pooling_h"):
        molmo.from_reference(pooled)
    by_index = changed(MOLMO2, ["mm_preprocessor", "video", "time_sampling"], False)
    with pytest.warns(UserWarning, match="by their times here"):
        molmo.from_reference(by_index)


def test_hemolmo_reads_its_column_tokens() -> None:
    made = molmo.from_reference(HEMOLMO)
    assert made.selection.picks == 7 and not made.images.use_col_tokens
    columns = ["mm_preprocessor", "use_col_tokens"]
    assert molmo.from_reference(changed(HEMOLMO, columns, True)).images.use_col_tokens


def test_how_a_checkpoint_is_asked() -> None:
    said = {"prompt_type": "none", "message_formatting": "none", "default_inference_len": None}
    assert prompts(MODEL | said, "molmo") == PromptConfig(
        prompt_templates="none", message_format="none", default_inference_len=None
    )
    assert prompts(MODEL, "molmo") == FAMILY["molmo"]
    formatter = {"message_format": "qwen3", "system_prompt": None, "pointing_format": "default"}
    made = prompts(MOLMO2 | {"data_formatter": formatter}, "molmo2")
    assert made == replace(FAMILY["molmo2"], system_prompt="none", pointing_format="percent")
    assert made.message_format == "chat"
    with pytest.warns(UserWarning, match="'mistral', which is not known here.* with 'chat'"):
        unknown = {"data_formatter": {"message_format": "mistral"}}
        assert prompts(MOLMO2 | unknown, "molmo2") == FAMILY["molmo2"]


def test_no_layers_are_the_last_block() -> None:
    assert molmo.from_reference(MODEL | {"vit_layers": None}).vision.feature_layers == (-1,)
    assert molmo.from_reference(MODEL).vision.feature_layers == (-3, -9)
