"""Pieces of HTML: tables, numbers, and points over a picture."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

Point = tuple[float, float]


def cell(value: Any) -> str:
    """A value in few letters; empty for None."""
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else f"{value:,.0f}"


def figures(cells: Iterable[tuple[str, str]]) -> str:
    """Numbers with what they are."""
    boxes = (
        f"<div><b>{html.escape(value) or '&ndash;'}</b><span>{html.escape(what)}</span></div>"
        for value, what in cells
    )
    return f'<div class="figures">{"".join(boxes)}</div>'


def table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; every cell is escaped."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def drawing(
    size: Point, predicted: Iterable[Point], true: Iterable[Point], boxes: Iterable[Sequence[float]]
) -> str:
    """Points and boxes over a picture of `size`, all in its pixels."""
    width, height = size
    radius = max(size) / 60
    shapes = [
        f'<rect class="true" x="{left:g}" y="{top:g}" width="{max(0, right - left):g}"'
        f' height="{max(0, bottom - top):g}"/>'
        for left, top, right, bottom in boxes
    ]
    shapes += [
        f'<circle class="true" cx="{x:g}" cy="{y:g}" r="{1.6 * radius:g}"/>' for x, y in true
    ]
    shapes += [
        f'<circle class="predicted" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>' for x, y in predicted
    ]
    return f'<svg viewBox="0 0 {width:g} {height:g}" aria-hidden="true">{"".join(shapes)}</svg>'
