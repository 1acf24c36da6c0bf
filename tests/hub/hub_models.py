"""Tiny models of every kind, and what the hub tests do with them."""

from dataclasses import replace

from torch import Tensor

from molmo_ds.architecture import (
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VisionConfig,
)
from molmo_ds.model.molmo import Molmo

TEXTS = {
    "qwen2": TextConfig(
        model_type="qwen2",
        vocab_size=512,
        embedding_size=512,
        additional_vocab_size=128,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_theta=1e4,
    ),
    "olmo2": TextConfig(
        model_type="olmo2",
        vocab_size=500,
        embedding_size=512,
        additional_vocab_size=128,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        attention_bias=False,
        qk_norm=True,
        norm_after=True,
        rope_theta=5e5,
    ),
    "olmoe": TextConfig(
        model_type="olmoe",
        vocab_size=500,
        embedding_size=512,
        additional_vocab_size=128,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        attention_bias=False,
        qk_norm=True,
        num_experts=6,
        num_experts_per_tok=2,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
    ),
    "llama": TextConfig(
        model_type="llama",
        vocab_size=512,
        embedding_size=512,
        additional_vocab_size=128,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=False,
        rms_norm_eps=1e-5,
    ),
    "olmo": TextConfig(
        model_type="olmo",
        vocab_size=500,
        embedding_size=512,
        additional_vocab_size=128,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        norm_type="layer",
        attention_bias=False,
        clip_qkv=0.5,
        rope_theta=1e4,
    ),
}
TOWERS = {
    "clip": VisionConfig(
        model_type="clip",
        image_size=84,
        patch_size=14,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        feature_layers=(-1, -2),
    ),
    "siglip": VisionConfig(
        model_type="siglip",
        image_size=98,
        patch_size=14,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        feature_layers=(-1, -3),
    ),
    "dinov2": VisionConfig(
        model_type="dinov2",
        image_size=84,
        patch_size=14,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        num_positions=81,
        feature_layers=(-1, -3),
    ),
}


def tiny(
    text: str = "qwen2", tower: str = "clip", connector: ConnectorConfig | None = None
) -> MolmoConfig:
    """A model of one text and one vision family; towers have 6 x 6 or, SigLIP, 7 x 7 patches per crop."""
    images = ImageConfig(max_crops=4, overlap_margins=(2, 2), resize=tower, exact=True)
    return MolmoConfig(
        text=TEXTS[text],
        vision=TOWERS[tower],
        connector=connector or ConnectorConfig(),
        images=images,
    )


def model_of(config: MolmoConfig, state: dict[str, Tensor]) -> Molmo:
    """A model with these weights, in float32."""
    model = Molmo(config)
    model.load_state_dict(state)
    return model.eval()


def in_bytes(config: MolmoConfig) -> MolmoConfig:
    """The same model with pictures as bytes."""
    return replace(config, images=replace(config.images, exact=False))
