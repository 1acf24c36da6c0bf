"""Tiny models of every kind, and what the hub tests do with them."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from molmo_ds.config import ConnectorConfig, ImageConfig, MolmoConfig, TextConfig, VisionConfig
from molmo_ds.hub.load import write_weights
from molmo_ds.model.molmo import Molmo

TEXTS = {
    "qwen2": TextConfig("qwen2", 512, 512, 128, 32, 44, 2, 4, 2, max_position_embeddings=512, rope_theta=1e4),
    "olmo2": TextConfig(
        "olmo2", 500, 512, 128, 32, 44, 2, 4, 4, attention_bias=False, qk_norm=True, norm_after=True, rope_theta=5e5
    ),
    "olmoe": TextConfig(
        "olmoe", 500, 512, 128, 32, 16, 2, 4, 4,
        attention_bias=False, qk_norm=True, num_experts=6, num_experts_per_tok=2, rms_norm_eps=1e-5, rope_theta=1e4,
    ),
    "llama": TextConfig("llama", 512, 512, 128, 32, 44, 2, 4, 2, attention_bias=False, rms_norm_eps=1e-5),
    "olmo": TextConfig(
        "olmo", 500, 512, 128, 32, 44, 2, 4, 4, norm_type="layer", attention_bias=False, clip_qkv=0.5, rope_theta=1e4
    ),
}  # fmt: skip
TOWERS = {
    "clip": VisionConfig("clip", 84, 14, 32, 64, 3, 2, feature_layers=(-1, -2)),
    "siglip": VisionConfig("siglip", 98, 14, 32, 64, 3, 2, "gelu_pytorch_tanh", 1e-6, feature_layers=(-1, -3)),
    "dinov2": VisionConfig("dinov2", 84, 14, 32, 64, 3, 2, "gelu", 1e-6, num_positions=81, feature_layers=(-1, -3)),
}


def tiny(text: str = "qwen2", tower: str = "clip", connector: ConnectorConfig | None = None) -> MolmoConfig:
    """A model of one text and one vision family; towers have 6 x 6 or, SigLIP, 7 x 7 patches per crop."""
    images = ImageConfig(max_crops=4, overlap_margins=(2, 2), resize=tower, exact=True)
    return MolmoConfig(TEXTS[text], TOWERS[tower], connector or ConnectorConfig(), images)


def random_state(config: MolmoConfig, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of a model, all of them random, norms included, so that nothing can be swapped unnoticed.

    Matrices are small enough for float32 to hold logits to 5e-6; with twice the size rounding alone makes 5e-5.
    """
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Molmo(config).named_parameters()}
    source = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=source) * (0.1 if len(shape) > 1 else 0.2)
        + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, shape in shapes.items()
    }


def model_of(config: MolmoConfig, state: dict[str, Tensor]) -> Molmo:
    """A model with these weights, in float32."""
    model = Molmo(config)
    model.load_state_dict(state)
    return model.eval()


def weights_folder(out: Path, config: MolmoConfig, state: dict[str, Tensor], tokenizer: Path | None = None) -> Path:
    """A weights folder as conversion writes it."""
    write_weights(out, config, iter(state.items()), tokenizer, len(state))
    return out


def in_bytes(config: MolmoConfig) -> MolmoConfig:
    """The same model with pictures as bytes."""
    return replace(config, images=replace(config.images, exact=False))
