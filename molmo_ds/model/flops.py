"""Floating-point operations of training, and numbers of a cache, from the configuration.

Matrix products only. A product of [m, k] and [k, n] is 2 m k n operations forward, and as many for the gradient of each
of its two factors: 6 operations a token for each number of a weight that learns.
"""

import math
from dataclasses import dataclass

from molmo_ds.architecture import ConnectorConfig, MolmoConfig, TextConfig, VisionConfig
from molmo_ds.model.vision import used_layers

PARTS = ("vision", "connector", "text")  # in the order of the forward pass


@dataclass(frozen=True)
class Learning:
    """What of a network learns: the parts whose own weights do, and those that have adapters."""

    weights: tuple[str, ...] = PARTS
    adapted: tuple[str, ...] = ()

    def times(self, part: str) -> int:
        """Operations a token for each number of a part's weights: 2, and 2 each for the gradients that are wanted."""
        reached = PARTS[: PARTS.index(part) + 1]
        passed = any(one in self.weights + self.adapted for one in reached)
        return 2 + 2 * passed + 2 * (part in self.weights)


EVERYTHING = Learning()


def flops_of_step(
    config: MolmoConfig,
    tokens: float,
    learnt: float,
    pairs: float,
    crops: float,
    windows: float,
    pooled: float,
    learning: Learning = EVERYTHING,
) -> float:
    """Operations that a step cannot do without.

    Args:
        tokens: that are no padding.
        learnt: those of them with a weight, which alone have logits.
        pairs: of tokens that see each other.
        crops: that belong to a document.
        windows: that are added to its tokens: fewer than a crop has where crops overlap, and fewer still of a frame.
        pooled: patches in these windows.
    """
    text = config.text
    head = text.head_width
    layers = tokens * (attention(text, 0) + mlp(text))
    weights = text.num_hidden_layers * layers + learnt * text.hidden_size * text.embedding_size
    scores = text.num_hidden_layers * 2 * text.num_attention_heads * head * pairs
    decoder = learning.times("text")
    attended = 6 if decoder > 2 else 2  # both factors of a score come from the input
    vision = learning.times("vision") * crops * tower(config.vision)
    pooling = pooled_windows(config.vision, config.connector, windows, pooled)
    connector = learning.times("connector") * (pooling + windows * projector(config))
    return decoder * weights + attended * scores + vision + connector


def flops_per_token(config: MolmoConfig, length: int) -> float:
    """Operations of one text token in a sequence of `length`, attention over the causal half."""
    text = config.text
    layer = attention(text, length) + mlp(text)
    return 6 * (text.num_hidden_layers * layer + text.hidden_size * text.embedding_size)


def flops_per_crop(config: MolmoConfig) -> float:
    """Operations of one crop through tower and connector, which both learn, where tokens show all of its windows."""
    side = config.vision.image_size // config.vision.patch_size
    windows = math.ceil(side / config.connector.pooling_size) ** 2
    patches = windows * config.connector.pooling_size**2
    connector = pooled_windows(config.vision, config.connector, windows, patches)
    return 6 * (tower(config.vision) + connector + windows * projector(config))


def attention(text: TextConfig, length: int) -> int:
    """Products of the attention of one decoder layer: projections, and q k and p v over half of the positions."""
    head = text.head_width
    queries = text.num_attention_heads * head
    keys = text.num_key_value_heads * head
    return text.hidden_size * (2 * queries + 2 * keys) + queries * length


def cached(text: TextConfig) -> int:
    """Numbers that a KV cache holds of one token, in all layers."""
    head = text.head_width
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


def pooled_windows(
    vision: VisionConfig, connector: ConnectorConfig, windows: float, patches: float
) -> float:
    """Products of the attention over windows that hold `patches` in all."""
    if connector.pooling == "stack":
        return 0
    width = vision.hidden_size
    features = width * len(vision.feature_layers)
    of_window = features * width + width * width  # its query, and what it gives
    of_patch = 2 * features * width + 2 * width  # its key and value, score and share
    return windows * of_window + patches * of_patch


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
