"""The released config.json as transformers reads it."""

import copy
import dataclasses
import shutil
import typing
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from molmo_ds.architecture import MolmoConfig as Architecture

FIELDS = {  # of the released config.json, with the values that Molmo-7B-D has
    "vocab_size": 152064,
    "embedding_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 37888,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
    "use_cache": True,
    "layer_norm_eps": 1e-6,
    "layer_norm_type": "rms",
    "rope_theta": 1e6,
    "qkv_bias": True,
    "attention_layer_norm": False,
    "norm_after": False,
    "clip_qkv": None,
    "weight_tying": False,
    "use_position_ids": True,
}


class MolmoConfig(PretrainedConfig):
    """The fields of the released models, and `molmo_ds`, a dictionary that holds the whole architecture."""

    model_type = "molmo"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    def __init__(
        self,
        molmo_ds: dict[str, Any] | None = None,
        tie_word_embeddings: bool = False,
        **fields: Any,
    ) -> None:
        for name, value in FIELDS.items():
            setattr(self, name, fields.pop(name, value))
        self.embedding_size = self.embedding_size or self.vocab_size
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.molmo_ds = molmo_ds or {}
        super().__init__(tie_word_embeddings=tie_word_embeddings, **fields)

    def get_text_config(self, *_: Any, **__: Any) -> "MolmoConfig":
        """The configuration with as many words as the head has, which is what beam search counts by."""
        if self.vocab_size == self.embedding_size:
            return self
        words = copy.copy(self)
        words.vocab_size = self.embedding_size
        return words

    def architecture(self) -> Architecture:
        """The network's own configuration."""
        return build(Architecture, self.molmo_ds)


def build(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass of dataclasses from dictionaries; lists become the tuples that its fields are."""
    hints = typing.get_type_hints(kind)
    out = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = build(hints[name], value)
        out[name] = tuple(value) if isinstance(value, list) else value
    return kind(**out)


def copy_code(folder: str | Path) -> None:
    """Copy the code of an exported folder to where it is saved again; within the package, nothing."""
    if __name__.startswith("transformers_modules."):
        for file in Path(__file__).parent.glob("*.py"):
            if file.name != "__init__.py":
                shutil.copyfile(file, Path(folder) / file.name)
