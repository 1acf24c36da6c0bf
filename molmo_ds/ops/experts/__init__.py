"""A dropless mixture of experts.

Shapes: R tokens, D width, E experts, I width of an expert.
"""

from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.experts import reference

dispatch.register("experts", "torch", reference.experts)


def experts(
    x: Tensor,
    router_logits: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    top_k: int,
    normalise: bool,
    first: int = 0,
) -> Tensor:
    """x [R, D] through the top_k experts of each token -> [R, D].

    router_logits float32 [R, E]; the softmax runs over all experts before the choice, and the chosen shares are made to
    sum to 1 only with `normalise`. gate_up_proj [E, 2I, D] holds gate then up, down_proj [E, D, I]. Where they hold
    fewer experts, `first` and those after it, the result is their part of the sum.
    """
    return dispatch.call(
        "experts", x, router_logits, gate_up_proj, down_proj, top_k, normalise, first
    )
