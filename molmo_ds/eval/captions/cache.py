"""One file for each call of a judge, so that no reply is paid for twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from molmo_ds.files import write_atomic

Messages = str | list[dict[str, str]]


def file_name(model: str, messages: Messages, options: dict[str, Any]) -> str:
    """The file of one call: the sha256 of model, messages and options.

    The reference's rule (allenai/molmo2 f3cb108, scripts/gpt_dense_caption_eval.py), so that its files are found too.
    """
    plain = isinstance(messages, str) and not options
    parts = [model, messages if plain else json.dumps(messages)]
    if options:
        parts.append(json.dumps(options, sort_keys=True))
    return hashlib.sha256("::::".join(parts).encode()).hexdigest() + "-v1.json"


def is_completion(value: Any) -> bool:
    """Whether a value of JSON is a chat completion, with a message that is a text or none."""
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") or {} if isinstance(choice, dict) else None
    return isinstance(message, dict) and isinstance(message.get("content"), str | None)


class Cache:
    """A folder of replies: chat completions as the server sent them."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> dict[str, Any] | None:
        """The completion of that name, or None. Raises ValueError for a file that is none."""
        file = self.folder / name
        if not file.is_file():
            return None
        try:
            completion = json.loads(file.read_text())
        except (ValueError, RecursionError):
            completion = None
        if not is_completion(completion):
            raise ValueError(
                f"{file} holds no reply of a judge; delete it, and the judge is asked again."
            )
        return completion

    def put(self, name: str, completion: dict[str, Any]) -> None:
        """Keep a completion; it is whole or not there, even if the process is killed."""
        write_atomic(self.folder / name, json.dumps(completion).encode())
