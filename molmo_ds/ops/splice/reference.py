"""Token embedding from two tables with image features added at their positions, in plain PyTorch.

Shapes: B sequences, T tokens, D width, E rows of the base table, A rows of the extra table, M image features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def splice(
    input_ids: Tensor,
    base: Tensor,
    extra: Tensor,
    features: Tensor,
    positions: Tensor,
) -> Tensor:
    """Embeddings [B, T, D] of input_ids [B, T], plus features [M, D] at positions [M]; -1 drops a feature.

    An id below E reads base [E, D], the others read extra [A, D] at id - E.
    """
    rows = base.shape[0]
    ids = input_ids.reshape(-1)
    in_base = ids.clamp(max=rows - 1)
    in_extra = (ids - rows).clamp(min=0)
    low = F.embedding(in_base, base)
    high = F.embedding(in_extra, extra).to(low.dtype)
    additional = ids >= rows
    words = torch.where(additional[:, None], high, low)
    # row 0 receives zeros
    there = positions >= 0
    added = torch.where(there[:, None], features, 0)
    places = positions.clamp(min=0)
    out = words.index_add(0, places, added.to(low.dtype))
    return out.view(*input_ids.shape, -1)
