"""The judge: an OpenAI-compatible server at any URL, asked through a cache and with back-off."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp

from molmo_ds.eval.captions.cache import Cache, file_name, is_completion
from molmo_ds.eval.captions.prompts import Messages
from molmo_ds.eval.clients.chat import sentence

FIRST_DELAY = 0.5  # seconds before the second try; doubles with each further try
LONGEST_DELAY = 60.0
LONGEST_RETRY_AFTER = 600.0  # a server that asks for more waits no longer than this
LOST_IN_A_ROW = 20  # calls without a reply, one after the other, that end the run
TRANSIENT = (408, 409, 425, 429)  # statuses below 500 that are tried again
OURS = {  # statuses that no other call would fare better with
    401: "refuses the key; name the environment variable that holds it with --judge-key-env",
    403: "refuses the key; name the environment variable that holds the right one with --judge-key-env",
    404: "has no such address or model; --judge-url ends in /v1 on most servers, --judge-model is the server's name",
}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the judge is and how it is asked."""

    url: str  # up to and without /chat/completions; empty: only the cache answers
    model: str
    key_variable: str = ""  # environment variable of the key; empty: no key is sent
    parallel: int = 16  # captions judged at a time, each with one call in flight
    attempts: int = 6  # tries of a call
    timeout: float = 120.0  # seconds of one try


class Lost(Exception):
    """A call that has no reply; `kind` is refused, too long, no reply or not cached."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Judge:
    """Asks one model; `async with` it, since it holds connections.

    `sent`, `cached` and `tokens` count requests, replies from the cache and tokens that the server counted.
    """

    def __init__(self, endpoint: Endpoint, cache: Cache):
        self.endpoint = endpoint
        self.cache = cache
        self.sent = 0
        self.cached = 0
        self.tokens = 0
        self._session: aiohttp.ClientSession | None = None
        self._pause_until = 0.0  # on the clock of time.monotonic: the server asked for a pause
        self._lost_in_a_row = 0

    async def __aenter__(self) -> Judge:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, messages: Messages, options: dict[str, Any], again: bool = False) -> str:
        """The reply to a conversation, from the cache where it is there, unless it is asked `again`.

        Raises Lost where this call has no reply, ValueError where no call can have one: a refused key, an unknown
        model, or LOST_IN_A_ROW calls in a row without a reply.
        """
        name = file_name(self.endpoint.model, messages, options)
        completion = None if again else self.cache.get(name)
        if completion is not None:
            self.cached += 1
            return _text(completion)
        completion = await self._fetch(messages, options)
        self.cache.put(name, completion)
        return _text(completion)

    async def _fetch(self, messages: Messages, options: dict[str, Any]) -> dict[str, Any]:
        if not self.endpoint.url:
            raise Lost("not cached", "The reply is not in the cache, and no --judge-url is given.")
        try:
            completion = await self._attempts(
                {"model": self.endpoint.model, "messages": messages, **options}
            )
        except Lost as error:
            self._lost_in_a_row += 1
            if self._lost_in_a_row < LOST_IN_A_ROW:
                raise
            raise ValueError(
                f"The judge at {self.endpoint.url} left {LOST_IN_A_ROW} calls in a row without a reply, the last with: "
                f"{error.reason} All replies until then are in {self.cache.folder}; start again later."
            ) from None
        self._lost_in_a_row = 0
        usage = completion.get("usage")
        counted = usage.get("total_tokens") if isinstance(usage, dict) else None
        self.tokens += counted if isinstance(counted, int) else 0
        return completion

    async def _attempts(self, request: dict[str, Any]) -> dict[str, Any]:
        reason = ""
        for attempt in range(self.endpoint.attempts):
            if attempt:
                longest = min(FIRST_DELAY * 2 ** (attempt - 1), LONGEST_DELAY)
                # or all would come back at once
                await asyncio.sleep(longest * random.uniform(0.5, 1.0))
            await self._wait_for_pause()
            try:
                return await self._send(request)
            except _Transient as error:
                reason = str(error)
            except TimeoutError:
                reason = f"there was no reply within {self.endpoint.timeout:g} s"
            except (aiohttp.ClientError, OSError) as error:
                reason = str(error) or type(error).__name__
        raise Lost("no reply", f"{self.endpoint.attempts} tries failed, the last because {reason}.")

    async def _wait_for_pause(self) -> None:
        while (wait := self._pause_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    async def _send(self, request: dict[str, Any]) -> dict[str, Any]:
        """One try."""
        session = self._connected()
        self.sent += 1
        async with session.post(
            self.endpoint.url.rstrip("/") + "/chat/completions", json=request
        ) as response:
            body = await response.text()
            if response.status != 200:
                raise self._failure(response.status, body, response.headers.get("Retry-After", ""))
        completion = _parsed(body)
        if completion is None:
            raise _Transient(f"what came is no chat completion: {body[:60]!r}")
        return completion

    def _failure(self, status: int, body: str, retry_after: str) -> Exception:
        said = f"status {status}: {_message(body)}"
        if status in OURS:
            return ValueError(f"The judge at {self.endpoint.url} {OURS[status]} ({said}).")
        if status < 500 and status not in TRANSIENT:
            return Lost("refused", f"The server refuses the call, {said}.")
        wait = min(_seconds(retry_after), LONGEST_RETRY_AFTER)
        self._pause_until = max(self._pause_until, time.monotonic() + wait)
        return _Transient(said)

    def _connected(self) -> aiohttp.ClientSession:
        """The session; the key is looked up here, so that replies from the cache need none."""
        if self._session is None:
            headers = {}
            variable = self.endpoint.key_variable
            if variable:
                key = os.environ.get(variable, "").strip()
                if not key:
                    raise ValueError(
                        f"The environment variable {variable} is empty; put the judge's key there."
                    )
                headers["Authorization"] = f"Bearer {key}"
            timeout = aiohttp.ClientTimeout(total=self.endpoint.timeout)
            connector = aiohttp.TCPConnector(limit=self.endpoint.parallel)
            self._session = aiohttp.ClientSession(
                headers=headers, timeout=timeout, connector=connector
            )
        return self._session


class _Transient(Exception):
    """A try that may succeed later."""


def _text(completion: dict[str, Any]) -> str:
    """The words of a completion. Raises Lost where the model refused, or its reply ends before the end."""
    choice = completion["choices"][0]
    message = choice.get("message") or {}
    finish = choice.get("finish_reason")
    if message.get("refusal") or finish == "content_filter":
        raise Lost("refused", f"The judge refuses: {message.get('refusal') or finish}.")
    if finish == "length":
        raise Lost("too long", "The judge's reply was cut at the longest that the server gives.")
    return message.get("content") or ""


def _parsed(body: str) -> dict[str, Any] | None:
    """A chat completion, or None."""
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return completion if is_completion(completion) else None


def _message(body: str) -> str:
    """What an error says, in at most 200 characters."""
    said = sentence(body)
    return " ".join((body if said is None else said).split()).rstrip(".")[:200]


def _seconds(retry_after: str) -> float:
    """How long Retry-After asks to wait: seconds or a date; 0 where it is missing or no such thing."""
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0
