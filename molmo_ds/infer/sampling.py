"""Which token comes next.

A draw is a pure function of (seed, answer, place in the answer): it does not depend on the rank, the slot or the batch
in which the answer is computed.

Shapes: R rows, E words of the head, S ranks that hold a share of the words each.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from molmo_ds.engine.answering.share import Share
from molmo_ds.infer.options import Options

BITS = 24  # of a draw: what float32 holds exactly


class Choice(NamedTuple):
    """One token per row."""

    tokens: Tensor  # int64 [R]
    log_probabilities: Tensor  # float32 [R]
    top_tokens: Tensor  # int64 [R, n], the likeliest first
    top_log_probabilities: Tensor  # float32 [R, n]


def draw(seed: int, name: str, place: int) -> float:
    """A uniform number in [0, 1) for one token of one answer."""
    words = f"{seed}/{place}/{name}".encode()
    digest = hashlib.blake2b(words, digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    return (number >> (64 - BITS)) / 2**BITS


def next_tokens(
    share: Share,
    hidden: Tensor,
    options: Sequence[Options],
    draws: Sequence[float],
) -> Choice:
    """The choice from hidden states [R, D] of the last layer, on each rank that shares the words.

    The likeliest token needs three numbers a row and rank; what else is asked needs all logits, 39 MB for 64 rows of
    152,064 words.
    """
    logits = share.head.logits(hidden)
    if any(one.temperature or one.logprobs for one in options):
        return choose(share.all_words(logits), options, draws)
    mine = summary(logits, share.first_word)
    return greedy(share.gather(mine))


def choose(logits: Tensor, options: Sequence[Options], draws: Sequence[float]) -> Choice:
    """A token for each row of logits [R, E]; `draws[r]` picks it where the temperature of row r is not 0."""
    logits = logits.float()
    tokens = logits.argmax(-1)
    if any(one.temperature for one in options):
        drawn = _there([one.temperature > 0 for one in options], logits)
        words = sample(logits, options, draws)
        tokens = torch.where(drawn, words, tokens)
    known = logits.log_softmax(-1)
    most = max((one.logprobs for one in options), default=0)
    likeliest = known.topk(most, -1)
    return Choice(
        tokens=tokens,
        log_probabilities=known.gather(1, tokens[:, None])[:, 0],
        top_tokens=likeliest.indices,
        top_log_probabilities=likeliest.values,
    )


def sample(logits: Tensor, options: Sequence[Options], draws: Sequence[float]) -> Tensor:
    """int64 [R]: words drawn from softmax(logits / temperature) within top_k and top_p; logits float32 [R, E].

    A draw is a place in the words' order, not in that of their shares: two equally likely words change places in the
    latter by the last bit of a logit, which depends on the batch and the layout.
    """
    tiny = torch.finfo(torch.float32).tiny
    temperature = _there([max(one.temperature, tiny) for one in options], logits)
    best = logits.amax(-1, keepdim=True)  # taken off first, so that no temperature is too small
    scaled = (logits - best) / temperature[:, None]
    share = scaled.softmax(-1)
    if any(one.top_k or one.top_p < 1 for one in options):
        share = likely(share, options)
    level = share.double().cumsum(-1)
    chance = _there(list(draws), logits).double()
    wanted = chance[:, None] * level[:, -1:]
    place = (level <= wanted).sum(-1)
    index = torch.arange(logits.shape[-1], device=logits.device)
    last = torch.where(share > 0, index, 0).amax(-1)
    return torch.minimum(place, last)


def likely(share: Tensor, options: Sequence[Options]) -> Tensor:
    """The shares [R, E] of the words within top_k and top_p, 0 for the others; a row without limits stays as it is."""
    words = share.shape[-1]
    top_k = _there([one.top_k or words for one in options], share)[:, None]
    top_p = _there([one.top_p for one in options], share)[:, None]
    ordered, order = share.sort(descending=True, stable=True)
    rank = torch.arange(words, device=share.device)
    ordered = torch.where(rank < top_k, ordered, 0)
    # the word that crosses top_p stays
    before = ordered.cumsum(-1) - ordered
    whole = ordered.sum(-1, keepdim=True)
    within = (before < top_p * whole) | (top_p == 1)
    ordered = torch.where(within, ordered, 0)
    return torch.zeros_like(share).scatter(1, order, ordered)


def summary(logits: Tensor, first: int) -> Tensor:
    """float64 [R, 3] of a share of the words: the largest logit, its word, log-sum-exp; word `first` is at index 0."""
    logits = logits.float()
    value, index = logits.max(-1)
    columns = (value, index + first, logits.logsumexp(-1))
    return torch.stack([column.double() for column in columns], -1)


def greedy(summaries: Tensor) -> Choice:
    """The likeliest tokens from the summaries [S, R, 3] of all shares; of equal ones the first, as argmax does."""
    value, word, total = summaries.unbind(-1)
    best = value.argmax(0, keepdim=True)
    chosen = value.gather(0, best)[0]
    tokens = word.gather(0, best)[0].long()
    nothing = tokens.new_zeros(len(tokens), 0)
    known = chosen - total.logsumexp(0)
    return Choice(
        tokens=tokens,
        log_probabilities=known.float(),
        top_tokens=nothing,
        top_log_probabilities=nothing.float(),
    )


def _there(values: list, like: Tensor) -> Tensor:
    dtype = torch.float32 if isinstance(values[0], float) else None
    made = torch.tensor(values, dtype=dtype)
    return made.to(like.device, non_blocking=True)
