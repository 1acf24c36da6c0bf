"""A dropless mixture of experts: route, sort tokens by expert, one grouped matrix product per projection.

Shapes: R tokens, D width, E experts, I width of an expert.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops import dispatch
from molmo_ds.ops.swiglu import swiglu


def experts(
    x: Tensor, router_logits: Tensor, gate_up_proj: Tensor, down_proj: Tensor, top_k: int, normalise: bool
) -> Tensor:
    """x [R, D] through the top_k experts of each token -> [R, D].

    router_logits float32 [R, E]; the softmax runs over all experts before the choice, and the chosen shares are made to
    sum to 1 only with `normalise`. gate_up_proj [E, 2I, D] holds gate then up, down_proj [E, D, I].
    """
    return dispatch.call("experts", x, router_logits, gate_up_proj, down_proj, top_k, normalise)


@dispatch.implements("experts", "torch")
def _torch(
    x: Tensor, router_logits: Tensor, gate_up_proj: Tensor, down_proj: Tensor, top_k: int, normalise: bool
) -> Tensor:
    shares, chosen = router_logits.softmax(-1).topk(top_k, -1)
    if normalise:
        shares = shares / shares.sum(-1, keepdim=True)
    expert, order = chosen.flatten().sort(stable=True)
    token = order // top_k
    ends = torch.bincount(expert, minlength=gate_up_proj.shape[0]).cumsum(0)
    inner = swiglu(*_grouped(x.index_select(0, token), gate_up_proj, ends).chunk(2, -1))
    out = _grouped(inner, down_proj, ends) * shares.flatten()[order, None].to(x.dtype)
    return torch.zeros_like(x).index_add(0, token, out.to(x.dtype))


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    # rows ends[e-1]:ends[e] of x [R, D] times weight[e] [O, D]
    parts = x.tensor_split(ends[:-1].cpu())
    return torch.cat([F.linear(part, w) for part, w in zip(parts, weight)])
