"""Cross-entropy with a weight per token and the z-loss, without ever holding the logits of more than one chunk.

Shapes: R rows, D width, V words.
"""

import torch
from torch import Tensor

from molmo_ds.ops import dispatch

CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}  # logits held at once


def weighted_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, loss_weights: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Three float32 sums over the rows: w * ce, w * z_loss * logsumexp^2, and w where the likeliest word is the label.

    hidden [R, D] times the head weight [V, D] gives the logits, in autocast's type where that is on; labels [R];
    loss_weights float [R], rows of weight 0 cost nothing. The gradients are computed in the forward pass, for the sum
    of the first two results: both must enter the loss with one factor (RuntimeError otherwise).
    """
    grad = torch.is_grad_enabled()
    needs = (grad and hidden.requires_grad, grad and weight.requires_grad)
    device = hidden.device.type
    casts = device in CHUNK_ELEMENTS and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if casts else None
    return dispatch.call("weighted_cross_entropy", hidden, weight, labels, loss_weights, z_loss, needs, dtype)


def reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, loss_weights: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, all logits at once: what the tests compare with."""
    logits = hidden @ weight.T
    lse = logits.logsumexp(-1)
    ce = lse - logits.gather(-1, labels[:, None])[:, 0]
    right = (logits.argmax(-1) == labels).to(loss_weights.dtype)
    return (loss_weights * ce).sum(), (loss_weights * z_loss * lse**2).sum(), (loss_weights * right).sum()


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, loss_weights, z_loss, needs, dtype):  # noqa: ANN001, ANN205
        sums, grads = _chunked(hidden, weight, labels, loss_weights, z_loss, needs, dtype)
        ctx.save_for_backward(*grads)
        ctx.z_loss = z_loss
        return sums.unbind()

    @staticmethod
    def backward(ctx, of_ce, of_z, of_accuracy):  # noqa: ANN001, ANN205
        if ctx.z_loss:
            torch._assert_async(of_ce == of_z, "use ce_sum + z_sum: the two sums share one gradient")
        return *(None if g is None else g * of_ce.to(g.dtype) for g in ctx.saved_tensors), None, None, None, None, None


@dispatch.implements("weighted_cross_entropy", "torch")
def _torch(hidden, weight, labels, loss_weights, z_loss, needs, dtype):  # noqa: ANN001, ANN202
    return _Loss.apply(hidden, weight, labels, loss_weights, z_loss, needs, dtype)


def _chunked(
    hidden: Tensor, weight: Tensor, labels: Tensor, loss_weights: Tensor, z_loss: float, needs: tuple[bool, bool], dtype
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    sums = torch.zeros(3, dtype=wide, device=hidden.device)
    grads = [torch.zeros_like(x) if need else None for x, need in zip((hidden, weight), needs)]
    if hidden.is_meta:
        return sums, tuple(grads)
    kept = loss_weights.nonzero()[:, 0]
    step = max(16, CHUNK_ELEMENTS[hidden.device.type] // weight.shape[0])
    head = weight.to(dtype or weight.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in kept.split(step):
            x, label, w = hidden[rows].to(head.dtype), labels[rows], loss_weights[rows].to(wide)
            logits = (x @ head.T).to(wide)
            index = torch.arange(len(rows), device=rows.device)
            lse = logits.logsumexp(-1)
            sums[0] += (w * (lse - logits[index, label])).sum()
            sums[1] += (w * z_loss * lse**2).sum()
            sums[2] += (w * (logits.argmax(-1) == label)).sum()
            if not any(needs):
                continue
            slope = logits.sub_(lse[:, None]).exp_().mul_((w * (1 + 2 * z_loss * lse))[:, None])
            slope[index, label] -= w
            slope = slope.to(head.dtype)
            if needs[0]:
                grads[0][rows] = (slope @ head).to(hidden.dtype)
            if needs[1]:
                grads[1] += slope.T @ x
    return sums, tuple(grads)
