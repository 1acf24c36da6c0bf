"""Operators of the twin that no CPU kernel computes, and the choice of attention that a CPU build would refuse."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from molmo_ds.testing.twin import flash

library = torch.library.Library("aten", "IMPL")  # lives as long as the process
torch_compile = torch.compile
attention_on_cpu = F.scaled_dot_product_attention


def mm(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """aten::mm.dtype."""
    return torch.mm(a.to(out_dtype), b.to(out_dtype))


def mm_out(a: Tensor, b: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
    """aten::mm.dtype_out."""
    return out.copy_(mm(a, b, out_dtype))


def addmm(
    c: Tensor, a: Tensor, b: Tensor, out_dtype: torch.dtype, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """aten::addmm.dtype."""
    return torch.addmm(c.to(out_dtype), a.to(out_dtype), b.to(out_dtype), beta=beta, alpha=alpha)


def addmm_out(
    c: Tensor, a: Tensor, b: Tensor, out_dtype: torch.dtype, *, beta: float = 1, alpha: float = 1,
    out: Tensor,
) -> Tensor:  # fmt: skip
    """aten::addmm.dtype_out."""
    return out.copy_(addmm(c, a, b, out_dtype, beta=beta, alpha=alpha))


def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """F.scaled_dot_product_attention, whose choice for CUDA is no part of a CPU build."""
    more: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    if not q.is_cuda:
        return attention_on_cpu(q, k, v, attn_mask, dropout_p, is_causal, **more)
    plain = torch.ops.aten._scaled_dot_product_attention_math
    return plain(q, k, v, attn_mask, dropout_p, is_causal, **more)[0]


def compiled(function: Callable | None = None, **more: Any) -> Callable:
    """torch.compile without inductor, whose kernels only a GPU can launch: graphs run their operators one by one."""
    if function is flex_attention:  # eager has a backward pass, except on CPU tensors
        return function
    return torch_compile(function, **(more | {"backend": "aot_eager"}))


def install() -> None:
    """Register them."""
    made = {
        "mm.dtype": mm,
        "mm.dtype_out": mm_out,
        "addmm.dtype": addmm,
        "addmm.dtype_out": addmm_out,
        "_flash_attention_forward": flash.forward,
        "_flash_attention_backward": flash.backward,
    }
    for name, function in made.items():
        library.impl(name, function, "CUDA")
    F.scaled_dot_product_attention = attention
    torch.compile = compiled
