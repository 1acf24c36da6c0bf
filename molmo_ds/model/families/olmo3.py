"""OLMo 3: OLMo 2 whose rotary positions are scaled in the layers that see everything.

Its sliding windows are dropped, as in Molmo2: every layer sees everything.
Source: huggingface/transformers v5.23.0, src/transformers/models/olmo3/modeling_olmo3.py.
"""

from dataclasses import replace
from typing import Any

from molmo_ds.architecture import TextConfig
from molmo_ds.model.families.olmo2 import Olmo2


class Olmo3(Olmo2):
    """The names of its tensors are OLMo 2's."""

    def text_config(self, values: dict[str, Any]) -> TextConfig:
        """transformers' config.json as a TextConfig."""
        ropes = values.get("rope_parameters") or {}
        if "full_attention" in ropes:  # transformers 5 has one for each kind of layer
            values = values | {"rope_parameters": ropes["full_attention"]}
        text = super().text_config(values)
        count = text.num_hidden_layers
        kinds = values.get("layer_types") or [
            "sliding_attention" if (layer + 1) % 4 else "full_attention" for layer in range(count)
        ]
        scaled = tuple(layer for layer in range(count) if kinds[layer] == "full_attention")
        return replace(text, rope_scaling_layers=scaled if text.rope_scaling else None)


FAMILY = Olmo3()
