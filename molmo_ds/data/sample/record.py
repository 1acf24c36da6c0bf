"""A sample's JSON: the parts that every reader needs, checked, and how many pictures it shows."""

import json
from typing import Any

from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.annotation import at, present
from molmo_ds.data.sample.conversation import shown

Record = dict[str, Any]
VIDEOS = ("mp4", "webm")  # parts that are videos; so is a GIF that moves
OF_VIDEO = ("images", "durations", "clip", "subtitles", "num_frames", "frame_rates", "fps")
MOST_FRAMES = 4096


def parse_record(key: str, data: bytes | None, parts: dict[str, Any]) -> Record:
    """The sample's JSON as a dictionary with `images` and `annotations`; ValueError names the key and what is wrong.

    Of the annotations only that they are a list is checked here: `annotations` below looks into them.
    """
    if data is None:
        raise ValueError(f"Sample '{key}' has no .json part; see docs/reference/data-format.md.")
    try:
        record = read_json(data)
    except ValueError as error:
        raise ValueError(f"The JSON of sample '{key}' cannot be read: {error}.") from None
    if not isinstance(record, dict) or not isinstance(record.get("annotations"), list):
        raise ValueError(
            f"Sample '{key}' is not in the record format (no 'annotations'); see docs/reference/data-format.md."
        )
    images = [] if record.get("images") is None else record["images"]
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise ValueError(
            f"'images' of sample '{key}' is {shown(images)}, but must be a list of members' names."
        )
    missing = [name for name in images if name not in parts]
    if missing:
        raise ValueError(
            f"Sample '{key}' names the image {missing[0]}, but there is no member {key}.{missing[0]}."
        )
    record["images"] = images
    return record


def annotations(record: Record) -> list[dict[str, Any]]:
    """The annotations without what is null; BadSample where one is no object."""
    given = record["annotations"]
    out = []
    for i, value in enumerate(given):
        try:
            out.append(present(value))
        except BadSample as error:
            raise BadSample(f"{at(i, len(given))}{error}") from None
    return out


def read_json(data: bytes | str, once: bool = False) -> Any:
    """The value of a JSON text in UTF-8 (or UTF-16, or with a byte-order mark); ValueError where it is none.

    With `once` a key that an object holds twice is an error too: Python would drop the first in silence.
    """
    try:
        return json.loads(data, object_pairs_hook=_once if once else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_video(record: Record) -> bool:
    """Whether the sample shows a video, or pictures that are its frames (`fps`).

    BadSample where it shows more than one, or pictures as well.
    """
    parts = record.get("images") or ()
    durations = record.get("durations") or [0.0] * len(parts)
    if record.get("fps") is not None:
        return bool(parts)
    videos = [
        part
        for part, duration in zip(parts, durations)
        if part.rsplit(".", 1)[-1] in VIDEOS or duration > 0
    ]
    if videos and len(parts) > 1:
        raise BadSample("A sample holds one video or pictures, not both.")
    return bool(videos)


def film_of(record: Record) -> Record | None:
    """What the record says of its video, without its bytes; None where it shows none. Errors as of `is_video`."""
    if not is_video(record):
        return None
    return {name: record[name] for name in OF_VIDEO if record.get(name) is not None}


def first_size(record: Record) -> tuple[int, int] | None:
    """Width and height that points in pixels refer to; None for text alone, or if the index lacks them."""
    sizes = record.get("sizes")
    return tuple(sizes[0]) if sizes and 0 not in sizes[0] else None


def check_pictures(record: Record, said: list[int | None]) -> None:
    """BadSample where a text begins with another number of pictures than the sample has; None says nothing.

    A folder of frames is one video, or as many pictures as it has.
    """
    count = len(record.get("images") or record.get("sizes") or ())
    right = (None, count, 1) if record.get("fps") is not None else (None, count)
    for number in said:
        if number not in right:
            raise BadSample(
                f"The text begins with {number} picture marks (<image>), but the sample has {count}."
            )


def text_length(value: Any) -> int:
    """Characters of all strings inside a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(text_length, value.values()))
    return sum(map(text_length, value)) if isinstance(value, list) else 0


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the key '{next(name for name in names if names.count(name) > 1)}' comes twice"
        )
    return out
