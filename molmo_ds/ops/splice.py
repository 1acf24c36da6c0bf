"""Token embedding from two tables with image features added at their positions.

Shapes: B sequences, T tokens, D width, E rows of the base table, A rows of the extra table, M image features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops import dispatch


def splice(input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor) -> Tensor:
    """Embeddings [B, T, D] of input_ids [B, T], plus features [M, D] at positions [M].

    An id below E reads base [E, D], the others read extra [A, D] at id - E. A position indexes the B * T tokens; -1
    drops the feature; the other positions differ from each other. The result has base's type.
    """
    return dispatch.call("splice", input_ids, base, extra, features, positions)


@dispatch.implements("splice", "torch")
def _torch(input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor) -> Tensor:
    rows = base.shape[0]
    ids = input_ids.reshape(-1)
    additional = (ids >= rows)[:, None]
    low = F.embedding(ids.clamp(max=rows - 1), base)
    high = F.embedding((ids - rows).clamp(min=0), extra).to(low.dtype)
    added = torch.where((positions >= 0)[:, None], features, 0).to(low.dtype)  # row 0 receives zeros
    out = torch.where(additional, high, low).index_add(0, positions.clamp(min=0), added)
    return out.view(*input_ids.shape, -1)
