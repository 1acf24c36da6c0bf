"""The base of the families of vision towers: CLIP's fields of config.json, and CLIP's names of tensors.

Source: huggingface/transformers v5.23.0, src/transformers/models/clip/configuration_clip.py and
modeling_clip.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Container
from typing import Any

from molmo_ds.architecture import VisionConfig
from molmo_ds.model.families.table import Rule, Table, affine, pairs, patches

EMBEDDINGS = "vision.embeddings."
ONLY_CLIP = "vLLM knows only the tower CLIP L/14 at 336 pixels with 23 layers"


class Tower(ABC):
    """A family with CLIP's names of a block; it says what its embeddings are, and overrides what is otherwise."""

    config_type: str  # what transformers' AutoConfig calls the configuration of the tower alone
    patch = "embeddings.patch_embedding"  # the convolution
    layers = "encoder.layers."
    block = {  # our modules of a block -> theirs
        "self_attn.q_proj": "self_attn.q_proj",
        "self_attn.k_proj": "self_attn.k_proj",
        "self_attn.v_proj": "self_attn.v_proj",
        "self_attn.out_proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "layer_norm1": "layer_norm1",
        "layer_norm2": "layer_norm2",
    }
    scales: dict[str, str] = {}  # our vectors of a block -> theirs

    def vision_config(self, values: dict[str, Any], base: VisionConfig) -> VisionConfig:
        """transformers' config.json as a tower with the crops and the features of `base`.

        Crops are as large as Molmo's, whatever the tower saw: SigLIP's 384 pixels hold 27 patches as 378 do.
        """
        from transformers import AutoConfig

        # files on the hub leave out what is transformers' default
        values = AutoConfig.for_model(self.config_type).to_dict() | values
        patch = values["patch_size"]
        positions = (values["image_size"] // patch) ** 2
        return VisionConfig(
            model_type=base.model_type,
            image_size=base.image_size,
            patch_size=patch,
            hidden_size=values["hidden_size"],
            intermediate_size=self.intermediate_size(values),
            num_hidden_layers=values["num_hidden_layers"],
            num_attention_heads=values["num_attention_heads"],
            hidden_act=values["hidden_act"],
            layer_norm_eps=values["layer_norm_eps"],
            num_positions=None if positions == (base.image_size // patch) ** 2 else positions,
            feature_layers=base.feature_layers,
        )

    def intermediate_size(self, values: dict[str, Any]) -> int:
        """Width of the MLP."""
        return values["intermediate_size"]

    def rename_table(self, vision: VisionConfig, keys: Container[str]) -> Table:
        """The tensors of transformers' vision model, under the prefix that it has among `keys`.

        Layers beyond `num_hidden_layers` and everything after the last block have no rule: Molmo drops them.
        """
        prefix = self.prefix(keys)
        patch = f"{prefix}{self.patch}.weight"
        table = [
            Rule((f"{EMBEDDINGS}patch_embedding.weight",), (patch,), patches(vision.patch_size))
        ]
        table += self.embeddings(prefix)
        for i in range(vision.num_hidden_layers):
            ours = f"vision.layers.{i}."
            theirs = f"{prefix}{self.layers}{i}."
            table += affine(ours, theirs, self.block)
            table += pairs(ours, theirs, self.scales)
        return table

    def prefix(self, keys: Container[str]) -> str:
        """The prefix of the names: empty, or the name of the model inside a larger one."""
        known = ("", "vision_model.", "dinov2.")
        return next((prefix for prefix in known if f"{prefix}{self.patch}.weight" in keys), "")

    @abstractmethod
    def embeddings(self, prefix: str) -> Table:
        """The tensors before the first block, without the convolution's weight."""

    def not_served(self, vision: VisionConfig) -> str | None:
        """Why vLLM's Molmo (0.33) has no such tower, None if it has."""
        return ONLY_CLIP
