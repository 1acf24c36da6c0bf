"""Answers by a network in this process; pictures are decoded, and prompts made, ahead of time in threads."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from numpy.random import RandomState

from molmo_ds.batch import Sample
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.builder import SampleBuilder
from molmo_ds.eval.client import Ask, Reply, failure
from molmo_ds.eval.load import Answerer
from molmo_ds.infer.generate import Options, generate

AHEAD = 4  # batches of prompts that are made before they are needed


@dataclass(frozen=True)
class _Made:
    ask: Ask
    prompt: Sample | None  # None where it could not be made
    text: str  # the prompt as text, or why there is none


class OwnClient:
    """A checkpoint that answers `batch` questions at a time, greedily."""

    def __init__(self, answerer: Answerer, batch: int = 64, workers: int | None = None):
        self.answerer = answerer
        self.batch = batch
        self.workers = workers or min(8, len(os.sched_getaffinity(0)))

    def replies(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """As in `Client`; batch by batch."""
        made = self._made(asks)
        while batch := list(itertools.islice(made, self.batch)):
            yield from (failure(one.ask, one.text) for one in batch if one.prompt is None)
            usable = [one for one in batch if one.prompt is not None]
            for tokens, alike in itertools.groupby(usable, lambda one: one.ask.max_new_tokens):
                yield from self._answer(list(alike), tokens)

    def _answer(self, made: list[_Made], max_new_tokens: int) -> Iterator[Reply]:
        tokenizer = self.answerer.builder.tokenizer
        prompts = self.answerer.batch([one.prompt for one in made])
        options = Options(max_new_tokens=max_new_tokens)
        answers = generate(self.answerer.model, prompts, tokenizer.eos, options, tokenizer.decode)
        for row, one in enumerate(made):
            ids = answers.ids(row)
            end = "context" if answers.cut[row] else "length"
            if tokenizer.eos in answers.token_ids[row, 0].tolist():
                end = "stop"
            text = tokenizer.decode(ids).strip()
            yield Reply(id=one.ask.id, text=text, token_count=len(ids), end=end, prompt=one.text)

    def _made(self, asks: Iterable[Ask]) -> Iterator[_Made]:
        """The prompts in order, as many ahead as AHEAD batches hold."""
        waiting: deque = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            for _, group in itertools.groupby(asks, lambda ask: ask.pictures):
                waiting.append(pool.submit(make, self.answerer.builder, list(group)))
                while len(waiting) > AHEAD * self.batch:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()


def make(builder: SampleBuilder, asks: list[Ask]) -> list[_Made]:
    """The prompts of questions about the same pictures, which are decoded once."""
    try:
        seen = builder.see(asks[0].pictures)
    except BadSample as error:
        return [_Made(ask, None, str(error)) for ask in asks]
    out = []
    for ask in asks:
        try:
            prompt = builder.prompt(seen, ask.annotation, rng=RandomState(ask.seed))
        except ValueError as error:  # too long, or an annotation that cannot be used
            out.append(_Made(ask, None, str(error)))
        else:
            out.append(_Made(ask, prompt, prompt_text(builder, prompt)))
    return out


def prompt_text(builder: SampleBuilder, prompt: Sample) -> str:
    """A prompt for people: the text, and IMAGE[n] for n tokens of pictures."""
    tokenizer = builder.tokenizer
    ids = prompt.input_ids.tolist()
    tokens = sum(token >= tokenizer.vocab_size for token in ids)
    return (f"IMAGE[{tokens}]" if tokens else "") + tokenizer.decode(ids)
