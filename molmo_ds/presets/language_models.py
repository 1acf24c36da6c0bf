"""Language models under a Molmo in Ai2's later code that were never released as one."""

from dataclasses import replace

from molmo_ds.architecture import TextConfig

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
