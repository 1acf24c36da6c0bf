"""Text from prompts: a KV cache, greedy decoding, sampling and beam search, in one piece or token by token.

Shapes: B prompts, T prompt tokens (padded on the right), K beams, L new tokens, E words of the head, S cached tokens.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.batch import Batch
from molmo_ds.model.carry import Carry
from molmo_ds.model.decoder import Core
from molmo_ds.model.molmo import Molmo

log = logging.getLogger(__name__)
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Options:
    """How tokens are chosen."""

    max_new_tokens: int = 192
    temperature: float = 0.0  # 0 = the likeliest token
    top_k: int = 0  # 0 = all
    top_p: float = 1.0  # the smallest set of words with this share
    beams: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()  # a row ends where one of these appears

    def __post_init__(self):
        for name, least in (("max_new_tokens", 1), ("beams", 1), ("top_k", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it is a whole number of at least {least}.")
        if not _is_number(self.temperature) or self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature!r}; it is a finite number and not negative.")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p lies above 0 and up to 1, and is {self.top_p!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed!r}; it is a whole number of 64 bits.")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop is {self.stop!r}; it holds texts, and none that is empty, which every answer has.")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("Beam search does not sample; use beams=1 or temperature=0.")


@dataclass(frozen=True)
class Generation:
    """What was generated, best beam first."""

    token_ids: Tensor  # int64 [B, K, L], the end token behind the end
    scores: Tensor  # float32 [B, K], sum of the tokens' log-probabilities, the end token included
    eos: int
    stop: tuple[str, ...]
    cut: Tensor  # bool [B], whether the best answer ended at the last position that the model knows, and not by itself

    def ids(self, row: int, beam: int = 0) -> list[int]:
        """Token ids of one answer, without the end token."""
        ids = self.token_ids[row, beam].tolist()
        return ids[: ids.index(self.eos)] if self.eos in ids else ids

    def texts(self, decode: Decode) -> list[str]:
        """The best answer to every prompt, cut before a stop string."""
        return [cut(decode(self.ids(row)), self.stop) for row in range(len(self.token_ids))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def cut(text: str, stop: tuple[str, ...]) -> str:
    """`text` up to the first stop string."""
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


class CachedCore(Core):
    """Attention that keeps the keys and values [B, G, capacity, d] of one layer; its plan comes from the session."""

    def __init__(self, session: "Session"):
        self.session, self.cache = session, None

    def plan(self, x: Carry, dtype: torch.dtype) -> object:
        """The prompt's own plan, then masks [B, 1, 1, S] of what a new token sees."""
        return super().plan(x, dtype) if self.session.size == 0 else self.session.mask(dtype)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: object, dropout_p: float) -> Tensor:
        """As in `Core`."""
        start, end = self.session.size, self.session.size + k.shape[2]
        if start == 0:
            shape = (*k.shape[:2], self.session.capacity, k.shape[3])
            self.cache = [k.new_zeros(shape), v.new_zeros(shape)]
        for kept, new in zip(self.cache, (k, v)):
            kept[:, :, start:end] = new
        if start == 0:
            return super().__call__(q, k, v, plan, 0.0)
        keys, values = (kept[:, :, :end] for kept in self.cache)
        grouped = q.reshape(
            len(q), k.shape[1], -1, q.shape[-1]
        )  # the heads of a group as queries: no copy of the cache
        return F.scaled_dot_product_attention(grouped, keys, values, plan).reshape(q.shape)


