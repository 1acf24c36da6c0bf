"""Turns of a conversation as the text that a model reads, and such a text taken apart again."""

import re
from dataclasses import dataclass

FORMATS = ("none", "role", "chat")
TURN_START = "<|im_start|>"  # special tokens of a chat
TURN_END = "<|im_end|>"
_USER = "User: "
_ANSWER = " Assistant:"
_LAST = re.compile(rf" ?{_USER}.*{_ANSWER}", re.DOTALL)
_ANSWERED = re.compile(rf"( ?{_USER}.*?{_ANSWER})( .*)", re.DOTALL)


@dataclass(frozen=True)
class Conversation:
    """One branch of a sample: user, assistant, user, ... texts with their spaces, and the weight of what is learnt."""

    messages: list[str]
    weight: float
    pictures: int | None = None  # that the text says it begins with
    chat: bool = False  # the user's turns stand between special tokens
    root_length: bool = False  # the weight is multiplied by 2 / sqrt(tokens that are learnt)
    last_answer_only: bool = False  # only the last answer is learnt
    # the weight was divided by the root of the number of branches, of which only those that have room count
    root_branches: bool = False
    unshown: int = 0  # moments of its tracks that were left out, because no frame is shown then


@dataclass(frozen=True)
class Special:
    """A special token by its name, which no text can spell."""

    name: str


def framed(i: int, text: str) -> list[str | Special]:
    """Turn i of a chat, the user's, as texts and special tokens, up to where the answer begins.

    The end of the answer before it and TURN_END both stand there, as Molmo2 was trained.
    """
    before = [Special(TURN_END), "\n"] if i > 0 else []
    opened = [Special(TURN_START), f"user\n{text}", Special(TURN_END), "\n"]
    return [*before, *opened, Special(TURN_START), "assistant\n"]


def speak(
    i: int, turn: str, message_format: str = "role", always_start_with_space: bool = True
) -> str:
    """Turn i of a conversation, the user's if i is even, with what goes before and after it.

    Args:
        message_format: role (User: ... Assistant:), none, or chat, whose special tokens `framed` places.
        always_start_with_space: whether the first turn begins with a space, as the others do; not in a chat.
    """
    if message_format == "chat":
        return turn
    if message_format == "role" and i % 2 == 0:
        turn = f"{_USER}{turn}{_ANSWER}"
    return " " + turn if i > 0 or always_start_with_space else turn


def unspoken(text: str) -> str:
    """What a user said in a text that `speak` made under `role`; any other text as it is."""
    if _LAST.fullmatch(text) is None:
        return text
    return text.removeprefix(" ").removeprefix(_USER).removesuffix(_ANSWER)


def spoken(text: str, end: str) -> list[str] | None:
    """The turns of a text that is a conversation as `speak` writes it, or None.

    Args:
        end: the name of the token that ends an answer; a turn ends at it only between an answer and the next turn.
    """
    *answered, last = text.split(end)
    turns = []
    for part in answered:
        match = _ANSWERED.fullmatch(part)
        if match is None:
            return None
        turns += [match.group(1), match.group(2)]
    if last or not answered:
        if _LAST.fullmatch(last) is None:
            return None
        turns.append(last)
    return turns
