"""The answers that are not finished, and the engine that works on them.

Each answer keeps its tokens here, so that what an engine leaves unfinished goes on with the next one.
"""

import asyncio
import dataclasses
import itertools
import logging
import time
from dataclasses import dataclass, field

from molmo_ds.infer.options import Options
from molmo_ds.infer.text import TextStream
from molmo_ds.serve import link
from molmo_ds.serve.metrics import Metrics

log = logging.getLogger(__name__)
LOSSES = 3  # engines that an answer may see end before it is given up: it may be what ends them


@dataclass(frozen=True)
class Prompt:
    """What a question sends to the engine."""

    data: bytes  # a Sample as safetensors
    tokens: int


@dataclass(frozen=True)
class Step:
    """What happened to one answer."""

    answer: "Answer"
    text: str = ""
    token: int | None = None
    log_probability: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    end: str | None = None  # stop | length | context
    failure: str | None = None  # a sentence, where there will be no answer

    def showing(self, text: str) -> "Step":
        """The same step with another text."""
        return dataclasses.replace(self, text=text)


@dataclass(eq=False)
class Answer:
    """One answer on its way."""

    name: str
    index: int  # among the choices of its request
    prompt: Prompt
    options: Options
    text: TextStream
    steps: asyncio.Queue[Step]  # shared by the choices of a request
    tokens: list[int] = field(default_factory=list)
    losses: int = 0
    touched: float = field(default_factory=time.monotonic)  # when it was asked, then its newest token

    def words(self) -> link.Words:
        """What the engine is told."""
        options = dataclasses.asdict(self.options)
        # the random numbers are the request's: its seed and the choice's index, so that a seed makes an answer again
        return {"name": self.name, "options": options, "begun": self.tokens, "draws": str(self.index)}


class Dispatcher:
    """Sends questions to the engine that dialled in last, and hands its pieces to whoever waits for them."""

    def __init__(self, secret: str, stall: float, metrics: Metrics):
        self.secret = secret
        self.stall = stall  # seconds of silence after which an engine counts as lost
        self.metrics = metrics
        self.engine: asyncio.StreamWriter | None = None
        self.open: dict[str, Answer] = {}
        self.numbers = itertools.count()

    def name(self) -> str:
        """A name that no other answer of this front has."""
        return f"answer-{next(self.numbers)}"

    def ask(self, answers: list[Answer]) -> None:
        """Begin answers to one prompt; without an engine they wait for one."""
        self.open |= {answer.name: answer for answer in answers}
        self.metrics.waiting.inc(len(answers))
        self.metrics.prompt_tokens.inc(answers[0].prompt.tokens)
        self._send(answers)

    def forget(self, answer: Answer) -> None:
        """Whoever asked does not wait any more; the engine stops if it has not finished."""
        if self.open.pop(answer.name, None) is None:
            return
        self._gauge(answer).dec()
        if self.engine is not None:
            self.engine.write(link.pack({"drop": [answer.name]}))

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An engine dials in: what is unfinished is sent to it, and what it makes is read until it is lost."""
        try:
            async with asyncio.timeout(self.stall):
                await link.greet(reader, writer, self.secret)
            self._take(writer)
            while True:
                async with asyncio.timeout(self.stall):
                    words, _ = await link.read_frame(reader)
                self._heard(words)
        except (ConnectionError, TimeoutError) as error:
            log.warning("An engine is lost: %s", error or f"nothing was heard of it for {self.stall:.0f} s.")
        finally:
            writer.close()
            if self.engine is writer:
                self._lose()

    def _take(self, writer: asyncio.StreamWriter) -> None:
        if self.engine is not None:
            self.engine.close()
            self._lose()
        self.engine = writer
        self.metrics.connected.set(1)
        groups: dict[int, list[Answer]] = {}
        for answer in self.open.values():
            groups.setdefault(id(answer.prompt), []).append(answer)
        for answers in groups.values():
            self._send(answers)
        if self.open:
            self.metrics.resent.inc(len(self.open))
            log.warning("An engine is there; %d unfinished answers go on with it.", len(self.open))

    def _lose(self) -> None:
        self.engine = None
        self.metrics.connected.set(0)
        self.metrics.losses.inc()
        for answer in list(self.open.values()):
            answer.losses += 1
            if answer.losses >= LOSSES:
                self._fail(answer, f"{LOSSES} engines ended while they worked on this request; it may be the cause.")

    def _send(self, answers: list[Answer]) -> None:
        if self.engine is not None:
            words = {"ask": [answer.words() for answer in answers]}
            self.engine.write(link.pack(words, answers[0].prompt.data))

    def _heard(self, words: link.Words) -> None:
        for name, token, log_probability, top, end in words.get("pieces", ()):
            if name in self.open:
                self._add(self.open[name], token, log_probability, top, end)
        for name in words.get("failed", ()):
            if name in self.open:
                self._fail(self.open[name], words["why"])

    def _add(self, answer: Answer, token: int, log_probability: float, top: list, end: str | None) -> None:
        text = ""
        self._time(answer)
        answer.tokens.append(token)
        if end != "stop":  # with which comes the end token
            text = answer.text.add(token)
        if answer.text.stopped and end is None:
            self.forget(answer)
            end = "stop"
        elif end is not None:
            text += answer.text.finish()
            self._gauge(self.open.pop(answer.name)).dec()
            end = "stop" if answer.text.stopped else end
        likeliest = tuple((word, value) for word, value in top)
        answer.steps.put_nowait(Step(answer, text, token, log_probability, likeliest, end))

    def _fail(self, answer: Answer, sentence: str) -> None:
        self.forget(answer)
        answer.steps.put_nowait(Step(answer, failure=sentence))

    def _time(self, answer: Answer) -> None:
        now = time.monotonic()
        seconds = now - answer.touched
        answer.touched = now
        self.metrics.new_tokens.inc()
        if answer.tokens:
            self.metrics.next.observe(seconds)
            return
        self.metrics.first.observe(seconds)
        self.metrics.waiting.dec()
        self.metrics.running.inc()

    def _gauge(self, answer: Answer):
        return self.metrics.running if answer.tokens else self.metrics.waiting
