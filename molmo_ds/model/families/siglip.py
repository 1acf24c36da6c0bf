"""SigLIP: no class token and no LayerNorm before the first block.

Source: huggingface/transformers v5.23.0, src/transformers/models/siglip/modeling_siglip.py.
"""

from molmo_ds.model.families.table import Table, pairs
from molmo_ds.model.families.tower import EMBEDDINGS, Tower


class Siglip(Tower):
    """The names of a block are the shared ones."""

    config_type = "siglip_vision_model"

    def embeddings(self, prefix: str) -> Table:
        """The tensors before the first block, without the convolution's weight."""
        names = {
            "patch_embedding.bias": "patch_embedding.bias",
            "position_embedding": "position_embedding.weight",
        }
        return pairs(EMBEDDINGS, f"{prefix}embeddings.", names)


FAMILY = Siglip()
