"""Qwen3: Llama with an RMSNorm on each head's q and k, and heads whose widths need not sum to the model's.

Source: huggingface/transformers v5.23.0, src/transformers/models/qwen3/modeling_qwen3.py.
"""

from dataclasses import replace
from typing import Any

from molmo_ds.architecture import TextConfig
from molmo_ds.model.families.decoder import Decoder


class Qwen3(Decoder):
    """config.json says nothing of the norms."""

    def text_config(self, values: dict[str, Any]) -> TextConfig:
        """transformers' config.json as a TextConfig."""
        text = super().text_config(values)
        width = values.get("head_dim", 128)  # transformers' default, whatever hidden_size is
        return replace(text, head_dim=width, qk_norm=True, qk_norm_per_head=True)


FAMILY = Qwen3()
