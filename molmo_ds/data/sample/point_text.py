"""Points and tracks as Molmo2 writes and reads them: `<points coords="1 1 250 750 2 300 410">dogs</points>`.

A text holds groups of points, one for each picture (by its number, from 1) or time (in seconds, one decimal); a point
is its number and thousandths of width and height with at least three digits. Numbers count on over all groups; in a
track they are those of objects. html-v2 separates groups by ; and html-v1 by tabs. Source: allenai/molmo2 at f3cb108,
olmo/preprocessing/point_formatter.py; there a point outside of the picture is moved to its edge, here it is an error.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.points import NONE
from molmo_ds.data.sample.times import stamp

SEPARATORS = {"html-v1": "\t", "html-v2": ";"}
NO_TRACKS = "No tracks available."
COUNTED = ("point_then_count", "point_count")
COUNTED_FIRST = ("count_then_point", "count_point")

Point = Sequence[float]  # x, y
Scale = Sequence[float]  # the values of x and y that mean the far edges

_COORDS = re.compile(r'<(?:points|tracks).*? coords="([0-9\t:;, .]+)"/?>')
_GROUP = re.compile(r"(?:^|[\t:,;])([0-9.]+) ([0-9. ]+)")
_POINT = re.compile(r"([0-9]+) ([0-9]{3,4}) ([0-9]{3,4})")
# older forms with the value of the far edges; of a line the first that finds anything counts
_OLDER = (
    ((r"Click\(([0-9]+\.[0-9]), ?([0-9]+\.[0-9])\)", 100),),
    ((r"[0-9]+ ([0-9]{3}) ([0-9]{3})", 1000),),
    ((r"[0-9]+ ([0-9]+\.[0-9]) ([0-9]+\.[0-9])", 100),),
    (
        (r"\(([0-9]+\.[0-9]),? ?([0-9]+\.[0-9])\)", 100),
        (r'x\d*="\s*([0-9]+(?:\.[0-9]+)?)"\s+y\d*="\s*([0-9]+(?:\.[0-9]+)?)"', 100),
        (r"(?:\d+|p)\s*=\s*([0-9]{3})\s*,\s*([0-9]{3})", 1000),
    ),
)


@dataclass(frozen=True)
class Found:
    """A point that was read from a text."""

    place: float  # number of the picture from 1, or seconds
    number: str  # of the point, or of a track's object
    x: float  # in pixels, as y
    y: float


@dataclass(frozen=True)
class Moment:
    """The places of objects at one time."""

    time: float
    points: dict[int | str, Point]  # by object
    hidden: Sequence[int | str] = ()  # objects that cannot be seen, which no text names


def thousandths(point: Point, scale: Scale) -> tuple[int, int]:
    """(x, y) of a point in thousandths; BadSample where it lies outside of the picture."""
    shares = [float(value) / float(far) for value, far in zip(point, scale)]
    if not all(0 <= share <= 1 for share in shares):
        raise BadSample(
            f"The point {list(point)} lies outside of the picture, whose far edges are at {list(scale)}."
        )
    return round(1000 * shares[0]), round(1000 * shares[1])


def format_groups(
    places: Sequence[str],
    groups: Sequence[Sequence[Point]],
    scales: Sequence[Scale],
    label: str,
    mode: str | None = None,
    alt: str | None = None,
    pointing_format: str = "html-v2",
) -> str:
    """Points of several pictures or moments as an answer.

    Args:
        places: the text before each group: a picture's number or a time.
        mode: the kind of answer: point_count, count_point, count, or None for the points alone.
    """
    count = sum(len(group) for group in groups)
    if count == 0:
        return NONE
    if mode == "count":
        return str(count)
    number = 1
    texts = []
    for place, group, scale in zip(places, groups, scales):
        # sorted once they are rounded, so that the order is that of the text
        points = sorted(thousandths(point, scale) for point in group)
        numbers = range(number, number + len(points))
        texts.append(f"{place} {_written(zip(numbers, points))}")
        number += len(points)
    text = _tag("points", SEPARATORS[pointing_format].join(texts), label, alt)
    if mode in COUNTED:
        return f"Counting the {text} shows a total of {count}."
    if mode in COUNTED_FIRST:
        return f"There are {count} {text}."
    return text


def format_tracks(
    moments: Sequence[Moment],
    scale: Scale,
    label: str,
    start_end_only: bool = False,
    pointing_format: str = "html-v2",
) -> str:
    """Tracks of objects, which are numbered as they appear and at each time from left to right.

    `start_end_only` keeps the first and the last moment at which each object is given, hidden or not.
    """
    if not moments:
        return NO_TRACKS
    if start_end_only:
        moments = _ends(moments)
    numbers: dict[int | str, int] = {}
    texts = []
    for moment in sorted(moments, key=lambda moment: moment.time):
        seen = {name: at for name, at in moment.points.items() if name not in moment.hidden}
        places = [(thousandths(point, scale), name) for name, point in seen.items()]
        for _, name in sorted(places, key=lambda entry: entry[0]):
            numbers.setdefault(name, len(numbers) + 1)
        if places:
            ordered = sorted((numbers[name], place) for place, name in places)
            texts.append(f"{stamp(moment.time)} {_written(ordered)}")
    return _tag("tracks", SEPARATORS[pointing_format].join(texts), label)


def read_points(
    text: str, width: float | Sequence[float], height: float | Sequence[float]
) -> list[Found]:
    """Points of a text in pixels, in its order; those outside of the picture are left out.

    Width and height may be those of several pictures: then a group's place is the number of its picture, and groups of
    pictures that are not there are left out.
    """
    found = []
    for coords in _COORDS.finditer(text):
        for group in _GROUP.finditer(coords.group(1)):
            size = _size(group.group(1), width, height)
            for number, x, y in _POINT.findall(group.group(2)) if size else ():
                if int(x) <= 1000 and int(y) <= 1000:
                    at = (float(x) / 1000 * size[0], float(y) / 1000 * size[1])
                    found.append(Found(float(group.group(1)), number, *at))
    return found


def read_any_points(text: str, width: float, height: float) -> list[tuple[float, float]]:
    """(x, y) in pixels of all points of a text, in Molmo2's form or else in the older ones."""
    found = [(point.x, point.y) for point in read_points(text, width, height)]
    for patterns in _OLDER:
        if found:
            break
        for pattern, far in patterns:
            pairs = [(float(x) / far, float(y) / far) for x, y in re.findall(pattern, text)]
            found += [(x * width, y * height) for x, y in pairs if max(x, y) <= 1]
    return found


