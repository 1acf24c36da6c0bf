"""Files of a finished evaluation, read as what they must be: anything else in them is one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Kind = type | tuple[type, ...]
# of a scored row: what has to be there, and its type
SCORED: dict[str, Kind] = {
    "id": str,
    "picture": str,
    "reply": str,
    "truth": (str, type(None)),
    "scores": dict,
}


def read_object(file: Path, remedy: str) -> dict[str, Any]:
    """The JSON object of a file; ValueError, which ends in the remedy, where it holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no values by name; {remedy}")
    return found


def scored_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The scored rows of a file of JSON lines; ValueError for a line that is none."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            row = whole_row(line, SCORED)
            if row is None or not all(map(is_number, row["scores"].values())):
                raise ValueError(
                    f"Line {number} of {file} is not a scored row of molmo-ds evaluate."
                )
            yield row


def whole_row(line: str | bytes, fields: Mapping[str, Kind]) -> dict[str, Any] | None:
    """The JSON object of a line, or None where it is none or lacks a field of its type."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    whole = all(name in row and isinstance(row[name], kind) for name, kind in fields.items())
    return row if whole else None


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