class Session:
    """A model with a KV cache for one batch of prompts; as a context manager it puts the model's own cores back.

    A row of `prompts` is one conversation, padded on the right with document 0; the answer continues its last token.
    `room` [B] counts the new tokens of each row up to the last position that the model knows. Raises ValueError where a
    prompt leaves none.
    """

    def __init__(self, model: Molmo, prompts: Batch, max_new_tokens: int):
        self.model, self.prompts, self.size = model, prompts, 0
        batch, tokens = prompts.input_ids.shape
        self.rows = torch.arange(batch, device=prompts.input_ids.device)
        index = torch.arange(tokens, device=self.rows.device)
        self.last = torch.where(prompts.document_ids != 0, index, 0).amax(1)
        last = self.last[:, None]
        document, branch = prompts.document_ids, prompts.branch_ids
        seen = (document == document.gather(1, last)) & ((branch == 0) | (branch == branch.gather(1, last)))
        self.position = prompts.position_ids.gather(1, last)
        known = model.config.text.max_position_embeddings
        self.room = known - 1 - self.position[:, 0]
        if int(self.room.min()) < 1:
            longest = int(self.position.max()) + 1
            raise ValueError(f"The prompt has {longest} tokens and the model knows {known} positions; make it shorter.")
        self.steps = min(max_new_tokens, known)  # not fewer: ranks that step together have other rows
        self.capacity = tokens + self.steps
        self.seen = F.pad(seen, (0, self.steps), value=True)

    def __enter__(self) -> "Session":
        self.attentions = [layer.self_attn for layer in self.model.layers]
        self.cores = [attention.core for attention in self.attentions]
        for attention in self.attentions:
            attention.core = CachedCore(self)
        return self

    def __exit__(self, *_: object) -> None:
        for attention, core in zip(self.attentions, self.cores):
            attention.core = core

    def mask(self, dtype: torch.dtype) -> Tensor:
        """[B, 1, 1, S]: 0 where the newest token sees a cached one, -inf elsewhere."""
        seen = self.seen[:, None, None, : self.size + 1]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))

    def first(self) -> Tensor:
        """Logits [B, E] behind the prompts."""
        hidden = self.model.body(self.prompts).hidden
        self.size = hidden.shape[1]
        return self.model.head.logits(hidden[self.rows, self.last])

    def next(self, tokens: Tensor) -> Tensor:
        """Logits [B, E] behind one more token [B] per row."""
        self.position = self.position + 1
        ids = tokens[:, None]
        x = Carry(
            input_ids=ids,
            position_ids=self.position,
            image_features=self.model.embed.new_embedding.new_zeros(1, self.model.config.text.hidden_size),
            image_positions=torch.full_like(ids[:1], -1),
        )
        for row in (self.model.embed, *self.model.layers):
            x = row(x)
        self.size += 1
        return self.model.head.logits(x.hidden[:, 0])

    def select(self, rows: Tensor) -> None:
        """Go on with these rows (int64 [R], repeats allowed) of the present ones."""
        self.seen, self.position = self.seen[rows], self.position[rows]
        for attention in self.attentions:
            attention.core.cache = [kept[rows] for kept in attention.core.cache]


