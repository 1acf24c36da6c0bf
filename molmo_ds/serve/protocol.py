"""OpenAI's chat completions: a request read and checked, an answer, a chunk of one and an error written.

It imports no torch, so that the front answers at once.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
)

from molmo_ds.infer.options import Options
from molmo_ds.serve.keys import Known, Read

KINDS = {  # HTTP status -> the type of an error
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "not_found_error",
    413: "request_too_large",
    429: "overloaded",
    503: "unavailable",
    504: "timeout",
}
FINISH = {"stop": "stop", "length": "length", "context": "length"}  # a Piece's end -> finish_reason
LEAST_LOG = -9999.0  # what OpenAI writes for a log-probability of minus infinity, which JSON lacks
NEW_TOKENS = 448  # unless a request says how many
CHOICES = 16


class Refused(Exception):
    """A request that gets no answer: its HTTP status, and one sentence that says why and what to do."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode without lone surrogates") from None
    return text


def _as_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError("must be a text or a list of parts of type text, image_url or video_url")
    return content


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_object(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_encodable)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class TextPart(Read):
    """Words of a message."""

    type: Literal["text"]
    text: Text


class ImageURL(Read):
    """Where a picture is, and how closely it is looked at."""

    url: Text
    detail: Literal["auto", "low", "high"] | None = None  # low = one crop


class ImagePart(Read):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_as_object)]


class VideoURL(Read):
    """Where a video is, and what of it is shown, in the words of a record (docs/reference/data-format.md)."""

    url: Text
    clip: list[float] | None = None  # [begin, end] in seconds
    num_frames: int | None = None  # the most that are shown
    frame_rates: list[float] | None = None  # those that may be taken, ascending
    subtitles: Any = None  # a text, or a list of [begin, end, text]
    fps: float | None = None  # of a video that is kept as pictures

    def film(self) -> dict[str, Any]:
        """What it says of the video, without its URL."""
        return self.model_dump(mode="json", exclude={"url"}, exclude_none=True)


