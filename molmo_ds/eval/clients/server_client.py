"""Answers by any server that speaks OpenAI's chat completions: ours, vLLM, or another."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from numpy.random import RandomState
from PIL import Image

from molmo_ds.config import PromptConfig
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.video import film_kind
from molmo_ds.eval.clients.chat import (
    FRAMES,
    VERBATIM,
    base,
    headers,
    picture_part,
    sentence,
    video_part,
)
from molmo_ds.eval.clients.client import Ask, Reply, failure
from molmo_ds.settings import from_dict
from molmo_ds.weights.released_config import FAMILY

log = logging.getLogger(__name__)
KEY = "OPENAI_API_KEY"  # of the environment
ATTEMPTS = 8  # of one question
FIRST_DELAY = 0.5  # seconds before the second attempt; doubles with each further one
LONGEST_DELAY = 60.0  # also caps what a server's Retry-After can ask for
TIMEOUT = 600.0  # seconds for one answer
AGAIN = (408, 409, 425, 429)  # and every 5xx: the next attempt may succeed
REFUSED = (401, 403, 404)  # no question would be answered
# finish_reason -> the end of a reply; of any other the reply is none
ENDS = {"stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length"}


def bare(said: Any, family: str) -> PromptConfig:
    """How a served model of a family is asked, without its turns: a chat template adds them."""
    prompts = from_dict(PromptConfig, said) if isinstance(said, dict) else FAMILY[family]
    return replace(prompts, message_format="none", always_start_with_space=False)


def family_of(served: dict[str, Any]) -> str:
    """The family of a model, as the server says or, where it does not, by the model's name, which is told."""
    said = served.get("family")
    if isinstance(said, str) and said in FAMILY:
        return said
    name = str(served["id"])
    found = "molmo2" if "molmo2" in name.lower() else "molmo"
    log.warning(
        "The server does not say of which family %s is; by its name it is asked as %s, with the prompts and the "
        "lengths of answers of that family (--family says otherwise).",
        name,
        found,
    )
    return found


class Unanswered(Exception):
    """One question got no answer; its sentence says why."""


class ServerClient:
    """A server at `url` (with or without /v1), asked `parallel` questions at once; temperature 0.

    The key comes from the environment variable OPENAI_API_KEY, if it is set. The text of a question is what training's
    PromptFormatter makes of it under `prompts`; turns are left to the server's chat template.

    Args:
        prompts: None = what the server says of itself, as ours does; or those of the family's released models.
        family: of the model: molmo, molmo2 or hemolmo; None = what the server says, or its model's name speaks of.
    """

    def __init__(
        self,
        url: str,
        parallel: int = 16,
        model: str | None = None,
        prompts: PromptConfig | None = None,
        max_crops: int | None = None,
        first_delay: float = FIRST_DELAY,
        timeout: float = TIMEOUT,
        family: str | None = None,
    ):
        self.url = base(url)
        self.parallel = parallel
        self.max_crops = max_crops
        self.first_delay = first_delay
        self.timeout = timeout
        served = self._served(model)
        self.model = str(served["id"])
        self.family = family or family_of(served)
        self.prompts = prompts or bare(served.get("prompts"), self.family)
        self.formatter = PromptFormatter(self.prompts)

    def replies(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """As in `Client`. ValueError where the server refuses all of them: no such address, model or key."""
        asks = iter(asks)
        with ThreadPoolExecutor(self.parallel) as pool:
            running: set[Future] = set()
            try:
                while True:
                    fresh = itertools.islice(asks, 2 * self.parallel - len(running))
                    running |= {pool.submit(self._reply, ask) for ask in fresh}
                    if not running:
                        return
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                for future in running:
                    future.cancel()

    def _reply(self, ask: Ask) -> Reply:
        try:
            text = self.formatter.messages(ask.annotation, RandomState(ask.seed), inference=True)[
                -1
            ]
            content = [*_parts(ask), {"type": "text", "text": text}]
        # an annotation that cannot be used, a picture that is none
        except (ValueError, OSError) as error:
            return failure(ask, error)
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": ask.max_new_tokens,
            "temperature": 0,
            "style": VERBATIM,
        }
        if self.max_crops is not None:
            body["max_crops"] = self.max_crops
        try:
            return _read(ask, self._call("/chat/completions", body), text)
        except Unanswered as error:
            return failure(ask, error)

    def _served(self, model: str | None) -> dict[str, Any]:
        """What the server says of a model, or of the only one that it has."""
        try:
            found = self._call("/models", None)["data"]
            return next(one for one in found if model in (None, one["id"]))
        except (Unanswered, LookupError, TypeError, StopIteration, ValueError) as error:
            if model is not None:  # some servers do not list what they have
                return {"id": model}
            if isinstance(error, ValueError):
                raise
            raise ValueError(
                f"{self.url} does not say which model it serves ({error}); check --server."
            ) from None

    def _call(self, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON of an answer; tries again, ever later, what may succeed later."""
        for attempt in range(ATTEMPTS):
            delay = self.first_delay * 2**attempt
            try:
                return self._once(path, body)
            except urllib.error.HTTPError as error:
                said = _error_text(error)
                if error.code in REFUSED:
                    raise ValueError(
                        f"{self.url}{path} refuses with {error.code}: {said}"
                    ) from None
                if error.code not in AGAIN and error.code < 500:
                    raise Unanswered(f"{error.code}: {said}") from None
                why = f"{error.code}: {said}"
                asked = error.headers.get("Retry-After", "")
                delay = float(asked) if asked.isdigit() else delay
            except (OSError, http.client.HTTPException) as error:
                why = f"{getattr(error, 'reason', None) or error or type(error).__name__}"
            except ValueError:
                why = "its answer is no JSON"
            if attempt + 1 < ATTEMPTS:
                time.sleep(min(delay, LONGEST_DELAY))
        raise Unanswered(f"no answer in {ATTEMPTS} attempts; the last: {why}")

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers(os.environ.get(KEY)))
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return json.loads(answer.read())


def _read(ask: Ask, answer: Any, prompt: str) -> Reply:
    """The reply in a server's answer; one without a text is a failure, never an empty reply."""
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        reason = choice.get("finish_reason")
        usage = answer.get("usage")
    except (LookupError, TypeError, AttributeError):
        raise Unanswered("the server's answer has no choices with a message") from None
    if not isinstance(text, str):
        raise Unanswered("the server's answer has no text")
    if not isinstance(reason, str) or reason not in ENDS:  # content_filter, abort, ...
        raise Unanswered(f"the server ended its answer with finish_reason {reason!r}")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    kind = "IMAGE" if ask.film is None else "VIDEO"
    shown = f"{kind}[{len(ask.pictures)}] " if ask.pictures else ""
    return Reply(
        id=ask.id,
        text=text.strip(),
        token_count=tokens if isinstance(tokens, int) else 0,
        end=ENDS[reason],
        prompt=shown + prompt,
    )


def _parts(ask: Ask) -> list[dict[str, Any]]:
    if ask.film is None:
        return [picture_part(picture, _kind(picture)) for picture in ask.pictures]
    frames = ask.film.get("fps") is not None
    kind = FRAMES if frames else f"video/{film_kind(ask.pictures[0]) or 'gif'}"
    return [video_part(ask.pictures, kind, ask.film)]


def _kind(picture: bytes) -> str:
    return Image.open(io.BytesIO(picture)).get_format_mimetype() or "image/jpeg"


def _error_text(error: urllib.error.HTTPError) -> str:
    try:
        said = sentence(error.read())
    except OSError:
        said = None
    return str(error.reason) if said is None else said
