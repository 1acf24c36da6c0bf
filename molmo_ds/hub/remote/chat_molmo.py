"""A conversation in transformers' form: its turns, its pictures, and its text by a template that is not the model's."""

import re
from typing import Any

from molmo_ds.data.tokens import Words
from molmo_ds.hub.remote.inputs_molmo import Rendered

IMAGE_TYPES = ("image", "image_url")
# where a part of a turn may hold its picture
SOURCES = ("image", "url", "path", "base64", "image_url")
_PRIVATE = 0xF0000  # characters that no text is meant to hold


def turns_of(talk: Any) -> list[str]:
    """The texts of a conversation, the user's first; ValueError where it is none that the model can be asked."""
    if not isinstance(talk, list | tuple) or not talk:
        raise ValueError(
            "A conversation is a list of at least one turn, each with role and content."
        )
    turns = []
    for i, turn in enumerate(talk):
        wanted = "assistant" if i % 2 else "user"
        role = turn.get("role") if isinstance(turn, dict) else None
        if role != wanted:
            raise ValueError(
                f"Turn {i + 1} has the role {role!r} where {wanted!r} is expected: user and assistant take turns, the"
                " user begins, and there is no other role; put instructions into the user's first text."
            )
        turns.append(" ".join(_texts(turn.get("content"), i)))
    return turns


def pictures_of(talk: Any) -> list[Any]:
    """Pictures that the parts of a conversation name, in order; None where a part names none."""
    found = []
    for turn in talk if isinstance(talk, list | tuple) else ():
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, dict) and part.get("type") in IMAGE_TYPES:
                given = next((part[name] for name in SOURCES if part.get(name) is not None), None)
                found.append(
                    given.get("url") if isinstance(given, dict) and "url" in given else given
                )
    return found


def render(
    tokenizer: Any,
    words: Words,
    talk: list[Any],
    template: str,
    variables: dict[str, Any],
    start: str,
) -> Rendered:
    """The text of a conversation by any template, and its ids: special names count where the template wrote them.

    Args:
        start: what goes before the text, a space or nothing.
    """
    names = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    written = "".join(text for turn in talk for text in _texts(turn.get("content"), 0))
    free = (chr(code) for code in range(_PRIVATE, 0x10FFFD) if chr(code) not in written)
    hidden = {name: next(free) for name in sorted(names, key=len, reverse=True)}
    safe = [{**turn, "content": _replaced(turn.get("content"), hidden)} for turn in talk]
    text = tokenizer.apply_chat_template(safe, chat_template=template, tokenize=False, **variables)
    shown = {mark: name for name, mark in hidden.items()}
    tokens = []
    for i, piece in enumerate(re.split(f"({'|'.join(map(re.escape, hidden))})", start + text)):
        tokens += [names[piece]] if i % 2 else words.encode(_restored(piece, shown))
    tokens = tokens[1:] if tokens[:1] == [words.bos] else tokens  # the processor writes it
    return Rendered(_restored(text, shown), tokens=tokens, pictures=len(pictures_of(talk)))


def _texts(content: Any, turn: int) -> list[str]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list | tuple):
        raise ValueError(
            f"The content of turn {turn + 1} is {content!r}; it is a text or a list of parts."
        )
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind not in IMAGE_TYPES:
            raise ValueError(
                f"Turn {turn + 1} has a part of type {kind!r}; parts are texts (with text) and images."
            )
    return texts


def _replaced(content: Any, marks: dict[str, str]) -> Any:
    if isinstance(content, str):
        return _restored(content, marks)
    return [
        {**p, "text": _restored(p["text"], marks)} if p.get("type") == "text" else p
        for p in content
    ]


def _restored(text: str, marks: dict[str, str]) -> str:
    for mark, name in marks.items():
        text = text.replace(mark, name)
    return text
