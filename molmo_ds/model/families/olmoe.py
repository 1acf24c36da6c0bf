"""OLMoE: experts instead of one MLP, and q and k normalised over all heads.

Source: huggingface/transformers v5.23.0, src/transformers/models/olmoe/modeling_olmoe.py.
"""

from collections.abc import Container
from dataclasses import replace
from typing import Any

from molmo_ds.architecture import TextConfig
from molmo_ds.model.families.decoder import Decoder
from molmo_ds.model.families.table import Table, alike, experts

# rows of the published embedding -> words of its tokenizer; special ids lie between
WORDS = {50304: 50280}
# as transformers 5 holds experts in memory
FUSED = ("gate.weight", "experts.gate_up_proj", "experts.down_proj")


class Olmoe(Decoder):
    """Its experts are a tensor each in files, and fused in the memory of transformers 5."""

    def text_config(self, values: dict[str, Any]) -> TextConfig:
        """transformers' config.json as a TextConfig."""
        text = super().text_config(values)
        return replace(
            text,
            vocab_size=WORDS.get(text.embedding_size, text.vocab_size),
            rms_norm_eps=values.get("rms_norm_eps", 1e-5),
            qk_norm=True,
            num_experts=values["num_experts"],
            num_experts_per_tok=values["num_experts_per_tok"],
            norm_topk_prob=bool(values.get("norm_topk_prob")),
        )

    def mlp(self, text: TextConfig, ours: str, theirs: str, keys: Container[str]) -> Table:
        """Router and experts."""
        if f"{theirs}{FUSED[1]}" in keys:
            return alike(ours, theirs, list(FUSED))
        return experts(text, ours, theirs)


FAMILY = Olmoe()
