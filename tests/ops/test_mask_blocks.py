"""Attention in blocks of a mask against one call with the whole mask, in float32 and float64."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from molmo_ds.ops import cpu_library
from molmo_ds.ops.tree_attention import (
    attention_plan,
    mask_blocks,
    reference,
    tree_attention,
    visible,
)

T = 300


def ids(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    documents = torch.ones(2, T, dtype=torch.int32)
    branches = torch.zeros(2, T, dtype=torch.int32)
    images = None
    if kind == "tree":
        branches[:, 40:] = torch.arange(T - 40) // 20 + 1
    elif kind == "packed":
        documents[:] = torch.arange(T) // 70 + 1
        branches[0] = torch.arange(T) % 70 // 30
    elif kind == "padded":
        documents[1, 50:] = 0
    elif kind == "video":
        images = (torch.arange(T) % 9 > 2).int().repeat(2, 1)
        images[:, 200:] = 0
    return documents, branches, images


@pytest.mark.parametrize("kind", ["causal", "tree", "packed", "padded", "video"])
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

    exact = run(whole, torch.float64)
    for blocks in (mask_blocks.cut(mask), mask_blocks.of_ids(*ids(kind), torch.float32)):
        assert mask_blocks.usable(q, blocks, 0.0)
        ours = run(partial(mask_blocks.attention, blocks=blocks), torch.float32)
        for fast, wanted in zip(ours, exact):
            assert (fast - wanted).norm() / wanted.norm() < 1e-6


def test_a_long_sequence_has_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_blocks, "LONG", T)
    monkeypatch.setattr(cpu_library, "load", lambda: None)  # as without a compiler
    documents, branches, images = ids("video")
    plan = attention_plan(documents, branches, torch.float32, images)
    assert plan.mask is None and plan.prepared.kept == ()
    q, k, v = torch.randn(3, 2, 4, T, 16, generator=torch.Generator().manual_seed(1))
    wanted = reference.tree_attention(q, k, v, plan)  # which makes the mask
    assert torch.allclose(tree_attention(q, k, v, plan), wanted, atol=1e-6)
    short = reference.attention_plan(documents, branches, torch.float32, images)
    assert torch.equal(wanted, reference.tree_attention(q, k, v, short))


def test_a_full_mask_is_left_alone() -> None:
    q = torch.zeros(1, 2, T, 16)
    assert not mask_blocks.usable(q, mask_blocks.cut(torch.zeros(1, 1, T, T)), 0.0)
    causal = torch.zeros(1, 1, T, T).masked_fill(
        torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf")
    )
    blocks = mask_blocks.cut(causal)
    assert mask_blocks.usable(q, blocks, 0.0)
    assert not mask_blocks.usable(q, blocks, 0.1)  # dropout needs every share
