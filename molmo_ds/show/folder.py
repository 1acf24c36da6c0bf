"""A run's folder as it is: files may be missing, cut off by a kill, damaged, or of another release."""

import json
import math
from typing import Any

from molmo_ds import files
from molmo_ds.files import Place, Remote
from molmo_ds.stores import events

# what makes a folder a run's; some of them are there before the first step
SIGNS = ("config.yaml", "log.jsonl", "checkpoints", "heartbeat", "lock", "launch", "DONE")
SIGNS += ("run", events.NAME)  # `run` is in stores only


def open_run(text: str) -> Place:
    """The folder of a run; ValueError says what else it is."""
    place = files.place(text)
    names = {child.name for child in children(place)}
    if names.intersection(SIGNS):
        return place
    below = [
        child.name
        for child in children(place)
        if {inner.name for inner in children(child)}.intersection(SIGNS)
    ]
    if below:
        raise ValueError(f"{place} holds runs; name one of them: {', '.join(below)}.")
    if ".nv-meta" in names:
        raise ValueError(f"{place} holds shards; molmo-ds shards show {place} OUT.html shows them.")
    raise ValueError(f"{place} holds no files of a run; give the folder that a run has as `out`.")


def children(place: Place) -> list[Place]:
    """What lies directly in a folder, sorted; nothing where it is none."""
    if isinstance(place, Remote):
        return place.children()
    return sorted(place.iterdir()) if place.is_dir() else []


def read_text(file: Place) -> str:
    """A file's text; empty where there is none."""
    if not file.is_file():
        return ""
    return file.read_bytes().decode(errors="replace")


def read_object(file: Place) -> dict[str, Any]:
    """The JSON object of a file, empty where there is none; ValueError where it cannot be read."""
    text = read_text(file)
    found = parsed(text) if text else {}
    if found is None:
        raise ValueError(f"{file} cannot be read as a JSON object.")
    return found


def read_lines(file: Place) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a file, one a line, and how many lines are none."""
    found = [parsed(line) for line in read_text(file).splitlines() if line.strip()]
    good = [one for one in found if one is not None]
    return good, len(found) - len(good)


def parsed(text: str) -> dict[str, Any] | None:
    """A JSON object; None for everything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def number(value: Any) -> float | None:
    """A finite number as a float; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        made = float(value)
    except OverflowError:
        return None
    return made if math.isfinite(made) else None


def modified(file: Place) -> float | None:
    """When a file was last written, in seconds since 1970; None where there is none."""
    return files.modified_ns(file) / 1e9 if file.is_file() else None
