"""Attention over a KV cache by flash-attn's call for it, which writes the new token and reads no further than each row.

Registered as "cuda". Source of the call: Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py,
flash_attn_with_kvcache (version 2). Never run on a GPU here: tests hand the call to a stand-in.
"""

import importlib.util

import torch
from torch import Tensor

from molmo_ds.ops.cached_attention.reference import StepPlan

HAS_FLASH = importlib.util.find_spec("flash_attn") is not None
WIDEST = 256  # head that flash-attn takes


def usable(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: StepPlan,
) -> bool:
    """Whether flash-attn is installed and takes these: on a GPU, in half precision, heads of at most 256."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    width = q.shape[-1]
    taken = width <= WIDEST and width % 8 == 0
    return HAS_FLASH and q.is_cuda and half and taken


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: StepPlan,
) -> Tensor:
    """q [R, H, 1, d], k and v [R, G, 1, d] -> [R, H, 1, d]."""
    return _step(q, k, v, keys, values, plan.lengths)


@torch.library.custom_op("molmo_ds::cached_attention", mutates_args=("keys", "values"))
def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
) -> Tensor:
    from flash_attn import flash_attn_with_kvcache

    rows = q.shape[0]
    # the library's order is rows, tokens, heads, width
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    kept_keys = keys[:rows].transpose(1, 2)
    kept_values = values[:rows].transpose(1, 2)
    out = flash_attn_with_kvcache(
        q,
        kept_keys,
        kept_values,
        k,
        v,
        cache_seqlens=lengths,
        causal=True,
    )
    return out.transpose(1, 2).contiguous()


@_step.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
) -> Tensor:
    return q.new_empty(q.shape)
