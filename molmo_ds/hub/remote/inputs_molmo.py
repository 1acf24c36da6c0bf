"""Inputs of a processor: pictures of every kind as pixels, texts with the pictures of each, and options."""

import base64
import binascii
import os
import re
import urllib.request
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from molmo_ds.data.decode import load_image
from molmo_ds.data.pixels import to_pixels

TAKEN = "PIL pictures, arrays or tensors [height, width, 3], bytes of a file, paths and URLs"
SECONDS = 30  # how long a server may be silent
URLS = ("http://", "https://", "file://", "data:image/")
_PICTURE = re.compile(r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?)", re.IGNORECASE)
_LONGEST = 255  # of a file's name


class Rendered(str):
    """A text of the chat template with its conversation: it is not put into the template again.

    `messages` are the turns with their spaces, or None where another template wrote it; `tokens` its ids then;
    `pictures` counts the places of pictures.
    """

    messages: list[str] | None
    tokens: list[int] | None
    pictures: int

    def __new__(
        cls,
        text: str,
        messages: list[str] | None = None,
        tokens: list[int] | None = None,
        pictures: int = 0,
    ) -> "Rendered":
        self = super().__new__(cls, text)
        self.messages = messages
        self.tokens = tokens
        self.pictures = pictures
        return self

    def __reduce__(self) -> tuple:  # who reads the pickle need not have this file
        return str, (str(self),)


def read_picture(given: Any) -> np.ndarray:
    """uint8 [height, width, 3] of whatever stands for a picture, by the very functions that training uses.

    Raises ValueError, which names what was given, where it is none or cannot be read.
    """
    # as the library datasets stores pictures
    if isinstance(given, dict) and ("bytes" in given or "path" in given):
        given = given.get("bytes") or given.get("path")
    if isinstance(given, bytes | bytearray):
        return load_image(bytes(given))
    if isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        shown = name if len(name) <= 100 else name[:97] + "..."
        try:
            return load_image(_read(name))
        except ValueError as error:
            raise ValueError(f"{shown}: {error}") from None
    if isinstance(given, Image.Image | np.ndarray | torch.Tensor):
        return to_pixels(given)
    raise ValueError(f"Among the pictures is {_kind(given)}; a processor takes {TAKEN}.")


def pair(texts: Any, pictures: Any) -> tuple[list[str], list[list[Any]]]:
    """(texts, the pictures of each) of what a processor is called with.

    Args:
        texts: a text or a list of texts; None is an empty text.
        pictures: for one text a picture or a list of pictures, for a list of texts one such entry (or None) per text.

    Raises ValueError, which says what was given and what is taken.
    """
    texts, pictures = _swapped(texts, pictures)
    one = texts is None or isinstance(texts, str)
    rows = [texts or ""] if one else texts
    if not isinstance(rows, list | tuple):
        raise ValueError(
            f"The text is {_kind(texts)}; a processor takes a text or a list of texts."
        )
    if not rows:
        raise ValueError("The list of texts is empty; give at least one text.")
    wrong = [row for row in rows if not isinstance(row, str)]
    if wrong:
        raise ValueError(
            f"Among the texts is {_kind(wrong[0])}; a processor takes a text or a list of texts."
        )
    return list(rows), _share(list(rows), listed(pictures), one)


def known_options(
    given: dict[str, Any] | None, name: str, taken: Collection[str]
) -> dict[str, Any]:
    """Options of a dictionary `name`; ValueError for one that would have no effect."""
    options = {}
    for key, value in (given or {}).items():
        if key in taken:
            options[key] = value
        elif value is not None:
            raise ValueError(
                f"{name} holds {key!r}, which this processor does not take; it takes {', '.join(taken)}."
            )
    return options


def check_return_tensors(kind: str | None) -> None:
    """ValueError for tensors of another library."""
    if kind not in ("pt", None):
        raise ValueError(f"return_tensors is '{kind}'; only 'pt' is supported.")


