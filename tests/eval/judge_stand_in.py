"""A judge on loopback that answers as a test tells it, and counts what it sees."""

import asyncio
import collections
import json
import re
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

# (call, caption or claims, how often it was asked) -> reply or web.Response
Behaviour = Callable[[str, str, int], Any]


class StandIn:
    """`with StandIn(behaviour) as judge:` serves at judge.url.

    `behaviour` gives the text of a reply, a web.Response, or a number of seconds to sleep before a right reply; None is
    a right reply: the odd statements are stated, the odd claims consistent, and nothing repeats.
    """

    def __init__(self, behaviour: Behaviour = lambda call, text, times: None, seconds: float = 0.0):
        self.behaviour = behaviour
        self.seconds = seconds  # that every reply takes
        self.asked: collections.Counter[str] = collections.Counter()  # request -> how often
        # recall, claims, ... -> how often
        self.calls: collections.Counter[str] = collections.Counter()
        self.keys: set[str] = set()
        self.temperatures: dict[str, Any] = {}
        self.times: list[float] = []  # of requests, on the loop's clock
        self.now = 0
        self.most = 0  # requests at a time
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.url = ""

    def __enter__(self) -> "StandIn":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    async def _answer(self, request: web.Request) -> web.Response:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._reply(request)
        finally:
            self.now -= 1

    async def _reply(self, request: web.Request) -> web.Response:
        body = await request.json()
        text = body["messages"][0]["content"]
        call = call_of(text)
        self.times.append(self._loop.time())
        self.asked[text] += 1
        self.calls[call] += 1
        self.keys.add(request.headers.get("Authorization", ""))
        self.temperatures[call] = body.get("temperature")
        said = self.behaviour(call, subject(text), self.asked[text])
        await asyncio.sleep(self.seconds + (said if isinstance(said, float) else 0.0))
        if isinstance(said, web.Response):
            return said
        return completion(said if isinstance(said, str) else right(call, text))


def completion(text: str | None, finish: str = "stop", **message: Any) -> web.Response:
    """A chat completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
    }
    return web.json_response({"choices": [choice], "usage": {"total_tokens": 10}})


def error(status: int, message: str = "no", **headers: str) -> web.Response:
    """An error as OpenAI sends it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(
        status=status,
        text=json.dumps({"error": {"message": message}}),
        content_type="application/json",
        headers=named,
    )


def call_of(text: str) -> str:
    """Which of the calls a request is."""
    if text.startswith("Mark what"):
        return "marks"
    if "<transcript>" in text:
        return "consistency"
    if "<statements>" in text:
        return "supported" if "<description>" in text else "recall"
    if "its category after a bar" in text:
        return "kinds"
    return "repetition" if "Yes or No" in text else "claims"


def subject(text: str) -> str:
    """The caption of a request, or the claims; the whole of another."""
    found = re.search(r"<(caption|claims|description)>\n(.*?)\n</", text, re.S)
    return text if found is None else found[2]


def right(call: str, text: str) -> str:
    """What an orderly judge would say."""
    if call == "marks":
        names = re.findall(r'"(\w+)": MARK', text)
        return f"Well done. {json.dumps(dict(zip(names, (4, 2.5))))}"
    if call == "repetition":
        return "No"
    if call == "claims":
        return "\n".join(
            f"{i}. {part.strip()}" for i, part in enumerate(subject(text).split(","), 1)
        )
    if call == "kinds":
        return "\n".join(f"{line} | Action" for line in subject(text).splitlines())
    yes, no = (
        ("Stated", "Not Stated")
        if call in ("recall", "supported")
        else ("Consistent", "Inconsistent")
    )
    listed = re.search(r"<(?:statements|claims)>\n(.*?)\n</", text, re.S)[1].splitlines()
    return "\n".join(f"{i}. {yes if i % 2 else no}" for i in range(1, len(listed) + 1))
