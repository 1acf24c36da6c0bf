"""Text from a few prompts: greedy decoding, sampling and beam search, in one piece or token by token.

Shapes: B prompts, T prompt tokens (padded on the right), K beams, L new tokens, E words of the head, D width.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from molmo_ds.batch import Batch, Carry
from molmo_ds.engine.answering.share import Share
from molmo_ds.infer.options import GREEDY, Options
from molmo_ds.infer.sampling import draw, next_tokens
from molmo_ds.infer.schedule import compact
from molmo_ds.infer.slots import Slots
from molmo_ds.infer.text import Decode, TextStream, cut
from molmo_ds.model.molmo import Molmo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """What was generated, best beam first."""

    token_ids: Tensor  # int64 [B, K, L], the end token after the end
    scores: Tensor  # float32 [B, K], sum of the tokens' log-probabilities, the end token included
    eos: int
    stop: tuple[str, ...]
    # bool [B], whether the best answer ended at the last position that the model knows, and not by itself
    cut: Tensor

    def ids(self, row: int, beam: int = 0) -> list[int]:
        """Token ids of one answer, without the end token."""
        ids = self.token_ids[row, beam].tolist()
        return ids[: ids.index(self.eos)] if self.eos in ids else ids

    def texts(self, decode: Decode) -> list[str]:
        """The best answer to every prompt, cut before a stop string."""
        return [cut(decode(self.ids(row)), self.stop) for row in range(len(self.token_ids))]


class Session:
    """A model with slots for one batch of prompts, whose answers step together.

    A row of `prompts` is one conversation, padded on the right with document 0; the answer continues its last token.
    `room` [B] counts the new tokens of each row up to the last position that the model knows. Raises ValueError where a
    prompt leaves none.

    Args:
        copies: rows for each prompt, one after the other.
    """

    def __init__(self, model: Molmo, prompts: Batch, max_new_tokens: int, copies: int = 1) -> None:
        device = prompts.input_ids.device
        rows, tokens = prompts.input_ids.shape
        ends = torch.arange(rows, device=device) * tokens + _last(prompts)
        self.share = Share.whole(model)
        self.prompts = prompts
        self.ends = ends.repeat_interleave(copies)
        self.room = room(model, prompts)
        # not fewer: others may have room
        self.steps = min(max_new_tokens, model.config.text.max_position_embeddings)
        self.slots = Slots(model.layers, rows * copies, tokens + self.steps, device)

    def first(self) -> Tensor:
        """Hidden states [R, D] after the prompts."""
        x = self.share.embedded(Carry.of(self.prompts))
        self.slots.admit(self.prompts, self.ends)
        with self.slots:
            return self.share.run(x, self.ends)

    def next(self, tokens: Tensor) -> Tensor:
        """Hidden states [R, D] after one more token [R] per row."""
        slots = self.slots
        slots.tokens[: slots.rows] = tokens
        with slots:
            hidden = self.share.run(slots.carry())
        slots.advance()
        return hidden[: slots.rows, 0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, D] -> [R, E]."""
        return self.share.head.logits(hidden)


