"""Model shapes as functions: the released models, smaller relatives, and the tiny ones that tests and examples use."""

import difflib
from dataclasses import replace
from functools import partial

from molmo_ds.config import (
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VideoConfig,
    VisionConfig,
)

CLIP = VisionConfig()
SIGLIP = VisionConfig(
    model_type="siglip",
    image_size=378,
    patch_size=14,
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
    feature_layers=(-3, -9),
)
# the fixed resolution of SigLIP 2 is the same module; Molmo2 takes blocks 24 and 18 and drops the two after them
SIGLIP2 = replace(SIGLIP, num_hidden_layers=25, feature_layers=(-1, -7))
DINOV2 = VisionConfig(
    model_type="dinov2",
    image_size=336,
    patch_size=14,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    num_positions=37 * 37,
    feature_layers=(-3, -9),
)
METACLIP = VisionConfig(
    model_type="clip",
    image_size=336,
    patch_size=14,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    feature_layers=(-3, -9),
)
TOWERS = {
    "clip": CLIP,
    "siglip": SIGLIP,
    "siglip2": SIGLIP2,
    "dinov2": DINOV2,
    "metaclip": METACLIP,
}


OLMO2_7B = TextConfig(
    model_type="olmo2",
    vocab_size=100278,
    embedding_size=100352,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    rope_theta=5e5,
    attention_bias=False,
    qk_norm=True,
    norm_after=True,
)
QWEN25_SMALL = TextConfig(
    vocab_size=151936,
    embedding_size=151936,
    hidden_size=1536,
    intermediate_size=8960,
    num_attention_heads=12,
    num_key_value_heads=2,
)
LLAMA31_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# under a Molmo in Ai2's later code (a fork's 6832f80), in none that was released; their config.json on the hub
LANGUAGE_MODELS = {
    "olmo2_7b": OLMO2_7B,
    "olmo2_13b": replace(
        OLMO2_7B,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
    ),
    "olmo2_32b": replace(
        OLMO2_7B,
        hidden_size=5120,
        intermediate_size=27648,
        num_hidden_layers=64,
        num_attention_heads=40,
        num_key_value_heads=8,
    ),
    "qwen2.5_1.5b": QWEN25_SMALL,
    "qwen2.5_3b": replace(
        QWEN25_SMALL,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
    ),
    "qwen2.5_7b": TextConfig(),
    "qwen2.5_14b": TextConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=48,
        num_attention_heads=40,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
    ),
    "llama3.1_8b": TextConfig(
        model_type="llama",
        vocab_size=128256,
        embedding_size=128384,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        rope_theta=5e5,
        rope_scaling=LLAMA31_SCALING,
        rms_norm_eps=1e-5,
        attention_bias=False,
    ),
}


def _molmo(text: TextConfig, vision: str = "clip") -> MolmoConfig:
    return MolmoConfig(
        text=text,
        vision=TOWERS[vision],
        connector=ConnectorConfig(),
        images=ImageConfig(resize="siglip" if vision == "siglip2" else vision),
    )


def _molmo2(text: TextConfig) -> MolmoConfig:
    return MolmoConfig(
        family="molmo2",
        text=replace(text, image_attention="image_tokens"),
        vision=SIGLIP2,
        connector=ConnectorConfig(padding_embed="none", pooling_mask=True),
        images=ImageConfig(resize="siglip", max_crops=8, legacy_image_mask=False),
        video=VideoConfig(max_frames=128, max_fps=2.0, pooling_size=3),
    )


def molmo_7b_d(vision: str = "clip") -> MolmoConfig:
    """Molmo-7B-D-0924: Qwen2-7B."""
    return _molmo(TextConfig(), vision)


def molmo_7b_o(vision: str = "clip") -> MolmoConfig:
    """Molmo-7B-O-0924: OLMo-7B-1024-preview, which has the OLMo2 layout."""
    return _molmo(OLMO2_7B, vision)


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
    return _molmo(text, vision)


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
    return _molmo(text, vision)


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
    return _molmo(text, vision)


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
    return _molmo(text, vision)


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


PRESETS = {
    f.__name__: f
    for f in (
        molmo_7b_d,
        molmo_7b_o,
        molmo_72b,
        molmoe_1b,
        molmo2_4b,
        molmo2_8b,
        molmo2_o_7b,
        qwen2_1b5,
        qwen2_0b5,
        reference_cpu,
        tiny,
        tiny_moe,
        tiny_molmo2,
        tiny_molmo2_o,
    )
}
PRESETS |= {name: partial(_molmo, text) for name, text in LANGUAGE_MODELS.items()}
ONE_TOWER = (  # made as they are
    "molmo2_4b",
    "molmo2_8b",
    "molmo2_o_7b",
    "reference_cpu",
    "tiny",
    "tiny_moe",
    "tiny_molmo2",
    "tiny_molmo2_o",
)


def get(name: str) -> MolmoConfig:
    """A preset by name, `molmo_7b_d` or with another tower `molmo_7b_d/siglip`; ValueError names those there are."""
    known = [
        *PRESETS,
        *(f"{preset}/{tower}" for preset in PRESETS if preset not in ONE_TOWER for tower in TOWERS),
    ]
    if name not in known:
        best = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"There is no preset '{name}'; the nearest one is '{best}', there are {', '.join(PRESETS)}, and after a / "
            f"the towers {', '.join(TOWERS)}."
        )
    preset, _, vision = name.partition("/")
    return PRESETS[preset](vision) if vision else PRESETS[preset]()
