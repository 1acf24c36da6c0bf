"""A client of a server that speaks OpenAI's chat completions: one question, its answer piece by piece."""

import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from molmo_ds.data.video import film_kind
from molmo_ds.eval.clients.chat import base, headers, picture_part, sentence, video_part
from molmo_ds.eval.pictures import Video

SECONDS = 600


def request_body(
    question: str, pictures: Sequence[np.ndarray], video: Video | None = None, **keys: Any
) -> dict[str, Any]:
    """The body of a request with one message; pictures are uint8 [height, width, 3]."""
    parts = [picture_part(_png(picture), "image/png") for picture in pictures]
    if video is not None:
        parts.append(
            video_part([video.data], f"video/{film_kind(video.data) or 'gif'}", video.keys)
        )
    parts.append({"type": "text", "text": question})
    return {"messages": [{"role": "user", "content": parts}], "stream": True, **keys}


def stream(server: str, key: str | None, body: dict[str, Any]) -> Iterator[str]:
    """The pieces of an answer; ValueError with the server's own sentence where it gives none."""
    url = f"{base(server)}/chat/completions"
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"--server {server} is no URL; write it as http://HOST:PORT.")
    try:
        request = urllib.request.Request(url, json.dumps(body).encode(), headers(key))
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            yield from _pieces(response)
    except urllib.error.HTTPError as error:
        answer = error.read()
        said = sentence(answer)
        said = ascii(answer[:100]) if said is None else said
        raise ValueError(f"{server} answers {error.code}: {said}") from None
    except urllib.error.URLError as error:
        raise ValueError(f"{server} cannot be reached ({error.reason}); is it running?") from None


def _pieces(lines: Iterator[bytes]) -> Iterator[str]:
    for line in lines:
        if line.strip() == b"data: [DONE]":
            return
        if line.startswith(b"data: "):
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise ValueError(f"The answer ended early: {event['error']['message']}")
            yield from (choice["delta"].get("content") or "" for choice in event["choices"])
    raise ValueError("The connection was closed before the answer was whole; ask again.")


def _png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()
