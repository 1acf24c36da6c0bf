"""Attention in blocks of a mask against one call with the whole mask, in float32 and float64."""

import pytest
import torch
from torch.nn import functional as F

from molmo_ds.ops.tree_attention import mask_blocks, visible

T = 300


def ids(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    documents = torch.ones(2, T, dtype=torch.int32)
    branches = torch.zeros(2, T, dtype=torch.int32)
    if kind == "tree":
        branches[:, 40:] = torch.arange(T - 40) // 20 + 1
    elif kind == "packed":
        documents[:] = torch.arange(T) // 70 + 1
        branches[0] = torch.arange(T) % 70 // 30
    elif kind == "padded":
        documents[1, 50:] = 0
    return documents, branches


@pytest.mark.parametrize("kind", ["causal", "tree", "packed", "padded"])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2)])
def test_output_and_gradients(kind: str, heads: int, groups: int) -> None:
    source = torch.Generator().manual_seed(0)
    q, grad = (torch.randn(2, T, heads, 16, generator=source).transpose(1, 2) for _ in range(2))
    k, v = (torch.randn(2, T, groups, 16, generator=source).transpose(1, 2) for _ in range(2))
    mask = torch.zeros(2, 1, T, T).masked_fill(~visible(*ids(kind))[:, None], float("-inf"))

    def run(attend, dtype):
        inputs = [x.to(dtype).detach().requires_grad_() for x in (q, k, v)]
        out = attend(*inputs)
        out.backward(grad.to(dtype))
        return [out.detach(), *(x.grad for x in inputs)]

    def whole(q, k, v):
        k, v = (x.repeat_interleave(heads // groups, 1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, mask.to(q.dtype))

    blocks = mask_blocks.cut(mask)
    assert mask_blocks.usable(q, blocks, 0.0)
    ours = run(lambda q, k, v: mask_blocks.attention(q, k, v, blocks), torch.float32)
    for fast, exact in zip(ours, run(whole, torch.float64)):
        assert (fast - exact).norm() / exact.norm() < 1e-6


def test_a_full_mask_is_left_alone() -> None:
    q = torch.zeros(1, 2, T, 16)
    assert not mask_blocks.usable(q, mask_blocks.cut(torch.zeros(1, 1, T, T)), 0.0)
    causal = torch.zeros(1, 1, T, T).masked_fill(
        torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf")
    )
    blocks = mask_blocks.cut(causal)
    assert mask_blocks.usable(q, blocks, 0.0)
    assert not mask_blocks.usable(q, blocks, 0.1)  # dropout needs every share
