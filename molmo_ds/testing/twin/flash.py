"""The twin's flash attention over sequences of unequal lengths, by plain products in float32.

The operators of PyTorch that `ops/tree_attention/cascade.py` calls on a GPU: aten::_flash_attention_forward and
_flash_attention_backward, with the rules of flash-attn 2: half precision, heads of at most 256 channels in multiples of
eight, query heads a multiple of key-value heads. A causal mask ends at the last key.

Shapes: S queries, C keys, H heads, G key-value heads, d head width, n sequences.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

WIDEST = 256
HALF = (torch.float16, torch.bfloat16)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """[S, H, d], [C, G, d] twice -> output [S, H, d], log-sum-exp float32 [H, S], and three tensors without a use."""
    refuse(query, key, value, dropout_p)
    out = torch.empty_like(query)
    total = torch.empty(query.shape[1], len(query), device=query.device)
    for rows, columns in sequences(cum_seq_q, cum_seq_k, max_q, max_k):
        scores = scored(query[rows], key[columns], is_causal, scale)
        total[:, rows] = scores.logsumexp(-1)
        share = scores.softmax(-1)
        out[rows] = (share @ heads(value[columns], query.shape[1])).transpose(0, 1).to(out.dtype)
    empty = query.new_empty(0)
    state = torch.zeros(2, dtype=torch.int64, device=query.device)
    return out, total, state, empty, empty


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    refuse(query, key, value, dropout_p)
    count, groups = query.shape[1], key.shape[1]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
    for rows, columns in sequences(cum_seq_q, cum_seq_k, max_q, max_k):
        q, grad, given = (heads(x[rows], count) for x in (query, grad_out, out))
        k, v = (heads(x[columns], count) for x in (key, value))
        scores = scored(query[rows], key[columns], is_causal, scale)
        share = (scores - logsumexp[:, rows, None]).exp()
        of_scores = share * (grad @ v.transpose(1, 2) - (grad * given).sum(-1, keepdim=True))
        of_query[rows] = (of_scores @ k * factor).transpose(0, 1).to(query.dtype)
        of_k = of_scores.transpose(1, 2) @ q * factor
        of_v = share.transpose(1, 2) @ grad
        for whole, mine in ((of_key, of_k), (of_value, of_v)):
            summed = mine.unflatten(0, (groups, -1)).sum(1)
            whole[columns] = summed.transpose(0, 1).to(whole.dtype)
    return of_query, of_key, of_value


def refuse(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> None:
    """Raise what a GPU raises for what flash-attn does not take."""
    if any(x.dtype not in HALF for x in (query, key, value)):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    width = query.shape[-1]
    if width > WIDEST or width % 8:
        raise RuntimeError(f"FlashAttention takes heads of at most {WIDEST} in multiples of 8")
    if query.shape[1] % key.shape[1]:
        raise RuntimeError("Number of heads in key/value must divide number of heads in query")
    assert not dropout_p, "the twin's flash attention drops nothing"


def sequences(
    starts_q: Tensor, starts_k: Tensor, longest_q: int, longest_k: int
) -> Iterator[tuple[slice, slice]]:
    """The queries and keys of each sequence."""
    bounds = []
    for starts, longest in ((starts_q, longest_q), (starts_k, longest_k)):
        assert starts.dtype == torch.int32 and int(starts.diff().max()) <= longest
        bounds.append(starts.tolist())
    ends_q, ends_k = bounds
    for i in range(len(ends_q) - 1):
        yield slice(ends_q[i], ends_q[i + 1]), slice(ends_k[i], ends_k[i + 1])


def scored(query: Tensor, key: Tensor, is_causal: bool, scale: float | None) -> Tensor:
    """Scores float32 [H, S, C] of one sequence, -inf where a query does not see a key."""
    count = query.shape[1]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = heads(query, count) @ heads(key, count).transpose(1, 2) * factor
    if is_causal:
        seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=query.device)
        scores = scores.masked_fill(~seen.tril(len(key) - len(query)), -torch.inf)
    return scores


def heads(x: Tensor, count: int) -> Tensor:
    """[S, G, d] -> float32 [count, S, d], each head as often as queries share it."""
    return x.float().transpose(0, 1).repeat_interleave(count // x.shape[1], 0)
