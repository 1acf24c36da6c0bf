"""ms-swift's grounding rows: `<ref-object>` and `<bbox>` in their turns become names and Molmo's points.

The form was read in modelscope/ms-swift, Custom-dataset.md of docs/source_en/Customization, 025fc6b: `objects` holds
`ref` (names) and `bbox` (x, y, or two corners), used in order; `bbox_type` is real (pixels) or norm1 (shares).
"""

import re
from typing import Any

from molmo_ds.data.convert.chats import Row
from molmo_ds.data.convert.units import to_corners
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.conversation import ROLES, TALKS, shown
from molmo_ds.data.sample.points import format_points, to_percent

NAME = "<ref-object>"
BOX = "<bbox>"
SCALES = {"real": None, "norm1": 1}
_PLACES = re.compile(rf"({NAME})?((?:\s*{BOX})+)|{NAME}")


def with_points(row: Row, sizes: list[tuple[int, int]]) -> Row:
    """The row with its marks replaced; one without marks as it is.

    Args:
        sizes: width and height in pixels of its upright pictures.

    Raises BadSample where marks and objects do not fit, and for what Molmo cannot say: a box in a question, a box of
    another picture than the first, a box without a name.
    """
    column = next((name for name in TALKS if isinstance(row.get(name), list)), None)
    if column is None or not any(NAME in text or BOX in text for text in _texts(row[column])):
        return row
    objects = row.get("objects")
    if not isinstance(objects, dict):
        raise BadSample(f"The turns hold {NAME} or {BOX}, but 'objects' is {shown(objects)}.")
    filler = _Filler(objects, sizes)
    turns = [filler.turn(turn) for turn in row[column]]
    filler.check_all_used()
    return {name: value for name, value in row.items() if name != "objects"} | {column: turns}


def _texts(turns: list[Any]) -> list[str]:
    values = [turn.get("content", turn.get("value")) for turn in turns if isinstance(turn, dict)]
    return [value for value in values if isinstance(value, str)]


class _Filler:
    """Fills the marks of one conversation in order."""

    def __init__(self, objects: Row, sizes: list[tuple[int, int]]) -> None:
        kind = objects.get("bbox_type") or "real"
        if kind not in SCALES:
            raise BadSample(f"'bbox_type' is {shown(kind)}; it must be real or norm1.")
        if len(sizes) != 1:
            raise BadSample(
                f"The sample has {len(sizes)} pictures; points of a conversation refer to the only one."
            )
        self.scale = SCALES[kind]
        self.size = sizes[0]
        self.names = list(objects.get("ref") or [])
        self.boxes = list(objects.get("bbox") or [])
        self.last_name: str | None = None

    def turn(self, turn: Any) -> Any:
        """One turn with its marks replaced."""
        key = "content" if "content" in turn else "value"
        text = turn.get(key)
        if not isinstance(text, str):
            return turn
        role = str(turn.get("role", turn.get("from"))).strip().lower()
        if BOX in text and ROLES.get(role) != 1:
            raise BadSample(f"A question holds {BOX}; Molmo answers with points and reads none.")
        return turn | {key: _PLACES.sub(self.fill, text)}

    def fill(self, found: re.Match) -> str:
        """The text for a name, for points, or for a name with its points."""
        if found.group().startswith(NAME):
            self.last_name = self.next_name()
        if found.group(2) is None:
            return self.last_name
        if self.last_name is None:
            raise BadSample(f"{BOX} has no {NAME} before it that says what the point shows.")
        points = [self.next_point() for _ in range(found.group(2).count(BOX))]
        return format_points(to_percent(points, self.scale, self.size), self.last_name)

    def next_name(self) -> str:
        """The next of `ref`."""
        name = self.names.pop(0) if self.names else None
        if not isinstance(name, str) or not name.strip():
            raise BadSample(f"The turns hold {NAME} where 'ref' of 'objects' has {shown(name)}.")
        return name

    def next_point(self) -> list[float]:
        """The next of `bbox`, or its centre."""
        box = self.boxes.pop(0) if self.boxes else None
        if isinstance(box, list) and len(box) == 2:
            return box
        left, top, right, bottom = to_corners([box], "xyxy")[0].tolist()
        to_percent([[left, top], [right, bottom]], self.scale, self.size)  # raises outside
        return [(left + right) / 2, (top + bottom) / 2]

    def check_all_used(self) -> None:
        """BadSample where objects are left that no turn mentions."""
        if self.names or self.boxes:
            raise BadSample(
                f"'objects' has {len(self.names)} names and {len(self.boxes)} boxes more than the turns have marks."
            )
