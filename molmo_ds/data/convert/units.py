"""Units of coordinates in other people's rows, and boxes as the points at their centres."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.annotation import ONE_OF
from molmo_ds.data.sample.conversation import shown
from molmo_ds.data.sample.points import to_percent

SCALES = {"pixels": None, "percent": 100, "shares": 1, "thousandths": 1000}  # unit to point_scale
# forms of a box, by torchvision's names: two corners; left top corner and size; centre and size
BOX_FORMS = ("xyxy", "xywh", "cxcywh")


@dataclass
class Bare:
    """Annotations whose points name no unit and are taken as pixels."""

    annotations: int = 0
    reach: float = 0.0  # their largest coordinate
    side: int = 0  # the longest side of a picture that they point into

    def merge(self, other: "Bare") -> None:
        """Add those of another process."""
        self.annotations += other.annotations
        self.reach = max(self.reach, other.reach)
        self.side = max(self.side, other.side)

    def refusal(self) -> str:
        """A sentence where the points fit another unit as well as pixels; empty where only pixels fit."""
        for unit in ("shares", "percent", "thousandths"):
            if self.annotations and self.reach <= SCALES[unit] < self.side:
                return (
                    f"{self.annotations} annotations do not say the unit of their points, none of which exceeds"
                    f" {SCALES[unit]} though a picture has {self.side} pixels: they could be pixels or {unit}. Say"
                    f" --points-in, one of {', '.join(SCALES)}, or give each annotation its point_scale."
                )
        return ""


def with_unit(
    annotation: Any, size: tuple[int, int] | None, unit: str, box_form: str, bare: Bare
) -> Any:
    """The annotation with points for its boxes and, where it names no unit, with that of the command line.

    Args:
        size: width and height of the first upright picture in pixels; None where there is none.
        unit: a key of SCALES; empty = not said, then points are pixels and go into `bare`.
        box_form: of BOX_FORMS; empty = not said.

    Raises BadSample for boxes that are none or that lie outside of the picture.
    """
    if not isinstance(annotation, dict):
        return annotation  # which the review refuses
    if isinstance(annotation.get(ONE_OF), list):
        several = [with_unit(one, size, unit, box_form, bare) for one in annotation[ONE_OF]]
        return annotation | {ONE_OF: several}
    if annotation.get("boxes") is not None and annotation.get("points") is None:
        scale = annotation.get("point_scale") or SCALES.get(unit)
        annotation = annotation | _centres(annotation["boxes"], box_form, scale, size)
    coordinates = _coordinates(annotation)
    if not coordinates or annotation.get("point_scale") is not None:
        return annotation
    if unit:
        return annotation | {"point_scale": SCALES[unit]}
    bare.merge(Bare(1, max(coordinates), max(size or (0,))))
    return annotation


def _centres(
    boxes: Any, form: str, scale: float | None, size: tuple[int, int] | None
) -> dict[str, Any]:
    """`points` in the unit of the boxes, and `boxes` as scoring reads them: corners in pixels."""
    if not form:
        raise BadSample(
            f"'boxes' is {shown(boxes)}, of which no form was given; say --boxes, one of"
            f" {', '.join(BOX_FORMS)}."
        )
    if size is None:
        raise BadSample("Boxes need a picture, and the sample has none whose size is known.")
    corners = to_corners(boxes, form)
    to_percent(corners.reshape(-1, 2).tolist(), scale, size)  # raises for what lies outside
    pixels = corners if scale is None else corners * (np.array(size * 2) / scale)
    middle = (corners[:, :2] + corners[:, 2:]) / 2
    return {"points": middle.tolist(), "boxes": pixels.tolist()}


def to_corners(boxes: Any, form: str) -> np.ndarray:
    """Boxes of a form of BOX_FORMS as left, top, right, bottom [n, 4]; BadSample where they cannot be boxes."""
    sound = isinstance(boxes, list) and all(
        isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) for box in boxes
    )
    if not sound:
        raise BadSample(
            f"'boxes' is {shown(boxes)}, but must be a list of four finite numbers each ({form})."
        )
    values = np.array(boxes, np.float64).reshape(-1, 4)
    first = values[:, :2]
    second = values[:, 2:]
    if form == "cxcywh":
        first = first - second / 2
    corners = np.hstack([first, second if form == "xyxy" else first + second])
    turned = (corners[:, 2:] < corners[:, :2]).any(axis=1)
    if turned.any():
        box = values[turned][0].tolist()
        raise BadSample(f"The box {box} is no {form}: its right bottom lies before its left top.")
    return corners


def _coordinates(annotation: dict[str, Any]) -> list[float]:
    """The coordinates of all points; what is no list of numbers is left to the review."""
    held = [annotation.get("points")]
    for name in ("inline_points", "point_groups", "tracks"):
        groups = annotation.get(name)
        if isinstance(groups, list):
            held += [one.get("points") for one in groups if isinstance(one, dict)]
    # points of tracks by the names of their objects
    lists = [list(one.values()) if isinstance(one, dict) else one for one in held]
    points = [point for one in lists if isinstance(one, list) for point in one]
    pairs = [point for point in points if isinstance(point, (list, tuple))]
    return [value for pair in pairs for value in pair if _is_number(value)]


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < float("inf")
    )
