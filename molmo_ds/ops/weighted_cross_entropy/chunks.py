"""The loss in chunks of rows, whose logits are held one chunk at a time; gradients are computed in the forward pass.

Shapes: R rows, D width, V words, n rows of a chunk.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from molmo_ds.ops.linear import add_product, product

CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}  # logits held at once
Rows = Callable[[Tensor, Tensor, Tensor, float, bool], Tensor]


def weighted_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    z_loss: float,
    needs: tuple[bool, bool],
    dtype: torch.dtype,
    by: str = "torch",
) -> tuple[Tensor, ...]:
    """The three sums of hidden [R, D], weight [V, D], labels [R] and loss_weights [R], with logits in `dtype`.

    `by` names what computes a chunk's rows: a key of ROWS.
    """
    sums, _, _ = loss(hidden, weight, labels, loss_weights, z_loss, list(needs), dtype, by)
    return sums.unbind()


@torch.library.custom_op("molmo_ds::weighted_cross_entropy", mutates_args=())
def loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    z_loss: float,
    needs: list[bool],
    dtype: torch.dtype,
    by: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums [3] and the gradients of sums[0] + sums[1] by hidden and weight (without elements where not needed).

    `by` names what computes a chunk's rows: a key of ROWS.
    """
    return run(hidden, weight, labels, loss_weights, z_loss, needs, dtype, ROWS[by])


@loss.register_fake
def _shape(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    z_loss: float,
    needs: list[bool],
    dtype: torch.dtype,
    by: str,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = [x.shape if need else (0,) for x, need in zip((hidden, weight), needs)]
    sums = hidden.new_empty(3, dtype=_sums_type(hidden))
    return sums, hidden.new_empty(sizes[0]), weight.new_empty(sizes[1])


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.z_loss = inputs[4]
    ctx.needs = inputs[5]
    ctx.set_materialize_grads(False)  # the gradients that come out have no gradients themselves


def gradients(ctx: Any, of_sums: Tensor, *unused: None) -> tuple[Tensor | None, ...]:
    """The saved gradients times that of the sums, for the eight arguments of a function that saved z_loss and needs."""
    if ctx.z_loss:
        torch._assert_async(
            of_sums[0] == of_sums[1], "use ce_sum + z_sum: the two sums share one gradient"
        )
    # in place: the head's gradient is large
    scale = torch.mul if torch.compiler.is_compiling() else Tensor.mul_
    grads = [
        scale(g, of_sums[0].to(g.dtype)) if need else None
        for g, need in zip(ctx.saved_tensors, ctx.needs)
    ]
    return *grads, None, None, None, None, None, None


loss.register_autograd(gradients, setup_context=_save)


def run(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    z_loss: float,
    needs: Sequence[bool],
    dtype: torch.dtype,
    rows: Rows,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums [3] and both gradients, as `loss` returns them, with `rows` for the rows of each chunk."""
    wide = _sums_type(hidden)
    total = hidden.new_zeros(3, dtype=wide)
    of_hidden = torch.empty_like(hidden) if needs[0] else hidden.new_empty(0)
    of_weight = torch.zeros_like(weight, dtype=wide) if needs[1] else weight.new_empty(0)
    step = max(16, CHUNK_ELEMENTS[hidden.device.type] // len(weight))
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        head = weight.to(dtype)
        on_cpu = hidden.device.type == "cpu"
        buffer = None if on_cpu else head.new_empty(min(step, len(hidden)), len(head))
        for chunk in (slice(start, start + step) for start in range(0, len(hidden), step)):
            x = hidden[chunk].to(dtype)
            logits = product(x, head) if on_cpu else torch.mm(x, head.T, out=buffer[: len(x)])
            weights = loss_weights[chunk].to(wide)
            total += rows(logits, labels[chunk], weights, z_loss, any(needs)).sum(0)
            if needs[0]:
                of_hidden[chunk] = product(logits, head.T).to(hidden.dtype)
            if needs[1]:
                _add_product(of_weight, logits.T, x)
    return total, of_hidden, of_weight.to(weight.dtype)


def rows_torch(
    logits: Tensor, labels: Tensor, weights: Tensor, z_loss: float, grad: bool
) -> Tensor:
    """Sums [n, 3] of each row; with `grad` the logits [n, V] are overwritten by their gradient."""
    wide = logits.to(weights.dtype)
    index = torch.arange(len(logits), device=logits.device)
    lse = wide.logsumexp(-1)
    right = wide.argmax(-1) == labels
    sums = (
        torch.stack((lse - wide[index, labels], z_loss * lse**2, right.to(wide.dtype)), -1)
        * weights[:, None]
    )
    if grad:
        overwrite(logits, wide, lse, weights, z_loss, labels, weights)
    return sums


ROWS: dict[str, Rows] = {"torch": rows_torch}  # a faster one adds itself


def overwrite(
    logits: Tensor,
    wide: Tensor,
    lse: Tensor,
    weights: Tensor,
    z_loss: float,
    labels: Tensor,
    at_label: Tensor,
) -> None:
    """Put the gradient into logits [n, V]: w * (1 + 2 * z_loss * lse) * softmax, less at_label [n] at the labels.

    `wide` is the logits in the type of `weights`, or the logits themselves, and is overwritten.
    """
    factor = weights * (1 + 2 * z_loss * lse)
    slope = wide.sub_(lse[:, None]).exp_().mul_(factor[:, None])
    slope[torch.arange(len(logits), device=logits.device), labels] -= at_label
    if slope is not logits:
        logits.copy_(slope)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if not a.is_cuda:
        add_product(total, a, b.T)
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


def _sums_type(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)
