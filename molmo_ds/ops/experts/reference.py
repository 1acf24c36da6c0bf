"""A mixture of experts in plain PyTorch: route, sort tokens by expert, one grouped matrix product per projection.

Shapes: R tokens, D width, E experts, I width of an expert.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops.swiglu import swiglu


def experts(
    x: Tensor,
    router_logits: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    top_k: int,
    normalise: bool,
    first: int = 0,
) -> Tensor:
    """x [R, D] through those of the top_k experts of each token that are held -> [R, D]."""
    shares, chosen = router_logits.softmax(-1).topk(top_k, -1)
    if normalise:
        shares = shares / shares.sum(-1, keepdim=True)
    held = len(gate_up_proj)
    some = held < router_logits.shape[-1]
    absent = None
    if some:  # the others sort after those that are held, into no group
        chosen = chosen - first
        absent = (chosen < 0) | (chosen >= held)
        chosen = chosen.masked_fill(absent, held)
    expert, order = chosen.flatten().sort(stable=True)
    places = torch.arange(len(order), device=order.device)
    back = torch.empty_like(order).scatter_(0, order, places)
    index = torch.arange(held, device=x.device)
    up_to = expert[None] <= index[:, None]
    ends = up_to.sum(1, dtype=torch.int32)
    spread = _Spread.apply(x, order, back, absent, top_k)
    both = _grouped(spread, gate_up_proj, ends)
    gate, up = both.chunk(2, -1)
    inner = swiglu(gate, up)
    out = _grouped(inner, down_proj, ends)
    out = out.index_select(0, back)
    out = out.unflatten(0, (-1, top_k))
    if some:  # whatever the product left there
        out = out.masked_fill(absent[..., None], 0)
    weighted = out * shares[..., None]
    return weighted.sum(1).to(x.dtype)


class _Spread(torch.autograd.Function):
    """A copy of each token for each of its experts, sorted by expert; the copies' gradients add up in a fixed order."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, order: Tensor, back: Tensor, absent: Tensor | None, top_k: int
    ) -> Tensor:
        ctx.save_for_backward(back, absent)
        ctx.top_k = top_k
        return x.index_select(0, order // top_k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        back, absent = ctx.saved_tensors
        copies = grad.index_select(0, back)
        copies = copies.unflatten(0, (-1, ctx.top_k))
        if absent is not None:  # whatever the product left there
            copies = copies.masked_fill(absent[..., None], 0)
        return copies.sum(1), None, None, None, None


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    # rows ends[e-1]:ends[e] of x [R, D] times weight[e] [O, D]; which product runs is a matter of weights and types
    device = x.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x = x.to(dtype)
        weight = weight.to(dtype)
    # what the grouped product asks
    width = x.element_size()
    aligned = all(size * width % 16 == 0 for size in weight.shape[1:])
    eager_cpu = device == "cpu" and not torch.compiler.is_compiling()
    known = (torch.bfloat16, torch.float32) if eager_cpu else (torch.bfloat16,)
    if aligned and x.dtype in known and hasattr(F, "grouped_mm"):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    if x.is_meta:
        return x @ weight[0].T
    # on a GPU the one place where a step may wait: float32, odd sizes
    cuts = ends[:-1].long().cpu()
    parts = x.tensor_split(cuts)
    products = [F.linear(part, one) for part, one in zip(parts, weight)]
    return torch.cat(products)
