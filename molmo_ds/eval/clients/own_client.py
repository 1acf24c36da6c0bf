"""Answers by a network in this process; pictures are decoded, and prompts made, ahead of time in threads."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from numpy.random import RandomState

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Sample
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.builder import SampleBuilder, Seen
from molmo_ds.data.sample.pictures.layout import (
    FRAME_END,
    FRAME_START,
    IM_END,
    IM_PATCH,
    IM_START,
    LOW_RES_IM_START,
)
from molmo_ds.data.tokens import Tokenizer
from molmo_ds.eval.clients.client import Ask, Reply, failure
from molmo_ds.infer.answers import answer
from molmo_ds.infer.load import Answerer
from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Question
from molmo_ds.infer.replica import Replica
from molmo_ds.model.flops import cached

STARTS = (IM_START, LOW_RES_IM_START, FRAME_START)
ENDS = (IM_END, FRAME_END)

BATCH = 64  # questions at a time
MOST = 256  # of a small network, whose passes cost more than their products
CHEAP = 1 << 30  # bytes that more than BATCH may take
FLOAT = 4  # bytes of a pixel's colour
SMALL = 1 << 15  # encoded bytes of pictures that are decoded in a millisecond


@dataclass(frozen=True)
class _Made:
    ask: Ask
    prompt: Sample | None  # None where it could not be made
    text: str  # the prompt as text, or why there is none


class _Draws(threading.local):
    """A generator for each thread, seeded for each question: making one costs as much as making a prompt."""

    def __init__(self) -> None:
        self.generator = RandomState(0)


_DRAWS = _Draws()


class OwnClient:
    """A replica that answers, greedily, as many questions at a time as it has slots; a picture is prefilled once.

    On several ranks all of a replica make every prompt.
    """

    def __init__(self, builder: SampleBuilder, replica: Replica, workers: int | None = None):
        self.builder = builder
        self.replica = replica
        self.batch = sum(slots.count for slots in replica.slots)
        self.workers = workers or min(8, len(os.sched_getaffinity(0)))

    @classmethod
    def of(
        cls, answerer: Answerer, batch: int | None = None, workers: int | None = None
    ) -> OwnClient:
        """A network in this process, asked `batch` questions at a time; by default as `usual_batch` says."""
        slots = batch or usual_batch(answerer.model.config, answerer.itemsize)
        return cls(answerer.builder, answerer.replica(slots), workers)

    def replies(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """As in `Client`."""
        prompts: dict[str, str] = {}
        failed: deque[Reply] = deque()
        for found in answer(self.replica, self._questions(asks, prompts, failed)):
            while failed:
                yield failed.popleft()
            text = self.builder.tokenizer.decode(found.token_ids).strip()
            count = len(found.token_ids)
            yield Reply(
                id=found.name,
                text=text,
                token_count=count,
                end=found.end,
                prompt=prompts.pop(found.name),
            )
        yield from failed

    def _questions(
        self, asks: Iterable[Ask], prompts: dict[str, str], failed: deque[Reply]
    ) -> Iterator[Question]:
        """The questions for the replica, their texts into `prompts`; those that cannot be asked into `failed`."""
        for made in self._made(asks):
            if made.prompt is None:
                failed.append(failure(made.ask, made.text))
                continue
            prompts[made.ask.id] = made.text
            options = Options(max_new_tokens=made.ask.max_new_tokens)
            yield Question(name=made.ask.id, prompt=made.prompt, options=options)

    def _made(self, asks: Iterable[Ask]) -> Iterator[_Made]:
        """The prompts in order, those of as many pictures ahead as there are answers at a time; of few videos.

        Threads decode them, but small pictures: with those they would wait for Python's lock more than they save.
        """
        waiting: deque[Callable[[], list[_Made]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            for _, group in itertools.groupby(asks, lambda ask: (ask.pictures, ask.film)):
                asked = list(group)
                given = (self.builder, asked, self.replica.capacity)
                small = asked[0].film is None and sum(map(len, asked[0].pictures)) <= SMALL
                waiting.append(partial(make, *given) if small else pool.submit(make, *given).result)
                # the frames of a video are as many as a batch of pictures
                ahead = self.batch if asked[0].film is None else self.workers
                while len(waiting) > ahead:
                    yield from waiting.popleft()()
            while waiting:
                yield from waiting.popleft()()


def usual_batch(config: MolmoConfig, itemsize: int) -> int:
    """64 questions at a time, up to 256 where so many take less than 1 GiB, with pictures of the most crops.

    Args:
        itemsize: bytes of a weight.
    """
    tokens = itemsize * cached(config.text) * config.text.max_position_embeddings
    crops = config.images.max_crops + 1
    pixels = FLOAT * crops * 3 * config.vision.image_size**2
    return max(BATCH, min(MOST, CHEAP // (tokens + pixels)))


def make(builder: SampleBuilder, asks: list[Ask], known: int) -> list[_Made]:
    """The prompts of questions about the same pictures or video, decoded once; `known`: positions of a replica."""
    try:
        seen = see(builder, asks[0])
    except BadSample as error:
        return [_Made(ask, None, str(error)) for ask in asks]
    out = []
    for ask in asks:
        _DRAWS.generator.seed(ask.seed)
        try:
            prompt = builder.prompt(seen, ask.annotation, rng=_DRAWS.generator)
        except ValueError as error:  # too long, or an annotation that cannot be used
            out.append(_Made(ask, None, str(error)))
            continue
        length = len(prompt.input_ids)
        if length >= known:
            why = f"The prompt has {length} tokens and leaves no room for an answer within the {known} known positions."
            out.append(_Made(ask, None, why))
        else:
            out.append(
                _Made(ask, prompt, prompt_text(builder.tokenizer, prompt.input_ids.tolist()))
            )
    return out


def see(builder: SampleBuilder, ask: Ask) -> Seen:
    """What a question is about, decoded; BadSample where it cannot be."""
    if ask.film is None:
        return builder.see(ask.pictures)
    return builder.see_video({**ask.film, "pixels": ask.pictures})


def prompt_text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """A prompt for people: the text, and IMAGE[n] for each block or frame of n patches, as allenai/molmo shows it.

    Source: allenai/molmo 793fa38, olmo/html_utils.py.
    """
    shown = ""
    words: list[int] = []
    patches = None  # of the block that is open
    for token in ids:
        image_token = int(token) - tokenizer.vocab_size
        if patches is None and image_token in STARTS:
            shown += tokenizer.decode(words)
            words = []
            patches = 0
        elif patches is not None and image_token in ENDS:
            shown += f"IMAGE[{patches}]"
            patches = None
        elif patches is not None:
            patches += image_token == IM_PATCH
        else:
            words.append(int(token))
    return (shown + tokenizer.decode(words)).lstrip()