def stream(
    model: Molmo,
    prompts: Batch,
    eos: int,
    options: Options = Options(),
    decode: Decode | None = None,
    all_done: Callable[[bool], bool] = bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (tokens int64 [B], their log-probabilities [B]) step by step; `eos` and 0 for a row that has ended.

    A row ends with `eos`, with a stop string, after max_new_tokens, or at the last position that the model knows.

    Args:
        eos: the token that ends a row.
        decode: ids to text, needed for stop strings.
        all_done: given whether every row here has ended, says whether to stop; ranks that must step together
            (parameters that are gathered by every forward) agree on it here.
    """
    if options.stop and decode is None:
        raise ValueError("Stop strings need `decode`, the tokenizer's way from ids to text.")
    if options.beams > 1:
        raise ValueError("Beam search gives its answers at the end; use generate().")
    device, total = prompts.input_ids.device, len(prompts.input_ids)
    active = torch.arange(total, device=device)  # row of the batch behind each row of the session
    ended = torch.zeros(total, dtype=torch.bool, device=device)
    texts: list[list[int]] = [[] for _ in range(total)]
    source = torch.Generator().manual_seed(options.seed)
    with torch.no_grad(), Session(model, prompts, options.max_new_tokens) as session:
        logits = session.first()
        for step in range(session.steps):
            chance = torch.rand(total, generator=source).to(device) if options.temperature else None
            new = choose(logits, options, None if chance is None else chance[active])
            log = logits.float().log_softmax(-1).gather(1, new[:, None])[:, 0]
            tokens, logs = torch.full((total,), eos, device=device), torch.zeros(total, device=device)
            tokens[active], logs[active] = new, log
            tokens, logs = torch.where(ended, eos, tokens), torch.where(ended, 0.0, logs)
            yield tokens, logs
            ended |= (tokens == eos) | (step + 1 >= session.room)
            for row in active.tolist() if options.stop else ():
                texts[row].append(int(tokens[row]))
                ended[row] |= any(s in decode(texts[row]) for s in options.stop)
            if all_done(bool(ended.all())) or step + 1 == session.steps:
                return
            running = (~ended[active]).nonzero()[:, 0]
            if 0 < len(running) <= len(active) // 2:  # half of the rows compute for nothing
                session.select(running)
                active = active[running]
            logits = session.next(tokens[active])


def choose(logits: Tensor, options: Options, chance: Tensor | None) -> Tensor:
    """One token [B] from logits [B, E]; `chance` [B], uniform in [0, 1), picks it when the temperature is not 0."""
    if chance is None:
        return logits.argmax(-1)
    logits = logits.float()
    temperature = max(options.temperature, torch.finfo(torch.float32).tiny)
    best = logits.amax(-1, keepdim=True)  # taken off first, so that no temperature is too small
    share, words = ((logits - best) / temperature).softmax(-1).sort(descending=True, stable=True)
    if options.top_k:
        share[:, options.top_k :] = 0
    share = share / share.sum(-1, keepdim=True)
    share = torch.where(share.cumsum(-1) - share < options.top_p, share, 0)  # the word that crosses top_p stays
    level = share.cumsum(-1)
    place = (level <= chance[:, None] * level[:, -1:]).sum(-1).clamp(max=(share > 0).sum(-1) - 1)
    return words.gather(1, place[:, None])[:, 0]


def generate(
    model: Molmo,
    prompts: Batch,
    eos: int,
    options: Options = Options(),
    decode: Decode | None = None,
    all_done: Callable[[bool], bool] = bool,
) -> Generation:
    """Answers to a batch of prompts; arguments as in `stream`. The model should be in eval mode.

    Raises ValueError for more beams than words, and for a prompt that leaves no room for an answer.
    """
    words = model.config.text.embedding_size
    if options.beams > words:
        raise ValueError(f"{options.beams} beams are more than the {words} words that a model has to begin with.")
    if options.beams > 1:
        answers, scores = _beam_search(model, prompts, eos, options, all_done)
    else:
        steps = list(stream(model, prompts, eos, options, decode, all_done))
        tokens, logs = (torch.stack(parts, -1) for parts in zip(*steps))
        answers, scores = tokens[:, None], logs.sum(-1, keepdim=True)
    return Generation(answers, scores, eos, options.stop, _at_the_end(model, prompts, answers, eos, options, decode))


def room(model: Molmo, prompts: Batch) -> Tensor:
    """int64 [B]: how many new tokens there are up to the last position that the model knows; ValueError where none."""
    return Session(model, prompts, 1).room


def _at_the_end(
    model: Molmo, prompts: Batch, answers: Tensor, eos: int, options: Options, decode: Decode | None
) -> Tensor:
    """bool [B]: the best answer is as long as its row has room, shorter than it might be, and has no end."""
    cuts = []
    for row, places in enumerate(room(model, prompts).tolist()):
        ids = answers[row, 0, :places].tolist()
        whole = places >= options.max_new_tokens or len(ids) < places or eos in ids
        stopped = decode is not None and any(text in decode(ids) for text in options.stop)
        cuts.append(not whole and not stopped)
    return torch.tensor(cuts)


def _beam_search(
    model: Molmo, prompts: Batch, eos: int, options: Options, all_done: Callable[[bool], bool]
) -> tuple[Tensor, Tensor]:
    """(token ids [B, K, L], scores [B, K]), the best first."""
    batch, beams = len(prompts.input_ids), options.beams
    with torch.no_grad(), Session(model, prompts, options.max_new_tokens) as session:
        logs = session.first().float().log_softmax(-1)
        scores, tokens = logs.topk(beams, -1)  # [B, K]
        words = logs.shape[-1]
        answers = tokens[..., None]
        first = torch.arange(batch, device=tokens.device)[:, None] * beams
        session.select(torch.arange(batch, device=tokens.device).repeat_interleave(beams))
        last = session.room[:, None]  # of each prompt; its beams end together
        for step in range(1, session.steps):
            ended = (tokens == eos) | (step >= last)
            if all_done(bool(ended.all())):
                break
            logs = session.next(tokens.flatten()).float().log_softmax(-1).view(batch, beams, words)
            stay = torch.full_like(logs[:1, :1], float("-inf"))
            stay[..., eos] = 0  # an ended beam only repeats its end
            logs = torch.where(ended[..., None], stay, logs)
            scores, best = (scores[..., None] + logs).flatten(1).topk(beams, -1)
            origin, tokens = best // words, best % words
            answers = answers.gather(1, origin[..., None].expand(-1, -1, answers.shape[-1]))
            answers = torch.cat((answers, tokens[..., None]), -1)
            session.select((first + origin).flatten())
    return answers, scores


def stream_text(model: Molmo, prompt: Batch, eos: int, options: Options, decode: Decode) -> Iterator[str]:
    """The answer to one prompt piece by piece; joined, the pieces are what `generate` gives.

    A piece waits while it may be the beginning of a stop string or of a character of several bytes. An answer that ends
    at the last position that the model knows is a warning in the log.
    """
    made: list[int] = []
    shown, text = 0, ""
    for tokens, _ in stream(model, prompt, eos, options, decode):
        made += tokens.tolist()
        text = cut(decode([i for i in made if i != eos]), options.stop)
        waiting = max((n for s in options.stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        ready = len(text.rstrip("\ufffd")) - waiting
        if ready > shown:
            yield text[shown:ready]
            shown = ready
    if len(text) > shown:
        yield text[shown:]
    warn_of_cuts(model, _at_the_end(model, prompt, torch.tensor(made)[None, None], eos, options, decode))


def warn_of_cuts(model: Molmo, cuts: Tensor) -> None:
    """Say how many of the answers ended at the last position that the model knows, if any did; `cuts`: bool [B]."""
    count = int(cuts.sum())
    if count:
        known = model.config.text.max_position_embeddings
        log.warning(
            "%d of %d answers ended unfinished at position %d, the last that the model knows: prompt and answer share"
            " these positions.", count, len(cuts), known,
        )  # fmt: skip
