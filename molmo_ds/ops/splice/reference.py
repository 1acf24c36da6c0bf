"""Token embedding from two tables with image features added at their positions, in plain PyTorch.

Shapes: B sequences, T tokens, D width, E rows of the base table, A rows of the extra table, M image features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def splice(
    input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor
) -> Tensor:
    """Embeddings [B, T, D] of input_ids [B, T], plus features [M, D] at positions [M]; -1 drops a feature.

    An id below E reads base [E, D], the others read extra [A, D] at id - E.
    """
    rows = base.shape[0]
    ids = input_ids.reshape(-1)
    additional = (ids >= rows)[:, None]
    low = F.embedding(ids.clamp(max=rows - 1), base)
    high = F.embedding((ids - rows).clamp(min=0), extra).to(low.dtype)
    # row 0 receives zeros
    added = torch.where((positions >= 0)[:, None], features, 0).to(low.dtype)
    out = torch.where(additional, high, low).index_add(0, positions.clamp(min=0), added)
    return out.view(*input_ids.shape, -1)
