"""The front: HTTP in a process of its own, which outlives the engine. `python -m molmo_ds.serve.front` is started by
serve/watch.py, reads its settings as one line of JSON from its standard input, and ends when that is closed."""

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web

from molmo_ds.infer.text import TextStream
from molmo_ds.serve import protocol
from molmo_ds.serve.address import read_address
from molmo_ds.serve.dispatcher import Answer, Dispatcher, Prompt, Step
from molmo_ds.serve.media import Media
from molmo_ds.serve.metrics import Metrics
from molmo_ds.serve.protocol import Refused, Request
from molmo_ds.serve.settings import FrontSettings

if TYPE_CHECKING:  # which import torch
    from molmo_ds.data.tokens import Tokenizer
    from molmo_ds.serve.prompts import Prompts

log = logging.getLogger(__name__)
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
PAGE_HEADERS = {  # the page may load only what this server has
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src blob:;"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Front:
    """The handlers of one server."""

    def __init__(self, settings: FrontSettings):
        self.settings = settings
        self.metrics = Metrics()
        self.dispatcher = Dispatcher(settings.secret, settings.stall, self.metrics)
        self.media = Media(settings.hosts, settings.max_bytes)
        self.started = int(time.time())
        self.admitted = 0
        self.prompts: asyncio.Future[Prompts] | None = None

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(
            client_max_size=self.settings.max_bytes, middlewares=[self.answer_errors]
        )
        app.add_routes([
            web.post("/v1/chat/completions", self.chat),
            web.get("/v1/models", self.models),
            web.get("/health", self.health),
            web.get("/metrics", self.show_metrics),
            *(web.get(path, self.page) for path in PAGE),
        ])  # fmt: skip
        return app

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen to clients and to the engine; ValueError where the folder has no configuration or tokenizer."""
        settings = self.settings
        self.prompts = asyncio.ensure_future(asyncio.to_thread(load_prompts, settings))
        runner = web.AppRunner(self.app(), handler_cancellation=True, access_log=None)
        await runner.setup()
        address = read_address(settings.address)
        link = read_address(settings.link)
        await web.TCPSite(runner, address.host, address.port).start()
        engines = await asyncio.start_server(self.dispatcher.accept, link.host, link.port)
        try:
            await self.prompts
            yield
        finally:
            engines.close()
            self.dispatcher.hang_up()
            await runner.cleanup()

    @web.middleware
    async def answer_errors(self, http: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error becomes a sentence in OpenAI's form, and every answer is counted."""
        headers = {}
        try:
            response = await handler(http)
        except Refused as refused:
            headers = {"Retry-After": "1"} if refused.status in (429, 503) else {}
            response = failure(refused.status, str(refused), headers)
        except web.HTTPRequestEntityTooLarge:
            response = failure(
                413,
                f"The request has more than {self.settings.max_bytes} bytes; send smaller pictures.",
            )
        except web.HTTPException as error:
            response = failure(
                error.status, f"{http.method} {http.path} is nothing that this server has."
            )
        except ConnectionError:  # the client is gone: no one reads this
            response = failure(499, "The connection was closed before the answer.")
        except Exception:
            log.exception("A request failed.")
            response = failure(500, "The server failed at this request; its log says why.")
        route = http.match_info.route.resource
        self.metrics.requests.labels(
            route.canonical if route else "other", str(response.status)
        ).inc()
        return response

    async def chat(self, http: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        self.check_key(http)
        # counted before the first await, or a burst would pass
        if self.admitted >= self.settings.queue:
            raise Refused(
                429,
                f"{self.admitted} requests are in flight, which is all that are taken; try again.",
            )
        self.admitted += 1
        self.metrics.admitted.set(self.admitted)
        try:
            return await self.answer(http, Deadline(self.dispatcher, self.settings.seconds))
        finally:
            self.admitted -= 1
            self.metrics.admitted.set(self.admitted)

    async def answer(self, http: web.Request, deadline: "Deadline") -> web.StreamResponse:
        """Read, ask, and write what comes."""
        request, prompt, tokenizer = await deadline.keep(self.read(http))
        options = request.options(secrets.randbits(62))
        steps: asyncio.Queue[Step] = asyncio.Queue()
        answers = [
            Answer(
                self.dispatcher.name(),
                index,
                prompt,
                options,
                TextStream(tokenizer.decode, options.stop),
                steps,
            )
            for index in range(request.n or 1)
        ]
        writer = Writer(http, request, self.settings.model, answers, tokenizer, deadline)
        self.dispatcher.ask(answers)
        try:
            return await (writer.stream() if request.stream else writer.whole())
        finally:  # also where the client is gone, which cancels this
            for answer in answers:
                self.dispatcher.forget(answer)

    async def read(self, http: web.Request) -> tuple[Request, Prompt, "Tokenizer"]:
        """A request that can be answered, its prompt, and what knows its words; Refused with a sentence otherwise."""
        # which no page of another site can send unasked
        if http.content_type != "application/json":
            raise Refused(400, "The body must be JSON, sent as Content-Type: application/json.")
        request = protocol.read(await http.read())
        if len(request.pictures) > self.settings.max_pictures:
            raise Refused(
                400,
                f"{len(request.pictures)} pictures are more than the {self.settings.max_pictures} allowed.",
            )
        if request.video:
            files = await self.media.read([request.video.url], "video")
        else:
            files = await self.media.read([picture.url for picture in request.pictures])
        prompts = await asyncio.shield(self.prompts)
        prompt = await asyncio.to_thread(prompts.make, request, files)
        return request, prompt, prompts.tokenizer

    def check_key(self, http: web.Request) -> None:
        """Refuse (401) who does not know the key, if one is set."""
        key = self.settings.api_key
        given = http.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if key and not hmac.compare_digest(given, f"Bearer {key}".encode()):
            raise Refused(401, "This server wants an API key: Authorization: Bearer KEY.")

    async def models(self, http: web.Request) -> web.Response:
        """GET /v1/models; `family` and `prompts` say how the model was trained to be asked."""
        self.check_key(http)
        prompts = await asyncio.shield(self.prompts)
        model = {
            "id": self.settings.model,
            "object": "model",
            "created": self.started,
            "owned_by": "molmo_ds",
            "family": prompts.config.model.family,
            "prompts": prompts.said,
        }
        return web.json_response({"object": "list", "data": [model]})

    async def health(self, http: web.Request) -> web.Response:
        """GET /health: 200 while there is an engine, else 503."""
        there = len(self.dispatcher.engines)
        state = {
            "engines": there,
            "missing": self.dispatcher.expected - there,
            "admitted": self.admitted,
            "unfinished": len(self.dispatcher.open),
        }
        return web.json_response(state, status=200 if there else 503)

    async def show_metrics(self, http: web.Request) -> web.Response:
        """GET /metrics."""
        return web.Response(
            body=self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    async def page(self, http: web.Request) -> web.Response:
        """GET /, and its script and style."""
        name, kind = PAGE[http.path]
        text = (resources.files("molmo_ds.serve") / name).read_text()
        return web.Response(text=text, content_type=kind, headers=PAGE_HEADERS)


class Deadline:
    """The moment until which a request must be answered."""

    def __init__(self, dispatcher: Dispatcher, seconds: float):
        self.dispatcher = dispatcher
        self.seconds = seconds
        self.end = asyncio.get_running_loop().time() + seconds

    async def keep(self, work: Awaitable[T]) -> T:
        """The work's result; Refused where it is not there in time (504), or there is no engine (503)."""
        try:
            async with asyncio.timeout_at(self.end):
                return await work
        except TimeoutError:
            if not self.dispatcher.engines:
                raise Refused(
                    503, "The engine is not there; it is started again. Try later."
                ) from None
            raise Refused(504, f"There was no whole answer within {self.seconds:.0f} s.") from None


class Writer:
    """Writes the answers to one request, whole or as they come."""

    def __init__(
        self,
        http: web.Request,
        request: Request,
        model: str,
        answers: list[Answer],
        tokenizer: "Tokenizer",
        deadline: Deadline,
    ):
        self.http = http
        self.request = request
        self.answers = answers
        self.tokenizer = tokenizer
        self.deadline = deadline
        self.head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self.texts = [""] * len(answers)
        self.logs: list[list[dict]] = [[] for _ in answers]

    async def whole(self) -> web.Response:
        """One JSON object at the end."""
        ends = [""] * len(self.answers)
        while not all(ends):
            step = await self.next()
            ends[step.answer.index] = protocol.FINISH.get(step.end, "")
        choices = [
            protocol.choice(
                i, self.texts[i], ends[i], self.logs[i] if self.request.logprobs else None
            )
            for i in range(len(self.answers))
        ]
        return web.json_response(protocol.completion(self.head, choices, self.usage()))

    async def stream(self) -> web.StreamResponse:
        """Server-sent events; the status waits for the first token, so that a refusal can still be one."""
        step = await self.next()
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(self.http)
        for index in range(len(self.answers)):
            await self.send(
                response, protocol.chunk(self.head, index, {"role": "assistant", "content": ""})
            )
        left = len(self.answers)
        try:
            while True:
                await self.send_step(response, step)
                left -= step.end is not None
                if not left:
                    break
                step = await self.next()
        except Refused as refused:
            await self.send(response, protocol.error(refused.status, str(refused)))
            return response
        if self.request.include_usage:
            counted = {
                **self.head,
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": self.usage(),
            }
            await self.send(response, counted)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def next(self) -> Step:
        """The next step, with its text and log-probabilities noted; Refused (500) where there will be no answer."""
        step = await self.deadline.keep(self.answers[0].steps.get())
        if step.failure is not None:
            raise Refused(500, step.failure)
        index = step.answer.index
        shown = step.text if self.texts[index] else step.text.lstrip()  # answers begin with a space
        self.texts[index] += shown
        step = step.showing(shown)
        if self.request.logprobs and step.end != "stop":
            self.logs[index].append(self.logprob(step))
        return step

    async def send_step(self, response: web.StreamResponse, step: Step) -> None:
        """The chunks of a step: its text, then its end."""
        index = step.answer.index
        logs = None
        if self.request.logprobs and self.logs[index]:
            logs = [self.logs[index].pop()]
        if step.text or logs:
            await self.send(
                response, protocol.chunk(self.head, index, {"content": step.text}, None, logs)
            )
        if step.end is not None:
            await self.send(
                response, protocol.chunk(self.head, index, {}, protocol.FINISH[step.end])
            )

    async def send(self, response: web.StreamResponse, event: dict) -> None:
        """One event."""
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def logprob(self, step: Step) -> dict:
        """A step's token as the protocol writes it."""
        top = [(self.tokenizer.decode([word]), value) for word, value in step.top]
        return protocol.logprob(self.tokenizer.decode([step.token]), step.log_probability, top)

    def usage(self) -> dict[str, int]:
        """Tokens of the prompt, which is read once for all choices, and of all answers."""
        return protocol.usage(
            self.answers[0].prompt.tokens, sum(len(answer.tokens) for answer in self.answers)
        )


def failure(status: int, sentence: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error as a response."""
    return web.json_response(protocol.error(status, sentence), status=status, headers=headers)


def load_prompts(settings: FrontSettings) -> "Prompts":
    """What makes the prompts; torch is imported here, while the front listens already."""
    from molmo_ds.serve.prompts import Prompts

    return Prompts(settings.folder, settings.tokenizer, settings.max_pixels, settings.max_frames)


async def serve(settings: FrontSettings) -> None:
    """Serve until the standard input is closed."""
    async with Front(settings).listening():
        await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    """Serve until the standard input is closed; a user's mistake is a sentence and exit code 1."""
    logging.basicConfig(format="front: %(message)s", level=logging.WARNING)
    values = json.loads(sys.stdin.readline())
    settings = FrontSettings(**{**values, "hosts": tuple(values.get("hosts", ()))})
    try:
        asyncio.run(serve(settings))
    except (ValueError, OSError) as error:
        sys.exit(f"front: {error}")


if __name__ == "__main__":
    main()
