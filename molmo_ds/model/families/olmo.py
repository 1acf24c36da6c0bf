"""OLMo 1: LayerNorm without weights, q, k and v clipped.

Source: huggingface/transformers v5.23.0, src/transformers/models/olmo/modeling_olmo.py.
"""

from dataclasses import replace
from typing import Any

from molmo_ds.architecture import TextConfig
from molmo_ds.model.families.decoder import Decoder


class Olmo(Decoder):
    """Its norms have no tensors."""

    def text_config(self, values: dict[str, Any]) -> TextConfig:
        """transformers' config.json as a TextConfig."""
        eps = values.get("rms_norm_eps", 1e-5)
        return replace(super().text_config(values), norm_type="layer", rms_norm_eps=eps)


FAMILY = Olmo()
