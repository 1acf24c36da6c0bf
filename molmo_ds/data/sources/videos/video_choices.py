"""Questions about a video with options, written out as Molmo2's evaluation asks them.

The options are part of the question's text, as every benchmark has its own way to show them; `metadata.options` holds
their texts and the annotation's answer the right letter. Source: allenai/molmo2 at f3cb108,
olmo/data/academic_video_datasets.py.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from molmo_ds.data.sources.source import Item, Picture, Row, annotation

STYLE = "video_eval_multiple_choice"
WITH_SUBTITLES = "video_eval_multiple_choice_w_subtitle"
DIRECTLY = "Answer with the option's letter from the given choices directly."
ONLY_LETTER = "Please respond with only the letter of the correct answer."


def lettered(options: Sequence[str]) -> list[str]:
    """A line for each option, `A. text`."""
    return [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options)]


def choice(
    video: str,
    lines: Sequence[str],
    options: Sequence[str],
    answer: int | str | None,
    metadata: dict[str, Any],
    about: dict[str, Any] | None = None,
) -> list[Item]:
    """The item of one question.

    Args:
        video: its file below the data set's folder.
        lines: of the question, options included.
        answer: index or letter of the right option; None = not public.
        about: clip and subtitles.
    """
    about = about or {}
    letter = ascii_uppercase[answer] if isinstance(answer, int) else answer
    style = WITH_SUBTITLES if "subtitles" in about else STYLE
    asked = annotation(style, question="\n".join(lines), answer=letter)
    known = {**metadata, "options": list(options)}
    return [Item((Picture(path=video),), [asked], known, about)]


def clip_of(row: Row, begin: str, end: str) -> dict[str, Any]:
    """The part of a video that a row asks about; nothing where it asks about all of it."""
    if row.get(begin) is None or row.get(end) is None:
        return {}
    return {"clip": [float(row[begin]), float(row[end])]}


def read_table(folder: Path, name: str) -> Iterator[Row]:
    """The rows of a parquet file below a data set's folder; FileNotFoundError where it is not in its place."""
    import pyarrow.parquet as pq

    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(None, None, str(path))
    for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
        yield from batch.to_pylist()
