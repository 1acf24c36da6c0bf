"""What all clients of OpenAI's chat completions here share: headers, pictures, and what an error says."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

# our server's key `style`: the text is a whole prompt, the tag of a style included
VERBATIM = "verbatim"
FRAMES = "video/jpeg"  # the type of a video that is kept as pictures
# of a record, next to a video's URL
VIDEO_KEYS = ("clip", "subtitles", "num_frames", "frame_rates", "fps")


def base(url: str) -> str:
    """The address that a server's paths follow, whether it is given with /v1 or without."""
    return url.rstrip("/").removesuffix("/v1") + "/v1"


def headers(key: str | None) -> dict[str, str]:
    """Of a request with a JSON body, with the key where there is one."""
    kind = {"Content-Type": "application/json"}
    return kind | {"Authorization": f"Bearer {key}"} if key else kind


def picture_part(encoded: bytes, kind: str) -> dict:
    """A part of a message's content; `kind` is the picture's MIME type."""
    url = f"data:{kind};base64,{base64.b64encode(encoded).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def video_part(files: Sequence[bytes], kind: str, film: Mapping[str, Any]) -> dict:
    """The same for a video, or for the frames that it is kept as: one URL, commas between them, as vLLM reads them.

    What `film` (`record.film_of`) says of it stands next to the URL, where our server reads it.
    """
    encoded = ",".join(base64.b64encode(file).decode() for file in files)
    keys = {name: value for name, value in film.items() if name in VIDEO_KEYS}
    url = f"data:{kind};base64,{encoded}"
    return {"type": "video_url", "video_url": {"url": url, **keys}}


def sentence(body: bytes | str) -> str | None:
    """What the body of an error says, None where it has no form that is known."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return None
