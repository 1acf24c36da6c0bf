"""Cross-entropy with a weight per token and the z-loss, without ever holding the logits of more than one chunk.

Shapes: R rows, D width, V words.
"""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from molmo_ds.ops import dispatch
from molmo_ds.ops.linear import product

CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}  # logits held at once


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
    labels = _looked_up(labels, loss_weights, len(weight) * (1 if group is None else dist.get_world_size(group)))
    grad = torch.is_grad_enabled()
    needs = (grad and hidden.requires_grad, grad and weight.requires_grad)
    device = hidden.device.type
    casts = device in CHUNK_ELEMENTS and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if casts else weight.dtype
    if group is not None:
        return _Sharded.apply(hidden, weight, labels, loss_weights, z_loss, needs, dtype, group).unbind()
    return dispatch.call("weighted_cross_entropy", hidden, weight, labels, loss_weights, z_loss, needs, dtype)


def _looked_up(labels: Tensor, loss_weights: Tensor, words: int) -> Tensor:
    # the labels with 0 where nothing is learnt; what is left lies in the head
    labels = torch.where(loss_weights != 0, labels, 0)
    inside = ((labels >= 0) & (labels < words)).all()
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        if not inside:
            row = int(((labels < 0) | (labels >= words)).nonzero()[0])
            raise ValueError(
                f"The label {int(labels[row])} of row {row} has a loss weight, but the head knows the words 0 to "
                f"{words - 1}; give tokens that are not learnt the weight 0, or the model a larger embedding_size."
            )
    else:
        torch._assert_async(inside, f"a label with a loss weight is not among the head's {words} words")
    return labels


def reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, loss_weights: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, all logits at once: what the tests compare with."""
    logits = hidden @ weight.T
    labels = torch.where(loss_weights != 0, labels, 0)
    lse = logits.logsumexp(-1)
    ce = lse - logits.gather(-1, labels[:, None])[:, 0]
    right = (logits.argmax(-1) == labels).to(loss_weights.dtype)
    return (loss_weights * ce).sum(), (loss_weights * z_loss * lse**2).sum(), (loss_weights * right).sum()


@torch.library.custom_op("molmo_ds::weighted_cross_entropy", mutates_args=())
def _loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    z_loss: float,
    needs: list[bool],
    dtype: torch.dtype,
    kernel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # -> sums [3] and the gradients of sums[0] + sums[1] by hidden and weight (without elements where not needed)
    rows = _rows_triton if kernel else _rows_torch
    return _chunks(hidden, weight, labels, loss_weights, z_loss, needs, dtype, rows)


@_loss.register_fake
def _loss_shape(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    z_loss: float,
    needs: list[bool],
    dtype: torch.dtype,
    kernel: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = [x.shape if need else (0,) for x, need in zip((hidden, weight), needs)]
    return _sums_type(hidden).new_empty(3), hidden.new_empty(sizes[0]), weight.new_empty(sizes[1])


def _save(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:  # noqa: ANN001
    ctx.save_for_backward(*output[1:])
    ctx.z_loss, ctx.needs = inputs[4], inputs[5]
    ctx.set_materialize_grads(False)  # the gradients that come out have no gradients themselves


def _gradients(ctx, of_sums: Tensor, *unused: None) -> tuple[Tensor | None, ...]:  # noqa: ANN001
    if ctx.z_loss:
        torch._assert_async(of_sums[0] == of_sums[1], "use ce_sum + z_sum: the two sums share one gradient")
    scale = torch.mul if torch.compiler.is_compiling() else Tensor.mul_  # in place: the head's gradient is large
    grads = [scale(g, of_sums[0].to(g.dtype)) if need else None for g, need in zip(ctx.saved_tensors, ctx.needs)]
    return *grads, None, None, None, None, None, None


_loss.register_autograd(_gradients, setup_context=_save)


@dispatch.implements("weighted_cross_entropy", "torch")
def _torch(hidden: Tensor, weight: Tensor, labels: Tensor, loss_weights: Tensor, z_loss: float, needs, dtype) -> tuple:  # noqa: ANN001
    return _loss(hidden, weight, labels, loss_weights, z_loss, list(needs), dtype, False)[0].unbind()


@dispatch.implements("weighted_cross_entropy", "triton", lambda hidden, weight, *rest: dispatch.on_gpu(hidden, weight))
def _triton(hidden: Tensor, weight: Tensor, labels: Tensor, loss_weights: Tensor, z_loss: float, needs, dtype) -> tuple:  # noqa: ANN001
    return _loss(hidden, weight, labels, loss_weights, z_loss, list(needs), dtype, True)[0].unbind()


class _Sharded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, loss_weights, z_loss, needs, dtype, group) -> Tensor:  # noqa: ANN001
        rows = functools.partial(_rows_sharded, group=group)
        sums, *grads = _chunks(hidden, weight, labels, loss_weights, z_loss, needs, dtype, rows)
        if needs[0]:
            dist.all_reduce(grads[0], group=group)
        ctx.save_for_backward(*grads)
        ctx.z_loss, ctx.needs = z_loss, needs
        return sums

    @staticmethod
    def backward(ctx, of_sums: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN001
        return _gradients(ctx, of_sums)


def _chunks(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    z_loss: float,
    needs: Sequence[bool],
    dtype: torch.dtype,
    rows: Callable[[Tensor, Tensor, Tensor, float, bool], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _sums_type(hidden)
    total = wide.new_zeros(3)
    of_hidden = torch.empty_like(hidden) if needs[0] else hidden.new_empty(0)
    of_weight = torch.zeros_like(weight, dtype=wide.dtype) if needs[1] else weight.new_empty(0)
    step = max(16, CHUNK_ELEMENTS[hidden.device.type] // len(weight))
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        head = weight.to(dtype)
        on_cpu = hidden.device.type == "cpu"
        buffer = None if on_cpu else head.new_empty(min(step, len(hidden)), len(head))
        for chunk in (slice(start, start + step) for start in range(0, len(hidden), step)):
            x = hidden[chunk].to(dtype)
            logits = product(x, head) if on_cpu else torch.mm(x, head.T, out=buffer[: len(x)])
            total += rows(logits, labels[chunk], loss_weights[chunk].to(wide.dtype), z_loss, any(needs)).sum(0)
            if needs[0]:
                of_hidden[chunk] = product(logits, head.T).to(hidden.dtype)
            if needs[1]:
                _add_product(of_weight, logits.T, x)
    return total, of_hidden, of_weight.to(weight.dtype)


def _rows_torch(logits: Tensor, labels: Tensor, weights: Tensor, z_loss: float, grad: bool) -> Tensor:
    """Sums [n, 3] of each row; with `grad` the logits [n, V] are overwritten by their gradient."""
    wide, index = logits.to(weights.dtype), torch.arange(len(logits), device=logits.device)
    lse = wide.logsumexp(-1)
    right = wide.argmax(-1) == labels
    sums = torch.stack((lse - wide[index, labels], z_loss * lse**2, right.to(wide.dtype)), -1) * weights[:, None]
    if grad:
        slope = wide.sub_(lse[:, None]).exp_().mul_((weights * (1 + 2 * z_loss * lse))[:, None])
        slope[index, labels] -= weights
        if slope is not logits:
            logits.copy_(slope)
    return sums


def _rows_triton(logits: Tensor, labels: Tensor, weights: Tensor, z_loss: float, grad: bool) -> Tensor:
    from molmo_ds.ops import triton_kernels

    rows, words = logits.shape
    sums = torch.empty(rows, 3, device=logits.device)
    triton_kernels.cross_entropy_rows[(rows,)](
        logits, labels.contiguous(), weights, sums, z_loss, words, logits.stride(0), grad,
        min(4096, 1 << (words - 1).bit_length()), num_warps=8,
    )  # fmt: skip
    return sums


def _rows_sharded(
    logits: Tensor, labels: Tensor, weights: Tensor, z_loss: float, grad: bool, group: dist.ProcessGroup
) -> Tensor:
    # as _rows_torch, for the words rank * V ... of this rank
    wide, index = logits.to(weights.dtype), torch.arange(len(logits), device=logits.device)
    top, first = wide.max(-1)
    shares = wide.new_empty(dist.get_world_size(group) * len(wide), 2)
    own = torch.stack((wide.logsumexp(-1), top), -1)
    dist.all_gather_into_tensor(shares, own, group=group)
    shares = shares.view(-1, *own.shape)
    lse, winner = shares[..., 0].logsumexp(0), shares[..., 1].argmax(0)  # the lowest rank of equals, as argmax
    mine = labels - dist.get_rank(group) * wide.shape[1]
    here = (mine >= 0) & (mine < wide.shape[1])
    mine = mine.clamp(0, wide.shape[1] - 1)
    right = here & (winner == dist.get_rank(group)) & (first == mine)
    split = torch.stack((torch.where(here, wide[index, mine], 0), right.to(wide.dtype)), -1)
    dist.all_reduce(split, group=group)
    sums = torch.stack((lse - split[:, 0], z_loss * lse**2, split[:, 1]), -1) * weights[:, None]
    if grad:
        slope = wide.sub_(lse[:, None]).exp_().mul_((weights * (1 + 2 * z_loss * lse))[:, None])
        slope[index, mine] -= torch.where(here, weights, 0)
        if slope is not logits:
            logits.copy_(slope)
    return sums


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if not a.is_cuda:
        total += product(a, b.T)
    elif total.dtype == a.dtype:
        total.addmm_(a, b)
    elif _adds_to_float32():
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += torch.mm(a, b, out_dtype=total.dtype)


@functools.cache
def _adds_to_float32() -> bool:
    # whether this PyTorch adds a product of half precision to a float32 matrix; older ones want one type for all
    half = torch.zeros(8, 8, dtype=torch.bfloat16, device="cuda")
    total = half.float()
    try:
        torch.addmm(total, half, half, out_dtype=torch.float32, out=total)
    except RuntimeError:
        return False
    return True


def _sums_type(hidden: Tensor) -> Tensor:
    return hidden.new_empty(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
