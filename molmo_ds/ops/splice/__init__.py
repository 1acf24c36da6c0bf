"""Token embedding from two tables with image features added at their positions.

Shapes: B sequences, T tokens, D width, E rows of the base table, A rows of the extra table, M image features.
"""

from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.splice import reference

dispatch.register("splice", "torch", reference.splice)
if dispatch.HAS_TRITON:
    from molmo_ds.ops.splice import triton

    dispatch.register("splice", "triton", triton.splice, triton.usable)


def splice(
    input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor
) -> Tensor:
    """Embeddings [B, T, D] of input_ids [B, T], plus features [M, D] at positions [M].

    An id below E reads base [E, D], the others read extra [A, D] at id - E. A position indexes the B * T tokens; -1
    drops the feature; the other positions differ from each other. The result has base's type.
    """
    return dispatch.call("splice", input_ids, base, extra, features, positions)
