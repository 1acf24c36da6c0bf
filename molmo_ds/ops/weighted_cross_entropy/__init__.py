"""Cross-entropy with a weight per token and the z-loss, without ever holding the logits of more than one chunk.

The reference holds all logits at once; what runs as "torch" is the chunked one (`chunks.py`) on plain PyTorch. Shapes:
R rows, D width, V words.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.weighted_cross_entropy import chunks, cpu, sharded
from molmo_ds.ops.weighted_cross_entropy.chunks import CHUNK_ELEMENTS

__all__ = ["CHUNK_ELEMENTS", "weighted_cross_entropy"]

OP = "weighted_cross_entropy"
dispatch.register(OP, "torch", chunks.weighted_cross_entropy)
dispatch.register(OP, "cpu", partial(chunks.weighted_cross_entropy, by="cpu"), cpu.usable)
if dispatch.HAS_TRITON:
    from molmo_ds.ops.weighted_cross_entropy import triton

    by_triton = partial(chunks.weighted_cross_entropy, by="triton")
    dispatch.register(OP, "triton", by_triton, triton.usable)


def weighted_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    z_loss: float,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Three float32 sums over the rows: w * ce, w * z_loss * logsumexp^2, and w where the likeliest word is the label.

    hidden [R, D] times the head weight [V, D] gives the logits, in autocast's type where that is on; labels [R];
    loss_weights float [R]. A row of weight 0 is not learnt, whatever its label (an image token, padding): it is never
    looked up, but costs as much as another, so leave it out. A label beyond the head's words that has a weight is a
    ValueError (on a GPU an assertion, since nothing waits for it).

    The gradients are computed in the forward pass, for the sum of the first two results: both must enter the loss with
    one factor, and backward runs once (RuntimeError otherwise).

    Rows may be split over ranks as they are (sequence parallelism): sums and head gradient add up. With `group` the
    words are split (tensor parallelism): rank i of the group passes rows i * V ... of the whole head and the same
    hidden, labels and weights as the others; all get the whole sums and the whole gradient of hidden.
    """
    shards = 1 if group is None else dist.get_world_size(group)
    labels = _looked_up(labels, loss_weights, len(weight) * shards)
    grad = torch.is_grad_enabled()
    needs = (grad and hidden.requires_grad, grad and weight.requires_grad)
    device = hidden.device.type
    casts = device in CHUNK_ELEMENTS and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if casts else weight.dtype
    if group is not None:
        return sharded.weighted_cross_entropy(
            hidden, weight, labels, loss_weights, z_loss, needs, dtype, group
        )
    return dispatch.call(OP, hidden, weight, labels, loss_weights, z_loss, needs, dtype)


def _looked_up(labels: Tensor, loss_weights: Tensor, words: int) -> Tensor:
    # the labels with 0 where nothing is learnt; what is left lies in the head
    labels = torch.where(loss_weights != 0, labels, 0)
    inside = ((labels >= 0) & (labels < words)).all()
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(
            inside, f"a label with a loss weight is not among the head's {words} words"
        )
    elif not inside:
        row = int(((labels < 0) | (labels >= words)).nonzero()[0])
        raise ValueError(
            f"The label {int(labels[row])} of row {row} has a loss weight, but the head knows the words 0 to "
            f"{words - 1}; give tokens that are not learnt the weight 0, or the model a larger embedding_size."
        )
    return labels
