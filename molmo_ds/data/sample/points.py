"""Points in a picture as Molmo writes them: percent of width and height, one decimal, left to right."""

from collections.abc import Sequence

import numpy as np

from molmo_ds.data.decode import BadSample

NONE = "There are none."


def to_percent(
    points: Sequence[Sequence[float]], scale: float | None, size: tuple[int, int] | None
) -> np.ndarray:
    """Points [n, 2] (x, y) -> percent, rounded to one decimal, sorted by x and then y; duplicates stay.

    `scale` is the value that means the far edge; None means pixels, and then `size` (width, height) is needed.
    Raises BadSample for anything that is no list of pairs of numbers, and for a point outside of the picture; the edges
    belong to it.
    """
    try:
        values = np.array(points)
    except (TypeError, ValueError):
        raise BadSample(f"Points must be pairs of numbers, not {points}.") from None
    if values.shape == (0,):
        return np.zeros((0, 2))
    if (
        values.dtype.kind not in "iuf"
        or values.ndim != 2
        or values.shape[1] != 2
        or not np.isfinite(values).all()
    ):
        raise BadSample(f"Points must be pairs of numbers, not {points}.")
    if scale is None and (size is None or 0 in size):
        raise BadSample(
            "Points in pixels need the picture's size; give point_scale for a sample without one."
        )
    if scale is not None and not scale > 0:
        raise BadSample(f"point_scale is {scale}; it must be above 0.")
    with np.errstate(over="ignore"):  # infinity lies outside
        percent = (
            values / (np.array(size, np.float64) / 100) if scale is None else values * (100 / scale)
        )
    percent = percent.round(1) + 0.0  # the sum turns -0.0 into 0.0
    outside = ((percent < 0) | (percent > 100)).any(axis=1)
    if outside.any():
        edge = (
            f"{size[0]} x {size[1]} pixels"
            if scale is None
            else f"whose far edges are at {scale:g}"
        )
        point = [float(value) for value in values[outside][0]]
        more = f" ({outside.sum()} of {len(values)} points do)" if outside.sum() > 1 else ""
        raise BadSample(
            f"The point {point} lies outside of the picture, {edge}{more}; mend or leave out the point."
        )
    return percent[np.argsort(percent[:, 0] * 10000 + percent[:, 1], kind="stable")]


def format_points(points: np.ndarray, alt: str, text: str | None = None) -> str:
    """Sorted points in percent [n, 2] -> `<point ...>` for one, `<points ...>` for more; none is `There are none.`"""
    text = alt if text is None else text
    if len(points) == 0:
        return NONE
    if len(points) == 1:
        (x, y) = points[0]
        return f'<point x="{x:.1f}" y="{y:.1f}" alt="{alt}">{text}</point>'
    places = " ".join(f'x{i}="{x:.1f}" y{i}="{y:.1f}"' for i, (x, y) in enumerate(points, start=1))
    return f'<points {places} alt="{alt}">{text}</points>'


def format_count(points: np.ndarray, label: str) -> str:
    """The same as an answer to how many there are."""
    if len(points) == 0:
        return NONE
    return f"Counting the {format_points(points, label)} shows a total of {len(points)}."
