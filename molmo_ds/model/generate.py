"""Text from prompts: a KV cache, greedy decoding, sampling and beam search, in one piece or token by token.

Shapes: B prompts, T prompt tokens (padded on the right), K beams, L new tokens, E words of the head, S cached tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.batch import Batch
from molmo_ds.model.decoder import Core, once
from molmo_ds.model.molmo import Molmo

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
        if self.max_new_tokens < 1 or self.beams < 1 or self.top_k < 0:
            raise ValueError("max_new_tokens and beams are at least 1 and top_k at least 0.")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("temperature is not negative and top_p lies above 0 and up to 1.")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("Beam search does not sample; use beams=1 or temperature=0.")


@dataclass(frozen=True)
class Generation:
    """What was generated, best beam first."""

    token_ids: Tensor  # int64 [B, K, L], the end token behind the end
    scores: Tensor  # float32 [B, K], sum of the tokens' log-probabilities, the end token included
    eos: int
    stop: tuple[str, ...]

    def ids(self, row: int, beam: int = 0) -> list[int]:
        """Token ids of one answer, without the end token."""
        ids = self.token_ids[row, beam].tolist()
        return ids[: ids.index(self.eos)] if self.eos in ids else ids

    def texts(self, decode: Decode) -> list[str]:
        """The best answer to every prompt, cut before a stop string."""
        return [cut(decode(self.ids(row)), self.stop) for row in range(len(self.token_ids))]


def cut(text: str, stop: tuple[str, ...]) -> str:
    """`text` up to the first stop string."""
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


class CachedCore(Core):
    """Attention that keeps the keys and values [B, G, capacity, d] of one layer; its plan comes from the session."""

    def __init__(self, session: "Session"):
        self.session, self.cache = session, None

    def plan(self, document_ids: Tensor, branch_ids: Tensor, dtype: torch.dtype) -> object:
        """The prompt's own plan, then masks [B, 1, 1, S] of what a new token sees."""
        if self.session.size == 0:
            return super().plan(document_ids, branch_ids, dtype)
        return once("cached", lambda _: self.session.mask(dtype), document_ids)

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
    """

    def __init__(self, model: Molmo, prompts: Batch, max_new_tokens: int):
        self.model, self.prompts, self.size = model, prompts, 0
        batch, tokens = prompts.input_ids.shape
        self.capacity = tokens + max_new_tokens
        self.rows = torch.arange(batch, device=prompts.input_ids.device)
        index = torch.arange(tokens, device=self.rows.device)
        self.last = torch.where(prompts.document_ids != 0, index, 0).amax(1)
        last = self.last[:, None]
        document, branch = prompts.document_ids, prompts.branch_ids
        seen = (document == document.gather(1, last)) & ((branch == 0) | (branch == branch.gather(1, last)))
        self.seen = F.pad(seen, (0, max_new_tokens), value=True)
        self.position = prompts.position_ids.gather(1, last)

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
        hidden = self.model.body(self.prompts)[-1]
        self.size = hidden.shape[1]
        return self.model.head.logits(hidden[self.rows, self.last])

    def next(self, tokens: Tensor) -> Tensor:
        """Logits [B, E] behind one more token [B] per row."""
        self.position = self.position + 1
        ids = tokens[:, None]
        nothing, none = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.int32)
        features = self.model.embed.new_embedding.new_zeros(1, self.model.config.text.hidden_size)
        x = (ids, nothing, none, self.position, none + 1, none, ids[:0, 0], torch.full_like(ids[:1], -1), features)
        for row in (self.model.embed, *self.model.layers):
            x = row(x)
        self.size += 1
        return self.model.head.logits(x[-1][:, 0])

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
        for step in range(options.max_new_tokens):
            chance = torch.rand(total, generator=source).to(device) if options.temperature else None
            new = choose(logits, options, None if chance is None else chance[active])
            log = logits.float().log_softmax(-1).gather(1, new[:, None])[:, 0]
            tokens, logs = torch.full((total,), eos, device=device), torch.zeros(total, device=device)
            tokens[active], logs[active] = new, log
            tokens, logs = torch.where(ended, eos, tokens), torch.where(ended, 0.0, logs)
            yield tokens, logs
            ended |= tokens == eos
            for row in active.tolist() if options.stop else ():
                texts[row].append(int(tokens[row]))
                ended[row] |= any(s in decode(texts[row]) for s in options.stop)
            if all_done(bool(ended.all())) or step + 1 == options.max_new_tokens:
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
    share, words = (logits.float() / options.temperature).softmax(-1).sort(descending=True, stable=True)
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
    """Answers to a batch of prompts; arguments as in `stream`. The model should be in eval mode."""
    if options.beams > 1:
        return _beam_search(model, prompts, eos, options, all_done)
    steps = list(stream(model, prompts, eos, options, decode, all_done))
    tokens, logs = (torch.stack(parts, -1) for parts in zip(*steps))
    return Generation(tokens[:, None], logs.sum(-1, keepdim=True), eos, options.stop)


def _beam_search(
    model: Molmo, prompts: Batch, eos: int, options: Options, all_done: Callable[[bool], bool]
) -> Generation:
    batch, beams = len(prompts.input_ids), options.beams
    with torch.no_grad(), Session(model, prompts, options.max_new_tokens) as session:
        logs = session.first().float().log_softmax(-1)
        scores, tokens = logs.topk(beams, -1)  # [B, K]
        words = logs.shape[-1]
        answers = tokens[..., None]
        first = torch.arange(batch, device=tokens.device)[:, None] * beams
        session.select(torch.arange(batch, device=tokens.device).repeat_interleave(beams))
        for _ in range(options.max_new_tokens - 1):
            if all_done(bool((tokens == eos).all())):
                break
            logs = session.next(tokens.flatten()).float().log_softmax(-1).view(batch, beams, words)
            stay = torch.full_like(logs[:1, :1], float("-inf"))
            stay[..., eos] = 0  # an ended beam only repeats its end
            logs = torch.where((tokens == eos)[..., None], stay, logs)
            scores, best = (scores[..., None] + logs).flatten(1).topk(beams, -1)
            origin, tokens = best // words, best % words
            answers = answers.gather(1, origin[..., None].expand(-1, -1, answers.shape[-1]))
            answers = torch.cat((answers, tokens[..., None]), -1)
            session.select((first + origin).flatten())
    return Generation(answers, scores, eos, options.stop)


def stream_text(model: Molmo, prompt: Batch, eos: int, options: Options, decode: Decode) -> Iterator[str]:
    """The answer to one prompt piece by piece; joined, the pieces are what `generate` gives.

    A piece waits while it may be the beginning of a stop string or of a character of several bytes.
    """
    ids: list[int] = []
    shown, text = 0, ""
    for tokens, _ in stream(model, prompt, eos, options, decode):
        ids += [i for i in tokens.tolist() if i != eos]
        text = cut(decode(ids), options.stop)
        waiting = max((n for s in options.stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        ready = len(text.rstrip("\ufffd")) - waiting
        if ready > shown:
            yield text[shown:ready]
            shown = ready
    if len(text) > shown:
        yield text[shown:]
