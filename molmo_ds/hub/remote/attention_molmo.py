"""Attention of an exported model: transformers' cache, and the weights for those who ask for them.

Shapes: B sequences, T tokens, S keys, H heads, G key-value heads, d head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.batch import Carry
from molmo_ds.model.decoder import Core


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the layers share in a forward pass."""

    mask: Tensor  # bool [B, 1, T, S]
    cache: Any  # of transformers, or None
    places: Tensor  # int [T], of the tokens in the cache
    weights: list[Tensor] | None  # takes [B, H, T, S] of each layer


class CachedCore(Core):
    """Attention of one layer with transformers' cache."""

    def __init__(self, index: int) -> None:
        self.index = index

    def plan(self, x: Carry, dtype: torch.dtype) -> None:
        """Nothing: the plan is made once for all layers."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan, dropout_p: float) -> Tensor:
        """The attention of `Core`."""
        if plan.cache is not None:
            places = {"cache_position": plan.places.to(k.device)}  # read by transformers 4
            k, v = plan.cache.update(k, v, self.index, places)
        # static caches have room to spare
        spare = k.shape[2] - plan.mask.shape[3]
        mask = F.pad(plan.mask.to(q.device), (0, spare))
        if plan.weights is None:
            return F.scaled_dot_product_attention(
                q, k, v, mask, dropout_p, enable_gqa=q.shape[1] != k.shape[1]
            )
        group = q.shape[1] // k.shape[1]
        k = k.repeat_interleave(group, 1)
        v = v.repeat_interleave(group, 1)
        scores = (q @ k.transpose(2, 3)).float() * q.shape[3] ** -0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(q.dtype)
        plan.weights.append(weights)
        return F.dropout(weights, dropout_p) @ v


def causal_mask(attention_mask: Tensor, tokens: int, seen: int) -> Tensor:
    """bool [B, 1, T, S]: causal, no padding seen; padding sees itself.

    Args:
        attention_mask: [B, S], 0 on padding.
        seen: tokens of the cache.
    """
    query = torch.arange(tokens, device=attention_mask.device)[:, None] + seen
    key = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (((query >= key) & attention_mask[:, None].bool()) | (query == key))[:, None]
