"""Rows in the forms of other trainers, as `messages` with the pictures that their turns name.

OpenAI and transformers (parts of type image with an address, a path or base64), TRL (prompt, completion), ms-swift
(query, response, history; conversation) and Alpaca (instruction, input, output). LLaVA's and ShareGPT's `conversations`
are a field of every annotation already. The columns were read in modelscope/ms-swift,
Custom-dataset.md of docs/source_en/Customization, 025fc6b.
"""

from collections.abc import Callable
from typing import Any

from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.conversation import IMAGE_PARTS, TALKS, shown

Row = dict[str, Any]
Turns = list[dict[str, Any]]
NAMED_BY = ("image", "image_url", "url", "path", "base64")  # keys of a part that name its picture
SENSES = {"audios": "sounds, which Molmo does not hear", "tools": "tools, which Molmo cannot call"}


def familiar(row: Row, known: set[str]) -> tuple[Row, set[str]]:
    """The row with `messages` where it has another trainer's form, and the columns that went into them.

    Args:
        known: columns that something else reads: a row that has one of them in use keeps its own form.

    Raises BadSample for a form that holds what cannot be turns, and for rows with sounds or tools.
    """
    for name, what in SENSES.items():
        if row.get(name):
            raise BadSample(f"'{name}' holds {what}; leave the row out.")
    if any(row.get(name) is not None for name in known):
        return row, set()
    for columns, read in FORMS.items():
        needed, others = columns
        if not all(row.get(name) is not None for name in needed):
            continue
        used = {name for name in (*needed, *others, "system") if row.get(name) is not None}
        rest = {name: value for name, value in row.items() if name not in used}
        return rest | {"messages": _system(row) + read(row)}, used
    return row, set()


def named_pictures(row: Row) -> tuple[Row, list[Any]]:
    """The row without the pictures that parts of its turns name, and those pictures in their order.

    Raises BadSample where some parts of type image name theirs and others do not.
    """
    column = next((name for name in TALKS if row.get(name) is not None), None)
    turns = row.get(column)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return row, []
    pictures: list[Any] = []
    bare = 0
    plain = []
    for turn in turns:
        content = turn.get("content")
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):
            parts = []
            for part in content:
                if part.get("type") in IMAGE_PARTS:
                    picture = _named_by(part)
                    bare += picture is None
                    pictures += [] if picture is None else [picture]
                    part = {"type": "image"}
                parts.append(part)
            turn = turn | {"content": parts}
        plain.append(turn)
    if pictures and bare:
        raise BadSample(
            f"{len(pictures)} parts of type image in '{column}' name their picture and {bare} do not; name all or none."
        )
    return row | {column: plain}, pictures


def _named_by(part: Row) -> Any:
    for name in NAMED_BY:
        value = part.get(name)
        if isinstance(value, dict) and "url" in value:  # OpenAI's image_url
            value = value["url"]
        if value is not None:
            is_base64 = name == "base64" and isinstance(value, str)
            return f"data:;base64,{value}" if is_base64 else value
    return None


def _system(row: Row) -> Turns:
    system = row.get("system")
    return [{"role": "system", "content": system}] if system else []


def _pair(asked: Any, answered: Any) -> Turns:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _query(row: Row) -> Turns:
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history
    ):
        raise BadSample(
            f"'history' is {shown(history)}, but must be a list of [question, answer] pairs."
        )
    turns = [turn for asked, answered in history for turn in _pair(asked, answered)]
    return turns + _pair(row["query"], row["response"])


def _conversation(row: Row) -> Turns:
    value = row["conversation"]
    if not isinstance(value, list) or not all(
        isinstance(pair, dict) and {"human", "assistant"} <= pair.keys() for pair in value
    ):
        raise BadSample(
            f"'conversation' is {shown(value)}, but must be a list of objects with human and assistant."
        )
    return [turn for pair in value for turn in _pair(pair["human"], pair["assistant"])]


def _alpaca(row: Row) -> Turns:
    asked = [row["instruction"], row.get("input")]
    if not all(isinstance(text, str) for text in asked if text is not None):
        raise BadSample("'instruction' and 'input' must be texts.")
    return _pair("\n".join(text for text in asked if text), row["output"])


def _completion(row: Row) -> Turns:
    prompt = row["prompt"]
    completion = row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*prompt, *completion]
    return _pair(prompt, completion)


# (columns that must be there, columns that may be) -> how they are read
FORMS: dict[tuple[tuple[str, ...], tuple[str, ...]], Callable[[Row], Turns]] = {
    (("conversation",), ()): _conversation,
    (("query", "response"), ("history",)): _query,
    (("instruction", "output"), ("input",)): _alpaca,
    (("prompt", "completion"), ()): _completion,
}
