"""Rotary position embedding, half-split, in plain PyTorch: the tables, and the rotation in float32.

Shapes: B sequences, H heads, T tokens, d head width.
"""

import math
from typing import Any

import torch
from torch import Tensor


def rope_table(
    position_ids: Tensor, head_dim: int, theta: float, scaling: dict[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 [B, T, head_dim], of position_ids [B, T]; negative positions count as 0.

    `scaling` is transformers' dictionary; ValueError for a kind other than "default" and "llama3".
    """
    device = position_ids.device
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequency = _scaled(theta**-exponent, scaling)
    angle = position_ids.clamp(min=0)[..., None].float() * frequency
    angle = torch.cat((angle, angle), -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, d] rotated by the tables of `rope_table` (d = their last size) in float32, in x's type."""
    low, high = x.chunk(2, -1)
    turned = torch.cat((-high, low), -1)
    # half precision times a float32 table is computed in float32
    return (x * cos[:, None] + turned * sin[:, None]).to(x.dtype)


def _scaled(frequency: Tensor, scaling: dict[str, Any] | None) -> Tensor:
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if kind == "default":
        return frequency
    if kind != "llama3":
        raise ValueError(f"rope_scaling '{kind}' is not known; use 'default' or 'llama3'.")
    low = scaling["low_freq_factor"]
    high = scaling["high_freq_factor"]
    # over the length trained on
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    # 0: slow, divide; 1: fast, keep; between: blend
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (share + (1 - share) / scaling["factor"])
