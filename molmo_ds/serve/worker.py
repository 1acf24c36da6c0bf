"""One rank of the engine behind a front: rank 0 dials in, all ranks admit, drop and step alike.

A tick: rank 0 tells all ranks how many bytes came from the front, and the bytes themselves only where there are some;
every rank reads the same frames and makes the same calls of its Replica.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load

from molmo_ds.batch import Sample
from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Piece, Question
from molmo_ds.serve import link
from molmo_ds.serve.link import Dialled

log = logging.getLogger(__name__)
IDLE_SECONDS = 0.2  # how long rank 0 waits for the front where there is nothing to do
BEAT_SECONDS = 1.0  # between two signs of life where there are no tokens to tell


class Replies(Protocol):
    """What is needed of a Replica."""

    busy: bool

    def admit(self, questions: Sequence[Question]) -> None:
        """Queue questions."""

    def step(self) -> list[Piece]:
        """One pass."""

    def drop(self, name: str) -> None:
        """Forget a question."""


class Ranks:
    """What rank 0 tells the others; a group of its own on gloo, so that no GPU is waited for."""

    def __init__(self) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.group = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")

    def share(self, data: bytes) -> bytes:
        """Rank 0's bytes, on every rank."""
        if self.group is None:
            return data
        size = torch.tensor([len(data)])
        dist.broadcast(size, 0, group=self.group)
        if not size.item():
            return b""
        box = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.rank == 0 else None
        box = torch.empty(int(size), dtype=torch.uint8) if box is None else box
        dist.broadcast(box, 0, group=self.group)
        return box.numpy().tobytes()


class Worker:
    """A Replica's rank in its loop; only rank 0 has a link."""

    def __init__(self, replica: Replies, ranks: Ranks, front: Dialled | None):
        self.replica = replica
        self.ranks = ranks
        self.front = front
        self.running: set[str] = set()

    def run(self) -> None:
        """Answer until the front is gone for good, which is a ValueError with a sentence on every rank."""
        while True:
            self.tick()

    def tick(self) -> None:
        """What came from the front, then one pass."""
        questions: list[Question] = []
        for words, data in link.unpack(self.ranks.share(self._news())):
            if "ask" in words:
                questions += read_questions(words["ask"], data)
            for name in words.get("drop", ()):
                questions = [question for question in questions if question.name != name]
                self._drop(name)
            if "clear" in words:  # another front, which knows nothing of what an earlier one asked
                for name in list(self.running):
                    self._drop(name)
            if "over" in words:
                raise ValueError(words["over"])
        self._admit(questions)
        pieces = self.replica.step() if self.replica.busy else []
        self.running -= {piece.name for piece in pieces if piece.end is not None}
        self._tell(pieces)

    def _news(self) -> bytes:
        """Frames for this tick, on rank 0."""
        if self.front is None:
            return b""
        try:
            frames, is_new = self.front.receive(0.0 if self.replica.busy else IDLE_SECONDS)
        except ValueError as error:
            return link.pack({"over": str(error)})
        return link.pack({"clear": True}) + frames if is_new else frames

    def _admit(self, questions: list[Question]) -> None:
        if not questions:
            return
        try:
            self.replica.admit(questions)
        except ValueError as error:  # one of them cannot be answered: which, is found one by one
            if len(questions) > 1:
                for question in questions:
                    self._admit([question])
                return
            self._send({"failed": [questions[0].name], "why": str(error)})
            return
        self.running |= {question.name for question in questions}

    def _drop(self, name: str) -> None:
        if name in self.running:
            self.running.remove(name)
            self.replica.drop(name)

    def _tell(self, pieces: list[Piece]) -> None:
        if pieces:
            rows = [(piece.name, piece.token, piece.log_probability, piece.top, piece.end) for piece in pieces]
            self._send({"pieces": rows})
        elif self.front is not None and time.monotonic() - self.front.sent_at > BEAT_SECONDS:
            self._send({"alive": True})

    def _send(self, words: link.Words) -> None:
        if self.front is not None:
            self.front.send(words)


def read_questions(asked: list[dict[str, Any]], data: bytes) -> list[Question]:
    """The questions of a frame; they share one prompt."""
    prompt = Sample(**load(data))
    return [
        Question(
            name=one["name"],
            prompt=prompt,
            options=Options(**{**one["options"], "stop": tuple(one["options"]["stop"])}),
            begun=tuple(one["begun"]),
            draws=one["draws"],
        )
        for one in asked
    ]
