"""The released config.json as transformers reads it."""

import dataclasses
import typing
from typing import Any

from transformers import PretrainedConfig

from molmo_ds.config import MolmoConfig as Architecture


class MolmoConfig(PretrainedConfig):
    """The fields of the released models, and `molmo_ds`, a dictionary that holds the whole architecture."""

    model_type = "molmo"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 152064,
        embedding_size: int | None = 152064,
        hidden_size: int = 3584,
        intermediate_size: int = 37888,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 28,
        num_key_value_heads: int | None = 4,
        max_position_embeddings: int = 4096,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        layer_norm_eps: float = 1e-6,
        layer_norm_type: str = "rms",
        rope_theta: float = 1e6,
        qkv_bias: bool = True,
        attention_layer_norm: bool = False,
        norm_after: bool = False,
        clip_qkv: float | None = None,
        weight_tying: bool = False,
        use_position_ids: bool = True,
        tie_word_embeddings: bool = False,
        molmo_ds: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size or vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.layer_norm_eps = layer_norm_eps
        self.layer_norm_type = layer_norm_type
        self.rope_theta = rope_theta
        self.qkv_bias = qkv_bias
        self.attention_layer_norm = attention_layer_norm
        self.norm_after = norm_after
        self.clip_qkv = clip_qkv
        self.weight_tying = weight_tying
        self.use_position_ids = use_position_ids
        self.molmo_ds = molmo_ds or {}
        super().__init__(tie_word_embeddings=tie_word_embeddings, **others)

    def architecture(self) -> Architecture:
        """The network's own configuration."""
        return build(Architecture, self.molmo_ds)


def build(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass of dataclasses from dictionaries; lists become the tuples that its fields are."""
    hints, out = typing.get_type_hints(kind), {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = build(hints[name], value)
        out[name] = tuple(value) if isinstance(value, list) else value
    return kind(**out)
