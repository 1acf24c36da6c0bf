"""Rotary position embedding, half-split, in plain PyTorch: the tables, and the rotation in float32.

Shapes: B sequences, H heads, T tokens, d head width.
"""

import math
from typing import Any

import torch
from torch import Tensor


def rope_table(
    position_ids: Tensor,
    head_dim: int,
    theta: float,
    scaling: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 [B, T, head_dim], of position_ids [B, T]; negative positions count as 0.

    `scaling` is transformers' dictionary; ValueError for a kind other than "default", "llama3" and "yarn", whose
    attention factor multiplies both tables.
    """
    device = position_ids.device
    even = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    exponent = even / head_dim
    frequency = theta**-exponent
    factor = 1.0
    said = scaling or {}
    kind = said.get("type", "default")
    kind = said.get("rope_type", kind)
    if kind == "llama3":
        frequency = _llama3(frequency, scaling)
    elif kind == "yarn":
        frequency = _yarn(frequency, theta, scaling)
        factor = scaling.get("attention_factor")
        factor = factor or 1 + 0.1 * math.log(max(1, scaling["factor"]))
    elif kind != "default":
        raise ValueError(f"rope_scaling '{kind}' is not known; use 'default', 'llama3' or 'yarn'.")
    positions = position_ids.clamp(min=0)
    angle = positions[..., None].float() * frequency
    angle = torch.cat((angle, angle), -1)
    return angle.cos() * factor, angle.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, d] rotated by the tables of `rope_table` (d = their last size) in float32, in x's type."""
    low, high = x.chunk(2, -1)
    turned = torch.cat((-high, low), -1)
    # half precision times a float32 table is computed in float32
    out = x * cos[:, None]
    out.add_(turned * sin[:, None])
    return out.to(x.dtype)


def _llama3(frequency: Tensor, scaling: dict[str, Any]) -> Tensor:
    low = scaling["low_freq_factor"]
    high = scaling["high_freq_factor"]
    # over the length trained on
    length = scaling["original_max_position_embeddings"]
    turns = length * frequency / (2 * math.pi)
    # 0: slow, divide; 1: fast, keep; between: blend
    share = (turns - low) / (high - low)
    share = share.clamp(0, 1)
    divided = (1 - share) / scaling["factor"]
    return frequency * (share + divided)


def _yarn(frequency: Tensor, theta: float, scaling: dict[str, Any]) -> Tensor:
    """Frequencies [d / 2] that turn fast are kept, slow ones divided by the factor, with a ramp between.

    Source: transformers 5.23, modeling_rope_utils.py, _compute_yarn_parameters with truncate.
    """
    pairs = len(frequency)
    length = scaling["original_max_position_embeddings"]

    def pair_of(turns: float) -> float:  # the pair that turns so often over the length trained on
        wavelength = length / (turns * 2 * math.pi)
        return pairs * math.log(wavelength) / math.log(theta)

    fast = scaling.get("beta_fast") or 32
    slow = scaling.get("beta_slow") or 1
    first = max(math.floor(pair_of(fast)), 0)
    last = min(math.ceil(pair_of(slow)), 2 * pairs - 1)
    width = max(last - first, 0.001)
    index = torch.arange(pairs, dtype=torch.float32, device=frequency.device)
    ramp = (index - first) / width
    ramp = ramp.clamp(0, 1)
    divided = ramp / scaling["factor"]
    return frequency * (divided + (1 - ramp))
