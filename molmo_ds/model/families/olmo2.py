"""OLMo 2: the output of each branch is normalised instead of its input, and q and k over all heads.

Source: huggingface/transformers v5.23.0, src/transformers/models/olmo2/modeling_olmo2.py.
"""

from dataclasses import replace
from typing import Any

from molmo_ds.architecture import TextConfig
from molmo_ds.model.families.decoder import Decoder

# rows of the published embedding -> words of its tokenizer; special ids lie between
WORDS = {100352: 100278}


class Olmo2(Decoder):
    """Other names of the norms."""

    norms = ("post_attention_layernorm", "post_feedforward_layernorm")

    def text_config(self, values: dict[str, Any]) -> TextConfig:
        """transformers' config.json as a TextConfig."""
        text = super().text_config(values)
        return replace(
            text,
            vocab_size=WORDS.get(text.embedding_size, text.vocab_size),
            rms_norm_eps=values.get("rms_norm_eps", 1e-5),
            qk_norm=True,
            norm_after=True,
        )


FAMILY = Olmo2()