def cut_ids(
    ids: list[int], truncation: Any, limit: int | None, starts: list[int], layouts: list[Any]
) -> list[int]:
    """Ids of at most `limit` if they are to be cut; ValueError where that would cut a picture."""
    if not truncation or limit is None:
        return ids
    end = 1
    for start, layout in zip(starts, layouts):
        end = max(end, start + len(layout.tokens))
    if limit < end:
        raise ValueError(
            f"max_length {limit} would cut a picture, which ends at token {end}; raise it."
        )
    return ids[:limit]


def listed(given: Any) -> Any:
    """Several pictures as a list, all else as it is."""
    if isinstance(given, tuple):
        return list(given)
    if isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 4:
        return list(given)
    return given


def _share(texts: list[str], pictures: Any, one: bool) -> list[list[Any]]:
    """The pictures of each text."""
    if not isinstance(pictures, list):
        if len(texts) > 1 and pictures is not None:
            raise ValueError(
                f"There are {len(texts)} texts and one picture; give a list with one entry per text."
            )
        return [[] if pictures is None else [pictures]] + [[] for _ in texts[1:]]
    if not pictures:
        return [[] for _ in texts]
    entries = [listed(entry) for entry in pictures]
    nested = any(isinstance(entry, list) for entry in entries)
    places = [text.pictures if isinstance(text, Rendered) else 0 for text in texts]
    if not nested and sum(places) == len(entries) and not any(entry is None for entry in entries):
        ends = np.cumsum(places).tolist()
        return [entries[end - count : end] for end, count in zip(ends, places)]
    if len(texts) == 1 and not nested and (one or len(entries) > 1):
        return [entries]
    if len(entries) != len(texts):
        what = "lists of pictures" if nested else "pictures"
        raise ValueError(
            f"There are {len(texts)} texts and {len(entries)} {what}; give one entry of pictures per text."
        )
    return [
        entry if isinstance(entry, list) else [] if entry is None and not one else [entry]
        for entry in entries
    ]


def _swapped(texts: Any, pictures: Any) -> tuple[Any, Any]:
    """Older releases were called as processor(text, images), transformers' own processors as (images, text)."""
    first = pictures[0] if isinstance(pictures, list | tuple) and pictures else pictures
    second = texts[0] if isinstance(texts, list | tuple) and texts else texts
    if not isinstance(first, str) or isinstance(second, str):
        both = isinstance(first, str) and isinstance(second, str)
        return (
            (pictures, texts)
            if both and not names_picture(first) and names_picture(second)
            else (texts, pictures)
        )
    return (texts, pictures) if texts is None and names_picture(first) else (pictures, texts)


def names_picture(text: str) -> bool:
    """Whether a text names a picture: a URL, an existing file, or one word with a picture's ending."""
    return text.startswith(URLS) or _PICTURE.fullmatch(text) is not None or _is_file(text)


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # no name at all, as a long text
        return False


def _read(name: str) -> bytes:
    if name.startswith(("http://", "https://")):
        request = urllib.request.Request(name, headers={"User-Agent": "molmo"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return answer.read()
        except (OSError, ValueError) as error:
            raise ValueError(f"the picture cannot be fetched ({error}).") from None
    if name.startswith("data:"):
        return _from_base64(name.partition(",")[2])
    path = name.removeprefix("file://")
    if not _is_file(path):
        if len(name) > _LONGEST:
            return _from_base64(name)
        raise ValueError(
            "there is no such picture; give the path of a file that is there, or a URL."
        )
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"the picture cannot be read ({error.strerror or error}).") from None


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("this is neither a file that is there nor a picture in base64.") from None


def _kind(given: Any) -> str:
    """The kind of a thing, for a sentence."""
    if given is None:
        return "None"
    if isinstance(given, list | tuple):
        return f"a list of {len(given)}"
    return f"a {type(given).__name__}"
