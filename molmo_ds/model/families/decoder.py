"""The base of the families of decoders: Llama's fields of config.json, and Llama's names of tensors.

Source: huggingface/transformers v5.23.0, src/transformers/models/llama/configuration_llama.py and
modeling_llama.py.
"""

from collections.abc import Container
from typing import Any

from molmo_ds.architecture import TextConfig
from molmo_ds.model.families.table import SAME, Rule, Table, alike, head, norms, pairs


class Decoder:
    """A family that adds nothing to Llama; another one overrides what it has of its own."""

    # switches of config.json that must be off
    refused = ("use_sliding_window", "attention_bias", "mlp_bias")
    norms = ("input_layernorm", "post_attention_layernorm")  # names of a layer's two norms

    def text_config(self, values: dict[str, Any]) -> TextConfig:
        """transformers' config.json as a TextConfig; ValueError for what Molmo's decoder does not have."""
        if any(values.get(name) for name in self.refused):
            kind = values["model_type"]
            raise ValueError(
                f"This {kind} model has sliding windows or biases that Molmo does not have."
            )
        # transformers 5; rope_theta and rope_scaling before
        rope = values.get("rope_parameters") or {}
        scaling = dict(values.get("rope_scaling") or rope)
        scaling.pop("rope_theta", None)
        plain = scaling.get("rope_type", scaling.get("type", "default")) == "default"
        heads = values["num_attention_heads"]
        return TextConfig(
            model_type=values["model_type"],
            vocab_size=values["vocab_size"],
            embedding_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_hidden_layers=values["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim"),
            rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 1e4),
            rope_scaling=None if plain else scaling,
            rms_norm_eps=values.get("rms_norm_eps", 1e-6),
            attention_bias=False,
            clip_qkv=values.get("clip_qkv"),
            max_position_embeddings=values["max_position_embeddings"],
            initializer_range=values.get("initializer_range", 0.02),
        )

    def rename_table(self, text: TextConfig, keys: Container[str]) -> Table:
        """The tensors of transformers' causal language model; `keys` are those there are, where spellings differ."""
        table = [Rule(("embed.embedding",), ("model.embed_tokens.weight",), SAME)]
        for i in range(text.num_hidden_layers):
            ours = f"layers.{i}."
            theirs = f"model.layers.{i}."
            table += self.attention(text, f"{ours}self_attn.", f"{theirs}self_attn.")
            table += pairs(ours, theirs, norms(text, *self.norms))
            table += self.mlp(text, f"{ours}mlp.", f"{theirs}mlp.", keys)
        return table + head(text, "model.norm", "lm_head")

    def attention(self, text: TextConfig, ours: str, theirs: str) -> Table:
        """The tensors of an attention after the prefixes `ours` and `theirs`."""
        names = [f"{part}_proj.weight" for part in "qkvo"]
        if text.attention_bias:
            names += [f"{part}_proj.bias" for part in "qkv"]
        if text.qk_norm:
            names += [f"{part}_norm.weight" for part in "qk"]
        return alike(ours, theirs, names)

    def mlp(self, text: TextConfig, ours: str, theirs: str, keys: Container[str]) -> Table:
        """The tensors of an MLP after the prefixes `ours` and `theirs`."""
        return alike(ours, theirs, ["gate_proj.weight", "up_proj.weight", "down_proj.weight"])

    def not_served(self, text: TextConfig) -> str | None:
        """Why vLLM's Molmo (0.33) has no such decoder, None if it has."""
        if text.num_experts:
            return "vLLM has no mixture-of-experts Molmo"
        if text.norm_type != "rms" or text.rope_scaling or text.clip_qkv:
            return "vLLM's Molmo has RMSNorm, plain rotary positions and no clipping of q, k and v"
        return None
