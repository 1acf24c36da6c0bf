"""The rows of the loss on a CPU in fewer passes over the logits: by a kernel (`rows.cpp`), or by one fused softmax.

Of the softmax, which serves other types and machines without the kernel: the largest share of a row is
1 / sum(exp(x - max)), so logsumexp is the largest logit less its logarithm. The likeliest word is searched only where
the label's logit is a largest one.

Shapes: n rows of a chunk, V words.
"""

from typing import Any

import torch
from torch import Tensor

from molmo_ds.ops.cpu_library import FLOAT, INTEGER, POINTER, Kernel, takes
from molmo_ds.ops.weighted_cross_entropy import chunks

_run = Kernel("loss_rows", *[POINTER] * 4, INTEGER, INTEGER, FLOAT, INTEGER)


def usable(hidden: Tensor, *others: Any) -> bool:
    """Whether the tensors lie on a CPU."""
    return hidden.device.type == "cpu"


def rows(logits: Tensor, labels: Tensor, weights: Tensor, z_loss: float, grad: bool) -> Tensor:
    """Sums [n, 3] of each row; with `grad` the logits [n, V] are overwritten by their gradient."""
    if takes(logits, weights) and logits.is_contiguous():
        sums = weights.new_empty(len(logits), 3)
        tensors = (logits, labels.long().contiguous(), weights.contiguous(), sums)
        _run(*(tensor.data_ptr() for tensor in tensors), *logits.shape, z_loss, grad)
        return sums
    return _by_softmax(logits, labels, weights, z_loss, grad)


def _by_softmax(
    logits: Tensor, labels: Tensor, weights: Tensor, z_loss: float, grad: bool
) -> Tensor:
    wide = logits.to(weights.dtype)
    index = torch.arange(len(logits))
    at_label = wide[index, labels]
    top = wide.amax(-1)
    right = at_label == top
    equals = right.nonzero()[:, 0]
    # the first of equal logits counts, as in torch.argmax
    right[equals] = wide[equals].argmax(-1) == labels[equals]
    # in place where the logits are wanted no more
    free = grad or wide is not logits
    shares = torch.softmax(wide, -1, out=wide) if free else torch.softmax(wide, -1)
    lse = top - shares.amax(-1).log()
    sums = torch.stack((lse - at_label, z_loss * lse**2, right.to(wide.dtype)), -1)
    if grad:
        shares.mul_((weights * (1 + 2 * z_loss * lse))[:, None])
        shares[index, labels] -= weights
        if shares is not logits:
            logits.copy_(shares)
    return sums * weights[:, None]


chunks.ROWS["cpu"] = rows
