"""Floating-point operations of training, and numbers of a cache, from the configuration.

Matrix products only, backward = twice forward, all components trained. A product of [m, k] and [k, n] is 2 m k n
operations forward, so each number of a weight is 6 operations a token.
"""

import math

from molmo_ds.architecture import ConnectorConfig, MolmoConfig, TextConfig, VisionConfig
from molmo_ds.model.vision import used_layers


def flops_per_token(config: MolmoConfig, length: int) -> float:
    """Operations of one text token in a sequence of `length`, attention over the causal half."""
    text = config.text
    layer = attention(text, length) + mlp(text)
    return 6 * (text.num_hidden_layers * layer + text.hidden_size * text.embedding_size)


def flops_per_crop(config: MolmoConfig) -> float:
    """Operations of one crop through tower and connector."""
    windows = (
        math.ceil(
            config.vision.image_size // config.vision.patch_size / config.connector.pooling_size
        )
        ** 2
    )
    window = pooling(config.vision, config.connector) + projector(config)
    return 6 * (tower(config.vision) + windows * window)


def attention(text: TextConfig, length: int) -> int:
    """Products of the attention of one decoder layer: projections, and q k and p v over half of the positions."""
    head = text.head_dim or text.hidden_size // text.num_attention_heads
    queries = text.num_attention_heads * head
    keys = text.num_key_value_heads * head
    return text.hidden_size * (2 * queries + 2 * keys) + queries * length


def cached(text: TextConfig) -> int:
    """Numbers that a KV cache holds of one token, in all layers."""
    head = text.head_dim or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * head


def mlp(text: TextConfig) -> int:
    """Products of the MLP of one decoder layer, or of the experts of a token and their router."""
    experts = text.num_experts_per_tok or 1
    return (
        3 * text.hidden_size * text.intermediate_size * experts
        + text.hidden_size * text.num_experts
    )


def tower(vision: VisionConfig) -> int:
    """Products of the tower up to its last feature, whose tokens all see each other."""
    width = vision.hidden_size
    patches = (vision.image_size // vision.patch_size) ** 2
    tokens = patches + vision.class_tokens
    layer = 4 * width * width + 2 * width * vision.intermediate_size + 2 * tokens * width
    layers = used_layers(vision)[-1] + 1
    return patches * 3 * vision.patch_size**2 * width + layers * tokens * layer


def pooling(vision: VisionConfig, connector: ConnectorConfig) -> int:
    """Products of the attention over one window."""
    if connector.pooling == "stack":
        return 0
    width = vision.hidden_size
    features = width * len(vision.feature_layers)
    window = connector.pooling_size**2
    return features * width * (1 + 2 * window) + width * width + 2 * window * width


def projector(config: MolmoConfig) -> int:
    """Products of one pooled vector's way to the decoder's width."""
    vision = config.vision
    connector = config.connector
    text = config.text
    source = vision.hidden_size
    if connector.pooling == "stack":
        source *= len(vision.feature_layers) * connector.pooling_size**2
    if connector.projector == "linear":
        return source * text.hidden_size
    return (2 * source + text.hidden_size) * (connector.intermediate_size or text.intermediate_size)
