"""The link: frames, the secret, a front that is dialled again."""

import asyncio
import json
import time

import pytest

from molmo_ds.infer.options import Options
from molmo_ds.infer.text import TextStream
from molmo_ds.serve import link
from molmo_ds.serve.address import Address, read_address
from molmo_ds.serve.dispatcher import LOSSES, Answer, Dispatcher, Prompt
from molmo_ds.serve.link import Dialled
from molmo_ds.serve.metrics import Metrics


def test_frames_come_back_in_order() -> None:
    frames = link.pack({"a": 1}, b"xyz") + link.pack({"b": "é"})
    assert list(link.unpack(frames)) == [({"a": 1}, b"xyz"), ({"b": "é"}, b"")]


@pytest.mark.parametrize("text", ["", "8000", ":8000", "a:", "a:b", "a:70000"])
def test_addresses(text: str) -> None:
    assert read_address("127.0.0.1:80") == Address("127.0.0.1", 80)
    with pytest.raises(ValueError, match="HOST:PORT"):
        read_address(text)


class Desk:
    """A dispatcher that listens, and engines that a test moves by hand."""

    def __init__(self, stall: float = 5.0):
        self.dispatcher = Dispatcher("secret", stall, Metrics())
        self.queue: asyncio.Queue = asyncio.Queue()

    async def __aenter__(self) -> "Desk":
        self.server = await asyncio.start_server(self.dispatcher.accept, "127.0.0.1", 0)
        self.address = Address(*self.server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    def answer(self, prompt: Prompt) -> Answer:
        stream = TextStream(lambda ids: "".join(map(chr, ids)))
        answer = Answer(self.dispatcher.name(), 0, prompt, Options(), stream, self.queue)
        self.dispatcher.ask([answer])
        return answer

    async def engine(self, replica: int = 0, replicas: int = 1, secret: str = "secret") -> Dialled:
        dialled = Dialled(self.address, secret, 5.0, replica, replicas)
        await asyncio.to_thread(dialled.receive, 0.0)
        return dialled

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.dispatcher.engines) != count:
                await asyncio.sleep(0.005)


async def asked(engine: Dialled) -> list[dict]:
    frames, _ = await asyncio.to_thread(engine.receive, 2.0)
    return [one for words, _ in link.unpack(frames) for one in words["ask"]]


def test_an_engine_without_the_secret_gets_nothing() -> None:
    async def scene() -> None:
        async with Desk() as desk:
            desk.answer(Prompt(b"p", 1))
            engine = await desk.engine(secret="other")
            frames, _ = await asyncio.to_thread(engine.receive, 1.0)
            assert frames == b"" and not desk.dispatcher.engines
            reader, writer = await asyncio.open_connection(*desk.address)
            await link.read_frame(reader)
            writer.write(link.HEAD.pack(1 << 30, 0))  # it is not waited for
            assert await asyncio.wait_for(reader.read(), 5) == b""

    asyncio.run(scene())


def test_what_an_engine_leaves_goes_on_with_the_tokens_it_gave() -> None:
    async def scene() -> None:
        async with Desk() as desk:
            answer = desk.answer(Prompt(b"p", 1))
            first = await desk.engine()
            (one,) = await asked(first)
            assert (
                one["begun"] == [] and one["options"]["max_new_tokens"] == Options().max_new_tokens
            )
            first.send(
                {"pieces": [[answer.name, 65, -0.1, [], None], [answer.name, 66, -0.1, [], None]]}
            )
            assert [(await desk.queue.get()).text for _ in range(2)] == ["A", "B"]
            first.close()
            await desk.until(0)
            second = await desk.engine()
            (again,) = await asked(second)
            assert again == {**one, "begun": [65, 66]}
            second.send({"pieces": [[answer.name, 67, -0.1, [], "length"]]})
            step = await desk.queue.get()
            assert (step.text, step.end, answer.tokens) == ("C", "length", [65, 66, 67])
            assert not desk.dispatcher.open

    asyncio.run(scene())


def test_replicas_share_the_work_and_take_over() -> None:
    async def scene() -> None:
        async with Desk() as desk:
            engines = [await desk.engine(replica, 2) for replica in range(2)]
            await desk.until(2)
            names = [desk.answer(Prompt(b"p", 1)).name for _ in range(4)]
            shares = [[one["name"] for one in await asked(engine)] for engine in engines]
            assert sorted(shares) == [names[::2], names[1::2]]
            engines[0].close()
            await desk.until(1)
            assert [one["name"] for one in await asked(engines[1])] == shares[0]
            assert desk.dispatcher.expected == 2

    asyncio.run(scene())


def test_a_silent_engine_counts_as_lost() -> None:
    async def scene() -> None:
        async with Desk(stall=0.2) as desk:
            engine = await desk.engine()
            await desk.until(1)
            for _ in range(4):
                await asyncio.sleep(0.1)
                engine.send({"alive": True})
            assert desk.dispatcher.engines
            await desk.until(0)

    asyncio.run(scene())


def test_a_question_that_ends_engines_is_given_up() -> None:
    async def scene() -> None:
        async with Desk() as desk:
            answer = desk.answer(Prompt(b"p", 1))
            for _ in range(LOSSES):
                engine = await desk.engine()
                assert await asked(engine)
                engine.close()
                await desk.until(0)
            step = await desk.queue.get()
            assert step.answer is answer and "may be the cause" in step.failure
            assert not desk.dispatcher.open

    asyncio.run(scene())


def test_what_an_engine_refuses_is_told() -> None:
    async def scene() -> None:
        async with Desk() as desk:
            answer = desk.answer(Prompt(b"p", 1))
            engine = await desk.engine()
            await asked(engine)
            engine.send({"failed": [answer.name], "why": "Too long."})
            assert (await desk.queue.get()).failure == "Too long."

    asyncio.run(scene())


def test_a_front_that_stays_away_is_a_sentence() -> None:
    dialled = Dialled(Address("127.0.0.1", 1), "secret", 0.2)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:1 has not answered for 0 s"):
        while time.monotonic() - began < 10:
            dialled.receive(0.05)


def test_words_are_json() -> None:
    options = Options(stop=("a",), seed=-1)
    answer = Answer("x", 2, Prompt(b"", 0), options, TextStream(str), asyncio.Queue(), [1, 2])
    assert json.loads(json.dumps(answer.words()))["draws"] == "2"
