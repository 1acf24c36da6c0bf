"""The reference's configurations, weights and batches, turned into ours."""

from functools import cache
from typing import Any

import torch
import yaml
from golden_files import need, read_json, read_tensors
from torch import Tensor

from molmo_ds.architecture import (
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VisionConfig,
)
from molmo_ds.batch import Batch, learnt_rows_of, windows_of
from molmo_ds.model.families import molmo_names
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights import rename

PREFIX = 10000  # the reference's subsegment id of BOS and images
TOWERS = {"openai": "clip", "siglip": "siglip", "dino": "dinov2"}
RESIZE = {"default": "clip", "siglip": "siglip", "dino": "dinov2", "metaclip": "metaclip"}


def vision_config(reference: dict[str, Any], feature_layers: list[int]) -> VisionConfig:
    """A `vision_backbone` section of the reference."""
    kind = TOWERS[reference["image_model_type"]]
    return VisionConfig(
        model_type=kind,
        image_size=reference["image_default_input_size"][0],
        patch_size=reference["image_patch_size"],
        hidden_size=reference["image_emb_dim"],
        intermediate_size=reference["image_mlp_dim"],
        num_hidden_layers=reference["image_num_layers"],
        num_attention_heads=reference["image_num_heads"],
        hidden_act=reference["image_mlp_activations"],
        layer_norm_eps=reference["image_norm_eps"],
        num_positions=reference["image_num_pos"] - (kind != "siglip"),
        feature_layers=tuple(feature_layers),
    )


def model_config(reference: dict[str, Any]) -> MolmoConfig:
    """The `model` section of a reference configuration."""
    moe = reference["block_type"] == "moe"
    width = reference["d_model"]
    fused = reference["mlp_hidden_size"] or reference["mlp_ratio"] * width
    kind = "qwen2" if reference["qkv_bias"] else "olmo2" if reference["norm_after"] else "llama"
    text = TextConfig(
        model_type="olmoe" if moe else kind,
        vocab_size=reference["vocab_size"],
        embedding_size=reference["embedding_size"] or reference["vocab_size"],
        additional_vocab_size=reference["additional_vocab_size"],
        hidden_size=width,
        intermediate_size=fused // 2,
        num_hidden_layers=reference["n_layers"],
        num_attention_heads=reference["n_heads"],
        num_key_value_heads=reference["n_kv_heads"] or reference["n_heads"],
        rope_theta=float(reference["rope_theta"]),
        norm_type="rms" if reference["layer_norm_type"] == "rms" else "layer",
        rms_norm_eps=reference["layer_norm_eps"] or 1e-5,
        attention_bias=reference["qkv_bias"],
        qk_norm=reference["attention_layer_norm"],
        norm_after=reference["norm_after"],
        clip_qkv=reference["clip_qkv"],
        num_experts=reference["moe_num_experts"] if moe else 0,
        num_experts_per_tok=reference["moe_top_k"] if moe else 0,
        max_position_embeddings=reference["max_position_embeddings"]
        or reference["max_sequence_length"],
        tie_word_embeddings=reference["weight_tying"],
    )
    connector = ConnectorConfig(
        pooling=reference["image_pooling_2d"],
        pooling_size=reference["image_pooling_h"],
        projector=reference["image_projector"],
        padding_embed=reference["image_padding_embed"] or "none",
    )
    # its experts are as wide as the model, the reference's fused width halves that for the connector
    if moe:
        text = TextConfig(
            **{**vars(text), "intermediate_size": reference["mlp_ratio"] * width // 2}
        )
    images = ImageConfig(
        crop_mode=reference["crop_mode"],
        max_crops=reference["max_crops"],
        overlap_margins=tuple(reference["overlap_margins"]),
        resize=RESIZE[reference["vision_backbone"]["resize_mode"]],
        pad_value=float(reference["pad_value"]),
        use_col_tokens=reference["use_col_tokens"],
        exact=True,
    )
    return MolmoConfig(
        text=text,
        vision=vision_config(reference["vision_backbone"], reference["vit_layers"]),
        connector=connector,
        images=images,
    )


@cache
def read_config(kind: str) -> MolmoConfig:
    """A_model/KIND/config.yaml."""
    return model_config(yaml.safe_load(need(f"A_model/{kind}/config.yaml").read_text())["model"])


def load_model(kind: str, **arguments: Any) -> Molmo:
    """The golden model in eval mode; every weight of the file is used and none is missing."""
    config = read_config(kind)
    state = read_tensors(f"A_model/{kind}/state_dict.safetensors")
    table = molmo_names.detect(config, state)
    assert {key for rule in table for key in rule.theirs} == set(state)
    model = Molmo(config, **arguments)
    model.load_state_dict(dict(rename.to_ours(table, state.__getitem__)), strict=True)
    return model.eval()


def to_reference(kind: str, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names (weights or gradients) under the reference's, in its layout."""
    config = read_config(kind)
    keys = read_tensors(f"A_model/{kind}/state_dict.safetensors")
    return dict(rename.to_theirs(molmo_names.detect(config, keys), ours.__getitem__))


def real_crops(images: Tensor) -> Tensor:
    """bool [B, crops]: the collator pads with crops of -1."""
    return (images != -1).flatten(2).any(-1)


def to_batch(config: MolmoConfig, tensors: dict[str, Tensor], images: Tensor) -> Batch:
    """A padded batch of the reference (`in.*`, pad value -1 everywhere; images [B, crops, P, pixels]) as ours."""
    ids = tensors["in.input_ids"]
    valid = ids != -1
    real = real_crops(images)
    branches = torch.zeros_like(ids)
    if "in.subsegment_ids" in tensors:
        subsegments = tensors["in.subsegment_ids"]
        branches = torch.where(valid & (subsegments != PREFIX), subsegments, 0)
    index = tensors["in.image_input_idx"]
    flat = index + torch.arange(len(ids))[:, None, None] * ids.shape[1]
    weights = tensors["in.loss_masks"].clamp(min=0)
    grid = config.vision.image_size // config.vision.patch_size
    return Batch(
        input_ids=ids.clamp(min=0),
        labels=tensors["in.labels"].clamp(min=0),
        loss_weights=weights,
        position_ids=tensors["in.position_ids"].clamp(min=0),
        document_ids=valid.int(),
        branch_ids=branches.int(),
        images=images[real],
        image_masks=tensors["in.image_masks"][real],
        windows=windows_of(int(real.sum()), grid, config.connector.pooling_size),
        image_positions=torch.where(index < 0, -1, flat)[real].flatten(),
        learnt_rows=learnt_rows_of(weights),
    )


def column_step(words: int, columns: int) -> int:
    """Every how many of `words` logits a golden of `columns` columns holds: 32, or the power of 2 that fits."""
    fitting = [
        step for step in (32, *(2**n for n in range(12))) if len(range(0, words, step)) == columns
    ]
    assert fitting, f"no step gives {columns} of {words} columns"
    return fitting[0]


def read_batch(kind: str, name: str) -> tuple[Batch, dict[str, Tensor], dict[str, Any]]:
    """(batch, the file's tensors, its entry in meta.json)."""
    tensors = read_tensors(f"A_model/{kind}/batch_{name}.safetensors")
    images = read_tensors(f"A_model/{kind}/images.safetensors")["in.images"]
    return (
        to_batch(read_config(kind), tensors, images),
        tensors,
        read_json(f"A_model/{kind}/meta.json")["batches"][name],
    )
