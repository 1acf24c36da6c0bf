"""The answers that are not finished, and the engines that work on them: one for each replica.

Each answer keeps its tokens here, so that another engine continues what one leaves unfinished.
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
    engine: "Engine | None" = None  # that works on it
    losses: int = 0
    # when it was asked, then its newest token
    touched: float = field(default_factory=time.monotonic)

    def words(self) -> link.Words:
        """What the engine is told."""
        options = dataclasses.asdict(self.options)
        # the random numbers are the request's: its seed and the choice's index, so that a seed makes an answer again
        return {
            "name": self.name,
            "options": options,
            "begun": self.tokens,
            "draws": str(self.index),
        }


@dataclass(eq=False)
class Engine:
    """The first rank of a replica, at the other end of a link."""

    replica: int
    writer: asyncio.StreamWriter
    open: set[str] = field(default_factory=set)  # names of the answers that it works on


class Dispatcher:
    """Sends questions to the engine with the least to do, and passes its pieces to the request that waits for them."""

    def __init__(self, secret: str, stall: float, metrics: Metrics):
        self.secret = secret
        self.stall = stall  # seconds of silence after which an engine counts as lost
        self.metrics = metrics
        self.engines: dict[int, Engine] = {}  # by number of the replica
        self.expected = 1  # replicas that there should be
        self.open: dict[str, Answer] = {}
        self.numbers = itertools.count()
        self.ending = False

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
        """The client does not wait any more; the engine stops if it has not finished."""
        engine = answer.engine
        if self._close(answer) and engine is not None:
            engine.writer.write(link.pack({"drop": [answer.name]}))

    def hang_up(self) -> None:
        """Let all engines go; they look for another front."""
        self.ending = True
        for engine in self.engines.values():
            engine.writer.close()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An engine dials in: it is sent the answers that no engine works on, and is read until it is lost."""
        engine = None
        try:
            async with asyncio.timeout(self.stall):
                greeting = await link.greet(reader, writer, self.secret)
            engine = Engine(int(greeting["replica"]), writer)
            self.expected = int(greeting["replicas"])
            self._take(engine)
            while True:
                async with asyncio.timeout(self.stall):
                    words, _ = await link.read_frame(reader)
                self._heard(words)
        except (ConnectionError, TimeoutError) as error:
            if not self.ending:
                why = str(error) or f"Nothing was heard of it for {self.stall:.0f} s."
                log.warning("An engine is lost. %s", why)
        finally:
            writer.close()
            if engine is not None and self.engines.get(engine.replica) is engine:
                self._lose(engine)

    def _take(self, engine: Engine) -> None:
        """Give an engine the answers that no engine works on, those of another one for the same replica included."""
        earlier = self.engines.pop(engine.replica, None)
        self.engines[engine.replica] = engine
        if earlier is not None:
            earlier.writer.close()
            self._leave(earlier)
        self.metrics.connected.set(len(self.engines))
        self._send_again()

    def _lose(self, engine: Engine) -> None:
        del self.engines[engine.replica]
        self.metrics.connected.set(len(self.engines))
        self._leave(engine)
        self._send_again()

    def _leave(self, engine: Engine) -> None:
        self.metrics.losses.inc()
        for answer in [self.open[name] for name in engine.open]:
            answer.engine = None
            answer.losses += 1
            if answer.losses >= LOSSES:
                self._fail(
                    answer,
                    f"{LOSSES} engines ended while they worked on this request; it may be the cause.",
                )

    def _send_again(self) -> None:
        """Send answers that no engine works on to the engines that are there."""
        groups: dict[int, list[Answer]] = {}
        for answer in self.open.values():
            if answer.engine is None:
                groups.setdefault(id(answer.prompt), []).append(answer)
        count = sum(len(answers) for answers in groups.values())
        if not count or not self.engines:
            return
        self.metrics.resent.inc(count)
        log.warning("%d unfinished answers go on with another engine.", count)
        for answers in groups.values():
            self._send(answers)

    def _send(self, answers: list[Answer]) -> None:
        if not self.engines:
            return
        engine = min(self.engines.values(), key=lambda engine: len(engine.open))
        for answer in answers:
            answer.engine = engine
            engine.open.add(answer.name)
        words = {"ask": [answer.words() for answer in answers]}
        engine.writer.write(link.pack(words, answers[0].prompt.data))

    def _close(self, answer: Answer) -> bool:
        """Whether it was open until now."""
        if self.open.pop(answer.name, None) is None:
            return False
        (self.metrics.running if answer.tokens else self.metrics.waiting).dec()
        if answer.engine is not None:
            answer.engine.open.discard(answer.name)
        return True

    def _heard(self, words: link.Words) -> None:
        for name, token, log_probability, top, end in words.get("pieces", ()):
            if name in self.open:
                self._add(self.open[name], token, log_probability, top, end)
        for name in words.get("failed", ()):
            if name in self.open:
                self._fail(self.open[name], words["why"])

    def _add(
        self, answer: Answer, token: int, log_probability: float, top: list, end: str | None
    ) -> None:
        self._time(answer)
        answer.tokens.append(token)
        text = "" if end == "stop" else answer.text.add(token)  # with "stop" comes the end token
        if end is not None:
            self._close(answer)
            text += answer.text.finish()
        if answer.text.stopped:
            self.forget(answer)
            end = "stop"
        likeliest = tuple((word, value) for word, value in top)
        answer.steps.put_nowait(Step(answer, text, token, log_probability, likeliest, end))

    def _fail(self, answer: Answer, sentence: str) -> None:
        self._close(answer)
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
