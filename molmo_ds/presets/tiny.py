"""Models for tests, examples and measurements, which train on a CPU."""

from dataclasses import replace

from molmo_ds.architecture import (
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VisionConfig,
)
from molmo_ds.presets.molmo2 import molmo2_8b, molmo2_o_7b


def tiny() -> MolmoConfig:
    """1.6 M parameters: trains from scratch on two CPU cores in minutes; the quickstart's model."""
    return MolmoConfig(
        text=TextConfig(
            model_type="qwen2",
            vocab_size=512,
            embedding_size=512,
            additional_vocab_size=128,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            rope_theta=1e4,
            initializer_range=0.06,
        ),
        vision=VisionConfig(
            model_type="clip",
            image_size=56,
            patch_size=14,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            feature_layers=(-1, -2),
            initializer_range=0.06,
        ),
        connector=ConnectorConfig(initializer_range=0.06),
        images=ImageConfig(crop_mode="resize", max_crops=1, overlap_margins=(1, 1)),
    )


def reference_cpu() -> MolmoConfig:
    """11.5 M parameters: the model whose training step was timed with the reference implementation on a CPU."""
    return MolmoConfig(
        text=TextConfig(
            model_type="qwen2",
            vocab_size=8192,
            embedding_size=8192,
            additional_vocab_size=128,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=1024,
        ),
        vision=VisionConfig(
            model_type="clip",
            image_size=336,
            patch_size=14,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            feature_layers=(-2, -3),
        ),
    )


def tiny_moe() -> MolmoConfig:
    """`tiny` with 8 experts, top 2, in the OLMoE layout."""
    text = replace(
        tiny().text,
        model_type="olmoe",
        num_experts=8,
        num_experts_per_tok=2,
        intermediate_size=64,
        num_key_value_heads=4,
        attention_bias=False,
        qk_norm=True,
    )
    return replace(tiny(), text=text)


def _tiny_molmo2(text: TextConfig) -> MolmoConfig:
    base = molmo2_8b()
    vision = replace(
        base.vision,
        image_size=56,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        feature_layers=(-1, -3),
        initializer_range=0.06,
    )
    connector = replace(base.connector, initializer_range=0.06)
    images = replace(base.images, max_crops=4, overlap_margins=(1, 1))
    return replace(base, text=text, vision=vision, connector=connector, images=images)


def tiny_molmo2() -> MolmoConfig:
    """`tiny` in the shape of Molmo2-8B: a head wider than its share, each normalised by itself."""
    text = replace(
        tiny().text,
        model_type="qwen3",
        head_dim=48,
        attention_bias=False,
        qk_norm=True,
        qk_norm_per_head=True,
        image_attention="image_tokens",
        max_position_embeddings=4096,
    )
    return _tiny_molmo2(text)


def tiny_molmo2_o() -> MolmoConfig:
    """`tiny` in the shape of Molmo2-O-7B: norms after the branches, YaRN in every second layer."""
    yarn = molmo2_o_7b().text.rope_scaling
    text = replace(
        tiny().text,
        model_type="olmo3",
        num_hidden_layers=4,
        num_key_value_heads=4,
        rope_scaling=yarn | {"original_max_position_embeddings": 512},
        rope_scaling_layers=(1, 3),
        attention_bias=False,
        qk_norm=True,
        norm_after=True,
        image_attention="image_tokens",
        max_position_embeddings=4096,
    )
    return _tiny_molmo2(text)
