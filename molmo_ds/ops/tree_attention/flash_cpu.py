"""PyTorch's flash kernels for the CPU: forward in the type of the queries, backward in float32.

The backward kernel takes longer in bf16 than in float32, casts included, and its gradients are less exact (Sapphire
Rapids with AMX, one thread: 4 crops of 577 tokens 43 against 35 ms, 32 sequences of 65 tokens 22 against 3.4 ms).

Shapes: B sequences, H heads, T queries, S keys, d head width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HALF = torch.bfloat16
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """q [B, H, T, d], k and v [B, H, S, d], mask float32 or of q's type -> [B, H, T, d] and log-sum-exp [B, H, T]."""
    return _forward(q, k, v, 0.0, False, attn_mask=mask)


def backward(
    of_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by q, k and v, float32 for bf16 tensors."""
    return _backward(
        *(wide(x) for x in (of_out, q, k, v, out)),
        lse,
        0.0,
        False,
        attn_mask=None if mask is None else wide(mask),
    )


def wide(x: Tensor) -> Tensor:
    """x in float32 if it is bf16."""
    return x.float() if x.dtype == HALF else x


def usable(q: Tensor, dropout_p: float) -> bool:
    """Whether `attention` gains by these: bf16 on a CPU that learns, no dropout, nothing that is compiled."""
    known = q.device.type == "cpu" and q.dtype == HALF and not dropout_p
    return known and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """As torch's scaled_dot_product_attention, for bf16 and without dropout."""
    assert not dropout_p
    return _Attention.apply(q, k, v, mask)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out, lse = forward(q, k, v, mask)
        ctx.save_for_backward(q, k, v, out, lse, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, mask = ctx.saved_tensors
        of_q, of_k, of_v = backward(of_out, q, k, v, out, lse, mask)
        return of_q.to(q.dtype), of_k.to(k.dtype), of_v.to(v.dtype), None
