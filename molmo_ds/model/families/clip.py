"""CLIP, OpenAI's and MetaCLIP: a class token, no bias on the patches, a LayerNorm before the first block.

Source: huggingface/transformers v5.23.0, src/transformers/models/clip/modeling_clip.py.
"""

from molmo_ds.architecture import VisionConfig
from molmo_ds.model.families.table import Table, affine, pairs
from molmo_ds.model.families.tower import EMBEDDINGS, ONLY_CLIP, Tower

SERVED = {  # by vLLM: CLIP L/14 of OpenAI without its last layer
    "image_size": 336,
    "patch_size": 14,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
}


class Clip(Tower):
    """The names of a block are the shared ones."""

    config_type = "clip_vision_model"

    def embeddings(self, prefix: str) -> Table:
        """The tensors before the first block, without the convolution's weight."""
        names = {
            "position_embedding": "position_embedding.weight",
            "class_embedding": "class_embedding",
        }
        table = pairs(EMBEDDINGS, f"{prefix}embeddings.", names)
        # transformers' spelling
        return table + affine(EMBEDDINGS, prefix, {"pre_layernorm": "pre_layrnorm"})

    def not_served(self, vision: VisionConfig) -> str | None:
        """Why vLLM's Molmo (0.33) has no such tower, None if it has."""
        if any(getattr(vision, name) != size for name, size in SERVED.items()):
            return ONLY_CLIP
        if (
            tuple(vision.feature_layers) != (-2, -9)
            or vision.hidden_act != "quick_gelu"
            or vision.num_positions
        ):
            return "vLLM takes CLIP's layers -2 and -9 and quick_gelu only"
        return None


FAMILY = Clip()
