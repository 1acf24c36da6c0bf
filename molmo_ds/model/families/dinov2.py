"""DINOv2: a class token, LayerScale, a position table of 37 x 37 patches that is resized to the crop's.

Source: huggingface/transformers v5.23.0, src/transformers/models/dinov2/modeling_dinov2.py.
"""

from collections.abc import Container
from dataclasses import replace
from typing import Any

from molmo_ds.architecture import VisionConfig
from molmo_ds.model.families.table import SAME, Form, Rule, Table
from molmo_ds.model.families.tower import EMBEDDINGS, Tower

# [1, n, D] <-> [n, D]
FIRST = Form(lambda t: [t[0].reshape(-1, t[0].shape[-1])], lambda t: [t[0][None]])
CLASS = Form(lambda t: [t[0].reshape(-1)], lambda t: [t[0][None, None]])  # [1, 1, D] <-> [D]


class Dinov2(Tower):
    """Names of its own; transformers before 5 nested the attention once more."""

    config_type = "dinov2"
    patch = "embeddings.patch_embeddings.projection"
    layers = "encoder.layer."
    block = {
        "self_attn.q_proj": "attention.q_proj",
        "self_attn.k_proj": "attention.k_proj",
        "self_attn.v_proj": "attention.v_proj",
        "self_attn.out_proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
    }
    scales = {"layer_scale1": "layer_scale1.lambda1", "layer_scale2": "layer_scale2.lambda1"}

    def vision_config(self, values: dict[str, Any], base: VisionConfig) -> VisionConfig:
        """transformers' config.json as a tower; ValueError for the SwiGLU of the giant."""
        if values.get("use_swiglu_ffn"):
            raise ValueError(
                "DINOv2 giant (use_swiglu_ffn) is not supported; use DINOv2 large, base or small."
            )
        return super().vision_config(values, base)

    def intermediate_size(self, values: dict[str, Any]) -> int:
        """Width of the MLP, which config.json gives as a ratio."""
        return values.get("intermediate_size") or int(
            values["hidden_size"] * values.get("mlp_ratio", 4)
        )

    def embeddings(self, prefix: str) -> Table:
        """The tensors before the first block, without the convolution's weight."""
        theirs = f"{prefix}embeddings."
        return [
            Rule((f"{EMBEDDINGS}patch_embedding.bias",), (f"{prefix}{self.patch}.bias",), SAME),
            Rule((f"{EMBEDDINGS}class_embedding",), (f"{theirs}cls_token",), CLASS),
            Rule((f"{EMBEDDINGS}position_embedding",), (f"{theirs}position_embeddings",), FIRST),
        ]

    def rename_table(self, vision: VisionConfig, keys: Container[str]) -> Table:
        """The tensors of transformers' vision model, in the spelling that `keys` have."""
        table = super().rename_table(vision, keys)
        return [
            replace(rule, theirs=tuple(spelled(key, keys) for key in rule.theirs)) for rule in table
        ]


def spelled(key: str, keys: Container[str]) -> str:
    """The key, or where it is not there the name that transformers before 5 gave it."""
    if key in keys or ".attention." not in key:
        return key
    for new, old in (("q", "query"), ("k", "key"), ("v", "value")):
        key = key.replace(f".attention.{new}_proj.", f".attention.attention.{old}.")
    return key.replace(".attention.o_proj.", ".attention.output.dense.")


FAMILY = Dinov2()