def stream(
    model: Molmo,
    prompts: Batch,
    eos: int,
    options: Options = GREEDY,
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
    device = prompts.input_ids.device
    total = len(prompts.input_ids)
    rows = list(range(total))  # of the batch, in the order of their slots
    ended = torch.zeros(total, dtype=torch.bool, device=device)
    texts = [TextStream(decode, options.stop) for _ in rows] if options.stop else []
    with torch.no_grad():
        session = Session(model, prompts, options.max_new_tokens)
        hidden = session.first()
        for step in range(session.steps):
            draws = [draw(options.seed, str(row), step) for row in rows]
            choice = next_tokens(session.share, hidden, [options] * len(rows), draws)
            tokens = torch.full((total,), eos, device=device)
            logs = torch.zeros(total, device=device)
            tokens[rows] = torch.where(ended[rows], eos, choice.tokens)
            logs[rows] = torch.where(ended[rows], 0.0, choice.log_probabilities)
            yield tokens, logs
            ended |= (tokens == eos) | (step + 1 >= session.room)
            for row in [row for row in rows if texts and int(tokens[row]) != eos]:
                texts[row].add(int(tokens[row]))
                ended[row] |= texts[row].stopped
            finished = ended.tolist()
            if all_done(all(finished)) or step + 1 == session.steps:
                return
            if not all(finished):  # or one that has ended continues for the sake of other ranks
                moves, left = compact([finished[row] for row in rows])
                session.slots.drop(moves, left)
                for source, target in moves:
                    rows[target] = rows[source]
                del rows[left:]
            hidden = session.next(tokens[rows])


def generate(
    model: Molmo,
    prompts: Batch,
    eos: int,
    options: Options = GREEDY,
    decode: Decode | None = None,
    all_done: Callable[[bool], bool] = bool,
) -> Generation:
    """Answers to a batch of prompts; arguments as in `stream`. The model should be in eval mode.

    Raises ValueError for more beams than words, and for a prompt that leaves no room for an answer.
    """
    words = model.config.text.embedding_size
    if options.beams > words:
        raise ValueError(
            f"{options.beams} beams are more than the {words} words that a model has to begin with."
        )
    if options.beams > 1:
        answers, scores = _beam_search(model, prompts, eos, options, all_done)
    else:
        steps = list(stream(model, prompts, eos, options, decode, all_done))
        tokens, logs = (torch.stack(parts, -1) for parts in zip(*steps))
        answers = tokens[:, None]
        scores = logs.sum(-1, keepdim=True)
    return Generation(
        answers,
        scores,
        eos,
        options.stop,
        _at_the_end(model, prompts, answers, eos, options, decode),
    )


def room(model: Molmo, prompts: Batch) -> Tensor:
    """int64 [B]: number of new tokens up to the model's last position; ValueError if there is none."""
    last = prompts.position_ids.gather(1, _last(prompts)[:, None])[:, 0]
    known = model.config.text.max_position_embeddings
    left = known - 1 - last
    if int(left.min()) < 1:
        longest = int(last.max()) + 1
        raise ValueError(
            f"The prompt has {longest} tokens and the model knows {known} positions; make it shorter."
        )
    return left


def _last(prompts: Batch) -> Tensor:
    """int64 [B]: the last token of every row."""
    index = torch.arange(prompts.input_ids.shape[1], device=prompts.input_ids.device)
    return torch.where(prompts.document_ids != 0, index, 0).amax(1)


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
    batch = len(prompts.input_ids)
    beams = options.beams
    with torch.no_grad():
        session = Session(model, prompts, options.max_new_tokens, beams)
        logs = session.logits(session.first()[::beams]).float().log_softmax(-1)
        scores, tokens = logs.topk(beams, -1)  # [B, K]
        words = logs.shape[-1]
        answers = tokens[..., None]
        first = torch.arange(batch, device=tokens.device)[:, None] * beams
        last = session.room[:, None]  # of each prompt; its beams end together
        for step in range(1, session.steps):
            ended = (tokens == eos) | (step >= last)
            if all_done(bool(ended.all())):
                break
            logits = session.logits(session.next(tokens.flatten()))
            logs = logits.float().log_softmax(-1).view(batch, beams, words)
            stay = torch.full_like(logs[:1, :1], float("-inf"))
            stay[..., eos] = 0  # an ended beam only repeats its end
            logs = torch.where(ended[..., None], stay, logs)
            scores, best = (scores[..., None] + logs).flatten(1).topk(beams, -1)
            origin = best // words
            tokens = best % words
            answers = answers.gather(1, origin[..., None].expand(-1, -1, answers.shape[-1]))
            answers = torch.cat((answers, tokens[..., None]), -1)
            session.slots.select((first + origin).flatten())
    return answers, scores


def stream_text(
    model: Molmo, prompt: Batch, eos: int, options: Options, decode: Decode
) -> Iterator[str]:
    """The answer to one prompt piece by piece; joined, the pieces are what `generate` gives.

    A piece waits while it may be the beginning of a stop string or of a character of several bytes. An answer that ends
    at the last position that the model knows is a warning in the log.
    """
    made: list[int] = []
    text = TextStream(decode, options.stop)
    for tokens, _ in stream(model, prompt, eos, options, decode):
        made += tokens.tolist()
        piece = text.add(made[-1]) if made[-1] != eos else ""
        if piece:
            yield piece
    rest = text.finish()
    if rest:
        yield rest
    warn_of_cuts(
        model, _at_the_end(model, prompt, torch.tensor(made)[None, None], eos, options, decode)
    )


def warn_of_cuts(model: Molmo, cuts: Tensor) -> None:
    """Log the number of answers that ended at the model's last position, if any; `cuts`: bool [B]."""
    count = int(cuts.sum())
    if count:
        known = model.config.text.max_position_embeddings
        log.warning(
            "%d of %d answers ended unfinished at position %d, the last that the model knows: prompt and answer share"
            " these positions.", count, len(cuts), known,
        )  # fmt: skip
