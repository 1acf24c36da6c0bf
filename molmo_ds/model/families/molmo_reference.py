"""The reference's own model configuration of the first Molmo, as its training saves it: what it knows and means.

What a config.yaml leaves out has the reference's defaults, which are not those of the released models. A setting that
the reference does not know might mean another network, and is refused, as it refuses it.

Source: allenai/molmo at 793fa38, olmo/config.py, ModelConfig, VisionBackboneConfig and their update_legacy_settings.
"""

from typing import Any

SIZES = ("d_model", "n_heads", "n_layers", "vocab_size")  # that no configuration leaves out
DEFAULTS = {  # of settings that make the network, or that the network is trained with
    "n_kv_heads": None,
    "qkv_bias": False,
    "clip_qkv": None,
    "mlp_ratio": 4,
    "mlp_hidden_size": None,
    "activation_type": "swiglu",
    "block_type": "sequential",
    "rope": False,
    "rope_theta": 10_000.0,
    "vision_backbone": None,
    "attention_dropout": 0.1,
    "attention_layer_norm": False,
    "residual_dropout": 0.1,
    "response_residual_dropout": 0.0,
    "embedding_dropout": 0.1,
    "layer_norm_type": "default",
    "layer_norm_with_affine": True,
    "layer_norm_eps": None,
    "attention_layer_norm_with_affine": True,
    "max_sequence_length": 1024,
    "max_position_embeddings": None,
    "include_bias": True,
    "bias_for_layer_norm": None,
    "scale_logits": False,
    "embedding_size": 50_304,
    "additional_vocab_size": None,
    "weight_tying": True,
    "norm_after": False,
    "max_crops": 12,
    "crop_mode": "patchify-v2-and-resize-c2",
    "use_col_tokens": True,
    "overlap_margins": (4, 4),
    "pad_value": 0,
    "image_padding_embed": None,
    "vit_layers": (-1,),
    "image_pooling_h": 2,
    "image_pooling_w": 2,
    "image_pooling_2d": "attention",
    "image_projector": "mlp",
    "image_feature_dropout": 0.0,
    "initializer_range": 0.02,
    "normalize_input_embeds": False,
    "use_position_ids": True,
    "head_dim": None,
    "moe_num_experts": 8,
    "moe_top_k": 2,
    "moe_shared_expert": False,
    "moe_interleave": False,
    "moe_dropless": True,
}
TOWER = {
    "image_model_type": "openai",
    "image_default_input_size": (336, 336),
    "image_patch_size": 14,
    "image_emb_dim": 1024,
    "image_num_heads": 16,
    "image_num_layers": 24,
    "image_mlp_dim": 4096,
    "image_mlp_activations": "gelu",
    "image_num_pos": 577,
    "image_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "initializer_range": 0.02,
    "resize_mode": "default",
}
# that say nothing of the network: how it is made, run, sharded, asked or trained
OTHERS = [
    "block_group_size",
    "rope_full_precision",
    "vit_load_path",
    "llm_load_path",
    "low_cpu_fsdp",
    "attention_type",
    "float32_attention",
    "new_embedding_init_range",
    "init_device",
    "init_fn",
    "init_std",
    "init_cutoff_factor",
    "precision",
    "prompt_type",
    "system_prompt_kind",
    "message_formatting",
    "always_start_with_space",
    "multi_annotation_weighting",
    "default_inference_len",
    "fix_image_padding",
    "tokenizer",
    "pad_tokenizer",
    "moe_mlp_impl",
    "moe_log_expert_assignment",
    "moe_lbl_in_fp32",
    "moe_loss_weight",
    "moe_zloss_weight",
    "moe_capacity_factor",
    "flash_attention",
    "query_pre_attn_scalar",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "loss_token_weighting",
    "alibi_bias_max",
]
OTHERS_OF_TOWER = [
    "image_pos_patch_size",
    "image_num_key_value_heads",
    "image_head_dim",
    "image_dropout_rate",
    "fsdp_wrap",
    "fix_image_mask",
]
EARLIER = {  # settings of earlier versions, and the one value with which they mean the same network
    "prompt_override": None,
    "response_attention_dropout": 0,
    "alibi": False,
    "rope_impl": "llama",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "image_padding_mask": False,
    "multi_query_attention": None,
    "do_random_scale": False,
    "fix_image_input_idx": 2,
    "unconditioned": False,
    "use_cls_feature": False,
    "pad_to": None,
    "gin_bindings": None,
}


def whole(values: dict[str, Any]) -> dict[str, Any]:
    """The `model` part of a config.yaml with all that it leaves out; ValueError for what the reference refuses.

    What is no model's configuration is given back as it is.
    """
    if "d_model" not in values:
        return values
    for name, value in EARLIER.items():
        given = values.get(name, value)
        if given != value and (given or value):  # null, false and nothing are one
            raise ValueError(f"{name} is '{given}', which no Molmo uses; supported: {value}.")
    _refuse_others(values, {*SIZES, *DEFAULTS, *OTHERS, *EARLIER})
    tower = values.get("vision_backbone")
    if isinstance(tower, dict):
        _refuse_others(tower, {*TOWER, *OTHERS_OF_TOWER})
        tower = TOWER | tower
    for name in ("rope", "include_bias"):
        if name not in values:
            raise ValueError(
                f"The configuration leaves out {name}, which then is {DEFAULTS[name]}, and no Molmo uses that; give it."
            )
    made = DEFAULTS | values | {"vision_backbone": tower}
    if made["block_type"] == "moe" and made["moe_dropless"] is False:
        raise ValueError(
            "moe_dropless is 'False', so that experts leave out tokens, which no Molmo does; supported: True."
        )
    return made


def _refuse_others(values: dict[str, Any], known: set[str]) -> None:
    for name, value in values.items():
        if name not in known and value is not None and value is not False:
            raise ValueError(
                f"{name} is '{value}', a setting that allenai/molmo at 793fa38 does not know and that may mean another"
                " network; take it out if it does not."
            )
