"""Conversations as other programs write them, to texts that alternate between user and assistant.

Read are a list of texts, OpenAI's {role, content} (content a text, or parts of type text and image) and ShareGPT's
{from, value}. `<image>` in a user's turn of the last two, or at the very start of any conversation, is a picture.
"""

import re
from typing import Any

from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.pictures.layout import IMAGE
from molmo_ds.data.tokens import IMAGE_TOKENS

PLACE = IMAGE_TOKENS[IMAGE]  # stands in a user's text where a picture goes
MARK = "<image>"  # what other programs write there
# to the turn's place, modulo 2
ROLES = {"user": 0, "human": 0, "assistant": 1, "gpt": 1, "model": 1}
NAMES = ("user", "assistant")
TEXT_PARTS = ("text", "input_text", "output_text")
IMAGE_PARTS = ("image", "image_url", "input_image")
FILM = "<video>"
TALKS = ("messages", "conversations")  # keys of an annotation
CALLS = ("tool_calls", "function_call")  # of a turn that is more than a text
# by which OpenAI, ms-swift and axolotl leave a turn out of what is learnt
WEIGHTS = ("weight", "loss", "loss_scale", "train", "training")
READ = {"role", "content", "from", "value", *CALLS, *WEIGHTS}
_LEADING = re.compile(r"(?:\s*<(?:image|video)>)+\s*")
FORMS = "a list of texts, of {role, content} or of {from, value}"


def read_messages(value: Any) -> tuple[list[str], int | None]:
    """(texts, user first, and the number of pictures that the first begins with; None where it says nothing of them).

    Marks of pictures before the first word are taken away, since pictures stand there anyway; a picture elsewhere
    becomes `<|image|>`. Raises BadSample for every other form, and for turns that do not alternate.
    """
    if not isinstance(value, list):
        raise BadSample(f"'messages' is {shown(value)}, but must be {FORMS}.")
    if all(isinstance(turn, str) for turn in value):
        return without_marks(value) if value else ([], None)
    if not all(isinstance(turn, dict) for turn in value):
        kind = dict if any(isinstance(turn, dict) for turn in value) else str
        odd = next(turn for turn in value if not isinstance(turn, kind))
        raise BadSample(f"'messages' holds {shown(odd)}, but must be {FORMS}.")
    texts = [
        _turn(i, {key: part for key, part in turn.items() if part is not None})
        for i, turn in enumerate(value)
    ]
    first, pictures = without_marks(texts)
    # in the middle: then every picture needs its place
    if any(MARK in text for text in first[::2]):
        first = [text if i % 2 else text.replace(MARK, PLACE) for i, text in enumerate(texts)]
        pictures = None
    if any(FILM in text for text in first[::2]):
        raise BadSample(
            f"'messages' has {FILM} after its first word, but a video stands before all text; begin with it."
        )
    return first, pictures


def without_marks(texts: list[str]) -> tuple[list[str], int | None]:
    """The texts without the marks of pictures that the first begins with, and how many those were; None for none."""
    found = _LEADING.match(texts[0])
    if found is None:
        return texts, None
    return [texts[0][found.end() :], *texts[1:]], found.group().count("<")


def unread(value: Any) -> set[str]:
    """The keys of a conversation's turns that `read_messages` does not read."""
    turns = [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []
    return {key for turn in turns for key in turn if turn[key] is not None} - READ


def shown(value: Any) -> str:
    """A value for a sentence: its kind and, shortened, itself."""
    if value is None:
        return "null"
    text = ascii(value) if isinstance(value, (str, bytes)) else repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    kinds = {
        str: "the text ",
        bool: "",
        int: "the number ",
        float: "the number ",
        list: "the list ",
        dict: "the object ",
    }
    return kinds.get(type(value), f"of type {type(value).__name__}: ") + text


def is_plain(text: str) -> bool:
    """Whether a name is Unicode without control characters, so that it can be printed and stand in a table."""
    return not any(
        ord(letter) < 32 or ord(letter) == 127 or 0xD800 <= ord(letter) < 0xE000 for letter in text
    )


def _turn(i: int, turn: dict[str, Any]) -> str:
    """One turn's text, marks of pictures included."""
    where = f"'messages[{i}]'"
    speaker, content = ("role", "content") if "role" in turn else ("from", "value")
    if not isinstance(turn.get(speaker), str):
        raise BadSample(
            f"{where} is {shown(turn)}, but needs role and content (or from and value)."
        )
    role = turn[speaker].strip().lower()
    if role == "system":
        raise BadSample(
            f"{where} is a system turn, which Molmo's prompts do not have; move its text to the user's."
        )
    if role not in ROLES:
        raise BadSample(
            f"{where} has the {speaker} {shown(turn[speaker])}; it must be one of {', '.join(ROLES)}."
        )
    if ROLES[role] != i % 2:
        raise BadSample(
            f"{where} is the {NAMES[ROLES[role]]}'s where the {NAMES[i % 2]}'s is due; user and assistant must"
            " alternate, the user first."
        )
    for name in CALLS:
        if turn.get(name):
            raise BadSample(
                f"{where} has {name}, which Molmo cannot learn; leave the conversation out."
            )
    for name in WEIGHTS:
        unlearnt = i % 2 == 0 and not turn.get(name)  # as a user's turn is anyway
        if turn.get(name, 1) != 1 and not unlearnt:
            raise BadSample(
                f"{where} has a weight of its own ('{name}' is {shown(turn[name])}); only an annotation has one."
            )
    if content not in turn:
        raise BadSample(f"{where} has no {content}; give it a text.")
    return _text(where + f".{content}", turn[content], i % 2 == 1)


def _text(where: str, content: Any, answer: bool) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise BadSample(
            f"{where} is {shown(content)}, but must be a text or a list of parts of type text or image."
        )
    out = []
    for part in content:
        kind = part.get("type")
        if kind in TEXT_PARTS and isinstance(part.get("text"), str):
            out.append(part["text"])
        elif kind in IMAGE_PARTS and not answer:
            out.append(MARK)
        elif kind in IMAGE_PARTS:
            raise BadSample(f"{where} has a picture, but only the user can show one.")
        else:
            raise BadSample(
                f"{where} holds {shown(part)}, but a part has type text and a text, or type image."
            )
    return "".join(out)
