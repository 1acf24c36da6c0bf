"""One rank of a replica behind a front: the first one dials in, and all make the same calls of admit, drop and step.

A tick: the first rank tells the others how many bytes came from the front, and the bytes themselves only where there
are some; every rank reads the same frames and makes the same calls of its Replica.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist

from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Piece, Question
from molmo_ds.serve import link
from molmo_ds.serve.link import Dialled
from molmo_ds.serve.sample_bytes import read_sample

log = logging.getLogger(__name__)
IDLE_SECONDS = 0.2  # how long the first rank waits for the front where there is nothing to do
BEAT_SECONDS = 1.0  # between two signs of life where there are no tokens to tell


class Answering(Protocol):
    """What is needed of a Replica."""

    busy: bool

    def admit(self, questions: Sequence[Question]) -> None:
        """Queue questions."""

    def step(self) -> list[Piece]:
        """One pass."""

    def drop(self, name: str) -> None:
        """Forget a question."""


class Ranks:
    """What the first rank of a replica tells the others; in a group of gloo, so that no GPU is waited for.

    Args:
        members: the replica's ranks, ascending; () for one process. All ranks of all replicas make the same calls.
    """

    def __init__(self, members: tuple[int, ...] = ()) -> None:
        self.members = members
        self.group = None
        if len(members) > 1:
            self.group, _ = dist.new_subgroups_by_enumeration(_everybody(members), backend="gloo")

    @property
    def is_first(self) -> bool:
        """Whether this rank has the link."""
        return not self.members or dist.get_rank() == self.members[0]

    def share(self, data: bytes) -> bytes:
        """The first rank's bytes, on every rank."""
        if self.group is None:
            return data
        size = torch.tensor([len(data)])
        dist.broadcast(size, self.members[0], group=self.group)
        if not size.item():
            return b""
        data = bytearray(data) if self.is_first else bytearray(int(size))
        box = torch.frombuffer(data, dtype=torch.uint8)
        dist.broadcast(box, self.members[0], group=self.group)
        return bytes(data)


def _everybody(members: tuple[int, ...]) -> list[list[int]]:
    """The ranks of every replica."""
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, members)
    return [list(ranks) for ranks in sorted(set(told))]


class Worker:
    """A Replica's rank in its loop; only the first has a link."""

    def __init__(self, replica: Answering, ranks: Ranks, front: Dialled | None):
        self.replica = replica
        self.ranks = ranks
        self.front = front
        self.running: set[str] = set()

    def run(self) -> None:
        """Answer until the front is gone for good: a ValueError with a sentence on every rank."""
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
        """Frames for this tick, on the first rank."""
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
            rows = [
                (piece.name, piece.token, piece.log_probability, piece.top, piece.end)
                for piece in pieces
            ]
            self._send({"pieces": rows})
        elif self.front is not None and time.monotonic() - self.front.sent_at > BEAT_SECONDS:
            self._send({"alive": True})

    def _send(self, words: link.Words) -> None:
        if self.front is not None:
            self.front.send(words)


def read_questions(asked: list[dict[str, Any]], data: bytes) -> list[Question]:
    """The questions of a frame; they share one prompt."""
    prompt = read_sample(data)
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