def read_tracks(text: str, width: float, height: float) -> list[Moment]:
    """Tracks of a text in pixels by time; of an object that comes twice at one time the first counts."""
    moments: dict[float, dict[str, Point]] = {}
    for point in read_points(text, width, height):
        moments.setdefault(point.place, {}).setdefault(point.number, (point.x, point.y))
    return [Moment(time, moments[time]) for time in sorted(moments)]


def _size(
    place: str, width: float | Sequence[float], height: float | Sequence[float]
) -> tuple[float, float] | None:
    if place.count(".") > 1 or place == ".":
        return None
    number = float(place)
    if not math.isfinite(number):  # hundreds of digits, as a reply that goes on and on has
        return None
    if isinstance(width, (int, float)):
        return width, height
    if number != int(number) or not 1 <= number <= len(width):
        return None
    return width[int(number) - 1], height[int(number) - 1]


def _written(points: Iterable[tuple[int, tuple[int, int]]]) -> str:
    return " ".join(f"{number} {x:03d} {y:03d}" for number, (x, y) in points)


def _tag(name: str, coords: str, label: str, alt: str | None = None) -> str:
    if not coords:
        return ""
    first = "" if alt is None else f' alt="{alt}"'
    return f'<{name}{first} coords="{coords}">{label}</{name}>'


def _ends(moments: Sequence[Moment]) -> list[Moment]:
    first: dict[int | str, int] = {}
    last: dict[int | str, int] = {}
    for number, moment in enumerate(moments):
        for name in moment.points:
            first.setdefault(name, number)
            last[name] = number
    kept: dict[float, Moment] = {}  # of moments at one time one is made
    for number, moment in enumerate(moments):
        points = {n: p for n, p in moment.points.items() if number in (first[n], last[n])}
        if points:
            before = kept.get(moment.time, Moment(moment.time, {}))
            hidden = [name for name in before.hidden if name not in points]
            hidden += [name for name in moment.hidden if name in points]
            kept[moment.time] = Moment(moment.time, before.points | points, hidden)
    return list(kept.values())
