"""The released Molmo models, and smaller relatives."""

from molmo_ds.architecture import ConnectorConfig, ImageConfig, MolmoConfig, TextConfig
from molmo_ds.presets.language_models import OLMO2_7B
from molmo_ds.presets.towers import TOWERS


def with_tower(text: TextConfig, vision: str = "clip") -> MolmoConfig:
    """A language model under a tower, joined as the released models are."""
    return MolmoConfig(
        text=text,
        vision=TOWERS[vision],
        connector=ConnectorConfig(),
        images=ImageConfig(resize="siglip" if vision == "siglip2" else vision),
    )


def molmo_7b_d(vision: str = "clip") -> MolmoConfig:
    """Molmo-7B-D-0924: Qwen2-7B."""
    return with_tower(TextConfig(), vision)


def molmo_7b_o(vision: str = "clip") -> MolmoConfig:
    """Molmo-7B-O-0924: OLMo-7B-1024-preview, which has the OLMo2 layout."""
    return with_tower(OLMO2_7B, vision)


def molmo_72b(vision: str = "clip") -> MolmoConfig:
    """Molmo-72B-0924: Qwen2-72B."""
    text = TextConfig(
        model_type="qwen2",
        vocab_size=152064,
        embedding_size=152064,
        additional_vocab_size=128,
        hidden_size=8192,
        intermediate_size=29568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
    )
    return with_tower(text, vision)


def molmoe_1b(vision: str = "clip") -> MolmoConfig:
    """MolmoE-1B-0924: OLMoE with 64 experts, top 8; the only 1B of the family that was released."""
    text = TextConfig(
        model_type="olmoe",
        vocab_size=50280,
        embedding_size=50304,
        additional_vocab_size=128,
        hidden_size=2048,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
        attention_bias=False,
        qk_norm=True,
        num_experts=64,
        num_experts_per_tok=8,
    )
    return with_tower(text, vision)


def qwen2_1b5(vision: str = "clip") -> MolmoConfig:
    """A small-budget relative on Qwen2-1.5B (never released as a Molmo)."""
    text = TextConfig(
        model_type="qwen2",
        vocab_size=151936,
        embedding_size=151936,
        additional_vocab_size=128,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
    )
    return with_tower(text, vision)


def qwen2_0b5(vision: str = "clip") -> MolmoConfig:
    """A small-budget relative on Qwen2-0.5B (never released as a Molmo)."""
    text = TextConfig(
        model_type="qwen2",
        vocab_size=151936,
        embedding_size=151936,
        additional_vocab_size=128,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
    )
    return with_tower(text, vision)
