"""Token embedding from two tables with image features added at their positions.

Shapes: B sequences, T tokens, D width, E rows of the base table, A rows of the extra table, M image features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops import dispatch


def splice(input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor) -> Tensor:
    """Embeddings [B, T, D] of input_ids [B, T], plus features [M, D] at positions [M].

    An id below E reads base [E, D], the others read extra [A, D] at id - E. A position indexes the B * T tokens; -1
    drops the feature; the other positions differ from each other. The result has base's type.
    """
    return dispatch.call("splice", input_ids, base, extra, features, positions)


@dispatch.implements("splice", "torch")
def _torch(input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor) -> Tensor:
    rows = base.shape[0]
    ids = input_ids.reshape(-1)
    additional = (ids >= rows)[:, None]
    low = F.embedding(ids.clamp(max=rows - 1), base)
    high = F.embedding((ids - rows).clamp(min=0), extra).to(low.dtype)
    added = torch.where((positions >= 0)[:, None], features, 0).to(low.dtype)  # row 0 receives zeros
    out = torch.where(additional, high, low).index_add(0, positions.clamp(min=0), added)
    return out.view(*input_ids.shape, -1)


@torch.library.custom_op("molmo_ds::splice", mutates_args=())
def _forward(input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor) -> Tensor:
    from molmo_ds.ops import triton_kernels

    tokens, width = input_ids.numel(), base.shape[1]
    at = torch.where(positions < 0, tokens, positions)  # features that go nowhere share the row behind the last
    row_at = torch.full((tokens + 1,), -1, dtype=torch.int32, device=base.device)
    row_at[at] = torch.arange(len(at), dtype=torch.int32, device=base.device)
    out = base.new_empty(*input_ids.shape, width)
    triton_kernels.splice[_grid(tokens, width)](
        input_ids.contiguous(), base.contiguous(), extra.contiguous(), features.contiguous(), row_at, out,
        base.shape[0], width, _block(width),
    )  # fmt: skip
    return out


@torch.library.custom_op("molmo_ds::splice_backward", mutates_args=())
def _backward(
    grad: Tensor, input_ids: Tensor, positions: Tensor, base: Tensor, extra: Tensor, features: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    from molmo_ds.ops import triton_kernels

    rows, width = base.shape
    grad, ids = grad.contiguous().view(-1, width), input_ids.flatten()
    of_base, of_extra, of_features = _backward_shape(grad, input_ids, positions, base, extra, features, needs)
    if needs[0]:
        words, order = ids.sort(stable=True)
        ends = torch.searchsorted(words, words, right=True)
        triton_kernels.splice_base_backward[_grid(len(words), width)](
            grad, words, order, ends, of_base.zero_(), rows, width, _block(width)
        )
    if needs[1]:  # few words, each many times (the image tokens): a matrix product of ones and zeros
        chosen = (ids - rows)[None] == torch.arange(len(extra), device=ids.device)[:, None]
        of_extra.copy_(chosen.to(grad.dtype) @ grad)
    if needs[2]:
        triton_kernels.splice_features_backward[_grid(len(positions), width)](
            grad, positions.contiguous(), of_features, width, _block(width)
        )
    return of_base, of_extra, of_features


@_forward.register_fake
def _forward_shape(input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor) -> Tensor:
    return base.new_empty(*input_ids.shape, base.shape[1])


@_backward.register_fake
def _backward_shape(
    grad: Tensor, input_ids: Tensor, positions: Tensor, base: Tensor, extra: Tensor, features: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = [x.shape if need else (0,) for x, need in zip((base, extra, features), needs)]
    return base.new_empty(sizes[0]), extra.new_empty(sizes[1]), features.new_empty(sizes[2])


def _save(ctx, inputs: tuple, output: Tensor) -> None:  # noqa: ANN001
    input_ids, base, extra, features, positions = inputs
    ctx.save_for_backward(input_ids, positions, base, extra, features)


def _gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN001
    needs = list(ctx.needs_input_grad[1:4])
    grads = _backward(grad, *ctx.saved_tensors, needs)
    return None, *(g if need else None for g, need in zip(grads, needs)), None


_forward.register_autograd(_gradients, setup_context=_save)


@dispatch.implements("splice", "triton", lambda ids, *tables: dispatch.on_gpu(*tables[:3]))
def _triton(input_ids: Tensor, base: Tensor, extra: Tensor, features: Tensor, positions: Tensor) -> Tensor:
    return _forward(input_ids, base, extra, features, positions)


def _block(width: int) -> int:
    return min(1024, 1 << (width - 1).bit_length())


def _grid(rows: int, width: int) -> tuple[int, int]:
    return rows, -(-width // _block(width))
