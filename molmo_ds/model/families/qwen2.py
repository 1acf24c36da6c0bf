"""Qwen2 and Qwen2.5: Llama with biases on q, k and v.

Source: huggingface/transformers v5.23.0, src/transformers/models/qwen2/modeling_qwen2.py.
"""

from dataclasses import replace
from typing import Any

from molmo_ds.architecture import TextConfig
from molmo_ds.model.families.decoder import Decoder


class Qwen2(Decoder):
    """config.json says nothing of the biases."""

    refused = ("use_sliding_window", "mlp_bias")

    def text_config(self, values: dict[str, Any]) -> TextConfig:
        """transformers' config.json as a TextConfig."""
        return replace(super().text_config(values), attention_bias=True)


FAMILY = Qwen2()
