"""What all clients of OpenAI's chat completions here share: headers, pictures, and what an error says."""

from __future__ import annotations

import base64
import json

# our server's key `style`: the text is a whole prompt, the tag of a style included
VERBATIM = "verbatim"


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


def sentence(body: bytes | str) -> str | None:
    """What the body of an error says, None where it has no form that is known."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return None