class VideoPart(Read):
    """A video of a message."""

    type: Literal["video_url"]
    video_url: Annotated[VideoURL, BeforeValidator(_as_object)]


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(Read):
    """One turn of a conversation, or what the system says before it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)]

    @property
    def text(self) -> str:
        """The words of all parts."""
        return " ".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def pictures(self) -> list[ImageURL]:
        """The pictures of all parts."""
        return [part.image_url for part in self.content if isinstance(part, ImagePart)]

    @property
    def videos(self) -> list[VideoURL]:
        """The videos of all parts."""
        return [part.video_url for part in self.content if isinstance(part, VideoPart)]

    @property
    def shows(self) -> bool:
        """Whether it has a picture or a video."""
        return bool(self.pictures or self.videos)


class StreamOptions(Read):
    """What a stream ends with."""

    include_usage: bool | None = None


class Request(Known):
    """The body of POST /v1/chat/completions; other keys are ignored, but for those of `Known`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    stop: (
        Annotated[
            list[Annotated[Text, Field(min_length=1)]],
            Field(max_length=16),
            BeforeValidator(_as_list),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # verbatim: the text is the whole prompt
    style: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,60}$")] | None = None
    max_crops: Annotated[int, Field(ge=1, le=36)] | None = None

    @property
    def pictures(self) -> list[ImageURL]:
        """The pictures of all messages, in order."""
        return [picture for message in self.messages for picture in message.pictures]

    @property
    def video(self) -> VideoURL | None:
        """The video of all messages, of which there is one at most."""
        return next((video for message in self.messages for video in message.videos), None)

    @property
    def turns(self) -> list[str]:
        """The texts of user and assistant, the user's first; what the system says goes before the first."""
        first, *_ = self.messages
        if first.role in ("system", "developer"):
            _, user, *others = self.messages
            return [f"{first.text}\n{user.text}", *(message.text for message in others)]
        return [message.text for message in self.messages]

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def options(self, seed: int) -> Options:
        """How the answers are made; `seed` counts where the request has none."""
        return Options(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or NEW_TOKENS,
            temperature=self.temperature or 0.0,
            top_k=max(0, self.top_k or 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=seed if self.seed is None else self.seed,
            stop=tuple(self.stop or ()),
            logprobs=self.top_logprobs or 0,
        )


def read(body: bytes) -> Request:
    """A request; Refused (400) with a sentence that names the key where it is none."""
    try:
        request = Request.model_validate_json(body)
    except ValidationError as error:
        raise Refused(400, _sentence(error)) from None
    _check_turns(request.messages)
    if request.top_logprobs and not request.logprobs:
        raise Refused(400, "'top_logprobs' needs logprobs: true.")
    if request.style in (None, "demo", "verbatim") and not request.messages[-1].text.strip():
        raise Refused(
            400,
            "The question is empty; write one, or name a style that needs none, as long_caption.",
        )
    if request.include_usage and not request.stream:
        raise Refused(400, "'stream_options' needs stream: true; an answer has its usage anyway.")
    return request


def _check_turns(messages: list[Message]) -> None:
    start = 1 if messages[0].role in ("system", "developer") else 0
    if messages[0].shows and start:
        raise Refused(
            400, "'messages[0]' is the system's and has a picture; only the user can show one."
        )
    videos = sum(len(message.videos) for message in messages)
    if videos > 1 or (videos and any(message.pictures for message in messages)):
        raise Refused(400, "A conversation is about one video or about pictures, not both.")
    if not messages[start:] or messages[-1].role != "user":
        raise Refused(400, "'messages' must end with a message of the user.")
    for i, message in enumerate(messages[start:]):
        wanted = "assistant" if i % 2 else "user"
        if message.role != wanted:
            raise Refused(
                400,
                f"'messages[{start + i}]' has the role {message.role} where {wanted} is expected: user and assistant"
                " take turns, and the system speaks first or not at all.",
            )
        if wanted == "assistant" and (message.shows or not message.text.strip()):
            raise Refused(
                400,
                f"'messages[{start + i}]' is the assistant's and must be a text, without a picture.",
            )


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in _path(first["loc"])
    ).lstrip(".")
    kind = first["type"]
    if kind == "json_invalid":
        return f"The body is no JSON: {first['msg'].removeprefix('Invalid JSON: ')}."
    if kind == "missing":
        return f"'{where}' is missing."
    if kind.startswith("union_tag"):
        return (
            f"'{where}' is no part of type text, image_url or video_url, the types that are known."
        )
    what = (
        first["msg"]
        .removeprefix("Value error, ")
        .replace("Input should be", "must be")
        .replace("should", "must")
    )
    if kind == "value_error" and "has the unknown key" in what:
        return f"{repr(where) if where else 'The body'} {what}."
    given = ascii(first["input"])
    given = given if len(given) <= 60 else given[:57] + "..."
    return f"{repr(where) if where else 'The body'}: {what}, but is {given}."


def _path(steps: tuple[int | str, ...]) -> list[int | str]:
    """Without the names of the kinds of a part, which pydantic puts between."""
    return [
        step
        for i, step in enumerate(steps)
        if not (i and step in ("text", "image_url", "video_url") and _is_index(steps[i - 1]))
    ]


def _is_index(step: int | str) -> bool:
    return isinstance(step, int)


def error(status: int, sentence: str) -> dict[str, Any]:
    """The body of an error."""
    return {
        "error": {"message": sentence, "type": KINDS.get(status, "server_error"), "code": status}
    }


def usage(prompt: int, completion: int) -> dict[str, int]:
    """How many tokens were read and made."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def completion(
    head: dict[str, Any], choices: list[dict[str, Any]], counted: dict[str, int]
) -> dict[str, Any]:
    """The body of a whole answer; `head` holds id, created and model."""
    return {**head, "object": "chat.completion", "choices": choices, "usage": counted}


def choice(
    index: int, text: str, reason: str, logprobs: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """One of the answers of a completion."""
    message = {"role": "assistant", "content": text}
    content = None if logprobs is None else {"content": logprobs}
    return {"index": index, "message": message, "logprobs": content, "finish_reason": reason}


def chunk(
    head: dict[str, Any],
    index: int,
    delta: dict[str, str],
    reason: str | None = None,
    logprobs: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A chunk of a streamed answer."""
    content = None if logprobs is None else {"content": logprobs}
    one = {"index": index, "delta": delta, "logprobs": content, "finish_reason": reason}
    return {**head, "object": "chat.completion.chunk", "choices": [one]}


def logprob(token: str, log_probability: float, top: list[tuple[str, float]]) -> dict[str, Any]:
    """One token with its log-probability and those of the likeliest."""
    return {
        **_logged(token, log_probability),
        "top_logprobs": [_logged(word, value) for word, value in top],
    }


def _logged(token: str, value: float) -> dict[str, Any]:
    return {
        "token": token,
        "logprob": value if math.isfinite(value) else LEAST_LOG,
        # part of a character has no text
        "bytes": None if "\ufffd" in token else list(token.encode()),
    }
