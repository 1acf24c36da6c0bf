"""Model shapes as functions: the released models, smaller relatives, and the tiny ones that tests and examples use."""

from dataclasses import replace

from molmo_ds.config import ConnectorConfig, ImageConfig, MolmoConfig, TextConfig, VisionConfig

CLIP = VisionConfig()
SIGLIP = VisionConfig("siglip", 378, 14, 1152, 4304, 27, 16, "gelu_pytorch_tanh", 1e-6, feature_layers=(-3, -9))
DINOV2 = VisionConfig(
    "dinov2", 336, 14, 1024, 4096, 24, 16, "gelu", 1e-6, num_positions=37 * 37, feature_layers=(-3, -9)
)
METACLIP = VisionConfig("clip", 336, 14, 1024, 4096, 24, 16, "quick_gelu", 1e-5, feature_layers=(-3, -9))
TOWERS = {"clip": CLIP, "siglip": SIGLIP, "dinov2": DINOV2, "metaclip": METACLIP}


def _molmo(text: TextConfig, vision: str) -> MolmoConfig:
    return MolmoConfig(text, TOWERS[vision], ConnectorConfig(), ImageConfig(resize=vision))


def molmo_7b_d(vision: str = "clip") -> MolmoConfig:
    """Molmo-7B-D-0924: Qwen2-7B."""
    return _molmo(TextConfig(), vision)


def molmo_7b_o(vision: str = "clip") -> MolmoConfig:
    """Molmo-7B-O-0924: OLMo-7B-1024-preview, which has the OLMo2 layout."""
    text = TextConfig(
        "olmo2", 100278, 100352, 128, 4096, 11008, 32, 32, 32,
        rope_theta=5e5, attention_bias=False, qk_norm=True, norm_after=True,
    )  # fmt: skip
    return _molmo(text, vision)


def molmo_72b(vision: str = "clip") -> MolmoConfig:
    """Molmo-72B-0924: Qwen2-72B."""
    text = TextConfig("qwen2", 152064, 152064, 128, 8192, 29568, 80, 64, 8, rms_norm_eps=1e-5)
    return _molmo(text, vision)


def molmoe_1b(vision: str = "clip") -> MolmoConfig:
    """MolmoE-1B-0924: OLMoE with 64 experts, top 8; the only 1B of the family that was released."""
    text = TextConfig(
        "olmoe", 50280, 50304, 128, 2048, 1024, 16, 16, 16,
        rope_theta=1e4, rms_norm_eps=1e-5, attention_bias=False, qk_norm=True, num_experts=64, num_experts_per_tok=8,
    )  # fmt: skip
    return _molmo(text, vision)


def qwen2_1b5(vision: str = "clip") -> MolmoConfig:
    """A small-budget relative on Qwen2-1.5B (never released as a Molmo)."""
    text = TextConfig("qwen2", 151936, 151936, 128, 1536, 8960, 28, 12, 2)
    return _molmo(text, vision)


def qwen2_0b5(vision: str = "clip") -> MolmoConfig:
    """A small-budget relative on Qwen2-0.5B (never released as a Molmo)."""
    text = TextConfig("qwen2", 151936, 151936, 128, 896, 4864, 24, 14, 2)
    return _molmo(text, vision)


def tiny() -> MolmoConfig:
    """1.6 M parameters: trains from scratch on two CPU cores in minutes; the quickstart's model."""
    return MolmoConfig(
        TextConfig(
            "qwen2", 512, 512, 128, 128, 352, 3, 4, 2,
            max_position_embeddings=1024, rope_theta=1e4, initializer_range=0.06,
        ),
        VisionConfig("clip", 56, 14, 128, 256, 4, 4, feature_layers=(-1, -2), initializer_range=0.06),
        ConnectorConfig(initializer_range=0.06),
        ImageConfig(crop_mode="resize", max_crops=1, overlap_margins=(1, 1)),
    )  # fmt: skip


def reference_cpu() -> MolmoConfig:
    """11.5 M parameters: the model whose training step was timed with the reference implementation on a CPU."""
    return MolmoConfig(
        TextConfig("qwen2", 8192, 8192, 128, 256, 704, 4, 8, 2, max_position_embeddings=1024),
        VisionConfig("clip", 336, 14, 256, 1024, 4, 4, feature_layers=(-2, -3)),
    )


def tiny_moe() -> MolmoConfig:
    """`tiny` with 8 experts, top 2, in the OLMoE layout."""
    text = replace(
        tiny().text, model_type="olmoe", num_experts=8, num_experts_per_tok=2, intermediate_size=64,
        num_key_value_heads=4, attention_bias=False, qk_norm=True,
    )  # fmt: skip
    return replace(tiny(), text=text)


PRESETS = {
    f.__name__: f
    for f in (molmo_7b_d, molmo_7b_o, molmo_72b, molmoe_1b, qwen2_1b5, qwen2_0b5, reference_cpu, tiny, tiny_moe)
}


def get(name: str) -> MolmoConfig:
    """A preset by name, `molmo_7b_d` or with another tower `molmo_7b_d/siglip`; ValueError names those there are."""
    name, _, vision = name.partition("/")
    if name not in PRESETS or (vision and (vision not in TOWERS or name.startswith(("tiny", "reference")))):
        raise ValueError(
            f"There is no preset '{name}/{vision}'; there are {', '.join(PRESETS)}, towers {', '.join(TOWERS)}."
        )
    return PRESETS[name](vision) if vision else PRESETS[name]()
