"""Engines that are killed, stopped and started again while requests are in flight: none is lost, no token changes."""

import asyncio
import gc
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from molmo_ds.data.tokens import Tokenizer
from molmo_ds.infer.generate import Options, generate
from molmo_ds.infer.load import load
from molmo_ds.infer.replica import Replica
from molmo_ds.serve.worker import Ranks, Worker
from molmo_ds.testing.parrot import Parrot
from molmo_ds.testing.serving import Server, chat, data_url, post

QUESTIONS = [
    chat(f"{word} " * 9, temperature=warm, seed=7, n=many)
    for word, warm, many in [
        ("one", 0, 1),
        ("two", 0.5, 1),
        ("three", 0, 2),
        ("four", 0.5, 3),
        ("five", 0, 1),
    ]
]


class Killable:
    """An engine in a process of its own: a parrot that takes 20 ms for a token."""

    def __init__(self, server: Server, eos: int):
        self.pid = os.fork()
        if self.pid:
            return
        gc.freeze()
        logging.disable()
        try:
            Worker(Parrot(eos, 0.02), Ranks(), server.dialled()).run()
        except ValueError as error:
            os._exit(3 if "has not answered" in str(error) else 4)
        finally:
            os._exit(5)

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@contextmanager
def engine(server: Server, eos: int) -> Iterator[Killable]:
    made = Killable(server, eos)
    server.wait_for_engine()
    yield made
    made.kill()


async def texts(url: str, body: dict) -> list[str]:
    """The choices' texts, joined from a stream."""
    said: dict[int, str] = {}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json={**body, "stream": True}) as response,
    ):
        assert response.status == 200
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                for choice in event["choices"]:
                    said[choice["index"]] = said.get(choice["index"], "") + choice["delta"].get(
                        "content", ""
                    )
    return [said[index] for index in sorted(said)]


async def whole(url: str, body: dict) -> list[str]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200
        return [choice["message"]["content"] for choice in (await response.json())["choices"]]


async def all_of(url: str) -> list[list[str]]:
    """Every question, streamed and not."""
    ways = (texts(url, body) if i % 2 else whole(url, body) for i, body in enumerate(QUESTIONS * 2))
    return await asyncio.gather(*ways)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_nothing_is_lost_and_no_token_changes(
    folder: Path, tokenizer: Tokenizer, number: int
) -> None:
    server = Server(folder, queue=20, seconds=60.0, stall=1.0)
    with server.front_in_a_thread():
        with engine(server, tokenizer.eos):
            wanted = asyncio.run(all_of(server.url))

        async def scene() -> list[list[str]]:
            asked = asyncio.create_task(all_of(server.url))
            first = await asyncio.to_thread(Killable, server, tokenizer.eos)
            await begun(server, 2)
            os.kill(first.pid, number)
            await asyncio.to_thread(server.wait_for_engine, False)  # 503, within the stall
            await asyncio.sleep(0.1)
            assert not asked.done()
            second = await asyncio.to_thread(Killable, server, tokenizer.eos)
            said = await asked
            for made in (first, second):
                made.kill()
            return said

        assert asyncio.run(scene()) == wanted
        assert not server.front.dispatcher.open


async def begun(server: Server, tokens: int) -> None:
    """Until every answer of the questions has so many tokens."""
    async with asyncio.timeout(30):
        while True:
            answers = list(server.front.dispatcher.open.values()) if server.front else []
            if len(answers) == 16 and all(len(answer.tokens) >= tokens for answer in answers):
                return
            await asyncio.sleep(0.005)


def test_a_front_that_is_killed(folder: Path, tokenizer: Tokenizer) -> None:
    """The engine forgets its questions, waits for another front, and ends with a sentence if there is none."""
    server = Server(folder)
    parrot = Parrot(tokenizer.eos, 0.05)
    worker = Worker(parrot, Ranks(), server.dialled(patience=1.5))
    with server.front_in_a_thread(), server.engine_in_a_thread(parrot):
        pass
    made = Killable(server, tokenizer.eos)
    with server.front_in_a_thread():
        server.wait_for_engine()
        assert post(server.url, chat("Why?"))[0] == 200
    with server.front_in_a_thread():
        server.wait_for_engine()
        assert post(server.url, chat("Why?"))[0] == 200
    began = time.monotonic()
    with pytest.raises(ValueError, match="has not answered for 2 s; is it running"):
        while time.monotonic() - began < 20:
            worker.tick()
    made.kill()


def test_the_network_answers_as_generate_does(folder: Path) -> None:
    """Through HTTP; and again with the engine replaced half way: the same tokens as in one piece."""
    answerer = load(folder)
    eos = answerer.builder.tokenizer.eos
    prompt = answerer.batch([answerer.builder.prompt([], "How many?")])
    made = generate(answerer.model, prompt, eos, Options(max_new_tokens=12))
    wanted = made.texts(answerer.builder.tokenizer.decode)[0].lstrip()
    server = Server(folder, seconds=30.0)
    body = chat("How many?", data_url(), max_tokens=12, temperature=1.0, seed=4, n=2)
    with server.front_in_a_thread():
        with server.engine_in_a_thread(Replica.of(answerer.model, eos)):
            _, answer = post(server.url, chat("How many?", max_tokens=12))
            assert answer["choices"][0]["message"]["content"] == wanted
            _, whole = post(server.url, body)
        assert whole["choices"][0]["message"] != whole["choices"][1]["message"]
        with ThreadPoolExecutor() as clients:
            asked = clients.submit(post, server.url, body)
            first = Worker(Replica.of(answerer.model, eos), Ranks(), server.dialled())
            while sum(len(open.tokens) for open in server.front.dispatcher.open.values()) < 8:
                first.tick()
            assert not asked.done()
            first.front.close()
            second = Worker(Replica.of(answerer.model, eos), Ranks(), server.dialled())
            while not asked.done():
                second.tick()
            _, again = asked.result()
        assert again["choices"] == whole["choices"] and again["usage"] == whole["usage"]
