"""What sets about academic videos share beside answers: lines, videos in several formats, times, parts, draws."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from molmo_ds.data.sources.source import LeftOut

FORMATS = (".mkv", ".mp4", ".webm")  # in the order in which the reference looks for them
DAMAGED = "video that Ai2 found damaged"


def read_text(folder: Path, name: str) -> Iterator[str]:
    """The lines of a text file that are not empty."""
    with open(folder / name, encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield line.strip()


def first_there(folder: Path, places: list[str]) -> str:
    """The first of some places below a folder where a file is; the last one where there is none."""
    return next((place for place in places if (folder / place).is_file()), places[-1])


def in_any_format(folder: Path, stem: str) -> str:
    """The place of a video whose format is not said; what is missing is counted as .mp4."""
    return first_there(folder, [*(stem + format for format in FORMATS), f"{stem}.mp4"])


def seconds(clock: str) -> float:
    """Seconds of a time such as 00:01:02.5."""
    hours, minutes, rest = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def segment(begin: Any, end: Any) -> dict[str, Any]:
    """The clip of an annotated part of a video, in seconds; LeftOut where it has no length."""
    if begin is None or end is None or end <= begin:
        raise LeftOut("segment without a length")
    return {"clip": [float(begin), float(end)]}


def one_of(several: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Annotations of which a visit takes one; the only one as it is."""
    return several if len(several) == 1 else [{"one_of": several}]
