"""The rows of the loss in one kernel, which turns logits into their gradient in place.

Shapes: n rows of a chunk, V words; BLOCK columns at once. All arithmetic is float32 whatever the tensors hold. No
atomics: a result is the same bit for bit each time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.weighted_cross_entropy import chunks

WARPS = 8


def usable(hidden: Tensor, weight: Tensor, *others: Any) -> bool:
    """Whether the kernel can take these: by devices and types."""
    return dispatch.on_gpu(hidden, weight)


def rows(logits: Tensor, labels: Tensor, weights: Tensor, z_loss: float, grad: bool) -> Tensor:
    """Sums [n, 3] of each row; with `grad` the logits [n, V] are overwritten by their gradient."""
    count, words = logits.shape
    sums = torch.empty(count, 3, device=logits.device)
    block = min(4096, triton.next_power_of_2(words))
    rows_kernel[(count,)](
        logits,
        labels.contiguous(),
        weights,
        sums,
        z_loss,
        words,
        logits.stride(0),
        grad,
        block,
        num_warps=WARPS,
    )
    return sums


chunks.ROWS["triton"] = rows


@triton.jit
def rows_kernel(
    logits, labels, weights, sums, z_loss, V, stride, GRAD: tl.constexpr, BLOCK: tl.constexpr
):
    # one program per row of logits: its three sums, and with GRAD the logits are overwritten by their gradient
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * stride
    label = tl.load(labels + row)
    weight = tl.load(weights + row)
    top = -float("inf")
    total = 0.0
    likeliest = 0
    for start in range(0, V, BLOCK):
        c = start + tl.arange(0, BLOCK)
        x = tl.load(line + c, mask=c < V, other=-float("inf")).to(tl.float32)
        here = tl.max(x, axis=0)
        if here > top:  # the first of equal logits counts, as in torch.argmax
            likeliest = tl.min(tl.where(x == here, c, V), axis=0)
        new = tl.maximum(top, here)
        total = total * tl.exp(top - new) + tl.sum(tl.exp(x - new), axis=0)
        top = new
    lse = top + tl.log(total)
    tl.store(sums + row * 3, weight * (lse - tl.load(line + label).to(tl.float32)))
    tl.store(sums + row * 3 + 1, weight * z_loss * lse * lse)
    tl.store(sums + row * 3 + 2, tl.where(likeliest == label, weight, 0.0))
    if GRAD:
        tl.debug_barrier()  # every thread has read the label's logit
        scale = weight * (1.0 + 2.0 * z_loss * lse)
        for start in range(0, V, BLOCK):
            c = start + tl.arange(0, BLOCK)
            x = tl.load(line + c, mask=c < V, other=-float("inf")).to(tl.float32)
            slope = tl.exp(x - lse) * scale - tl.where(c == label, weight, 0.0)
            tl.store(line + c, slope.to(logits.dtype.element_ty), mask=c < V)
