"""The released Molmo2 models."""

from dataclasses import replace

from molmo_ds.architecture import ConnectorConfig, ImageConfig, MolmoConfig, TextConfig, VideoConfig
from molmo_ds.presets.towers import SIGLIP2

# a released model's frames of a video: allenai/molmo2 f3cb108, launch_scripts/sft.py
VIDEO = VideoConfig(max_frames=128, max_fps=2.0, pooling_size=3)


def _molmo2(text: TextConfig) -> MolmoConfig:
    return MolmoConfig(
        family="molmo2",
        text=replace(text, image_attention="image_tokens"),
        vision=SIGLIP2,
        connector=ConnectorConfig(padding_embed="none", pooling_mask=True),
        images=ImageConfig(
            resize="siglip", max_crops=8, several_max_crops=8, legacy_image_mask=False
        ),
        video=VIDEO,
    )


def molmo2_4b() -> MolmoConfig:
    """Molmo2-4B: Qwen3-4B-Instruct-2507, whose head is tied while it trains."""
    text = TextConfig(
        model_type="qwen3",
        vocab_size=151936,
        embedding_size=151936,
        additional_vocab_size=128,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rope_theta=5e6,
        attention_bias=False,
        qk_norm=True,
        qk_norm_per_head=True,
        max_position_embeddings=36864,
        tie_word_embeddings=True,
    )
    return _molmo2(text)


def molmo2_8b() -> MolmoConfig:
    """Molmo2-8B: Qwen3-8B."""
    text = TextConfig(
        model_type="qwen3",
        vocab_size=151936,
        embedding_size=151936,
        additional_vocab_size=128,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        rope_theta=1e6,
        attention_bias=False,
        qk_norm=True,
        qk_norm_per_head=True,
        max_position_embeddings=36864,
    )
    return _molmo2(text)


def molmo2_o_7b() -> MolmoConfig:
    """Molmo2-O-7B: Olmo-3-7B-Instruct, without its sliding windows."""
    text = TextConfig(
        model_type="olmo3",
        vocab_size=100278,
        embedding_size=100278,
        additional_vocab_size=128,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        rope_theta=5e5,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 8.0,
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32,
            "beta_slow": 1,
            "original_max_position_embeddings": 8192,
        },
        rope_scaling_layers=tuple(range(3, 32, 4)),
        attention_bias=False,
        qk_norm=True,
        norm_after=True,
        max_position_embeddings=65536,
    )
    return _molmo2(text)
