"""The numbers of log.jsonl as curves by step, and the charts that they belong in."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from molmo_ds.show.folder import number

MOST = 2000  # points of a curve on the page
Point = tuple[float, float | None]  # step, and the value, which is null where it was not finite
CHARTS = {  # title -> names of the curves in it
    "loss": ("loss", "ce_loss", "eval/*/loss"),
    "accuracy of the next token": ("accuracy",),
    "norm of the gradient": ("grad_norm", "grad_norm/*"),
    "learning rate": ("lr/*",),
    "tokens per second": ("tokens_per_second",),
    "pictures per second": ("images_per_second", "crops_per_second"),
    "seconds per step": ("step_seconds",),
    "shares": ("packing_fill", "data_wait_share", "save_share", "learnt_share", "goodput", "mfu"),
    "memory of rank 0, bytes": ("memory_bytes",),
    "tokens of a step": ("tokens", "learnt_tokens", "positions"),
    "pictures of a step": ("images", "crops", "documents"),
}
UNUSED = ("step", "time", "weight", "documents_per_second")
HELD_OUT = "eval/"


def curves(lines: Iterable[dict[str, Any]]) -> dict[str, list[Point]]:
    """Name -> points in the order of their steps; of lines for one step the last counts."""
    found: dict[str, dict[float, float | None]] = {}
    for line in lines:
        step = number(line.get("step"))
        if step is None:
            continue
        for name, value in line.items():
            if isinstance(value, int | float | None) and not isinstance(value, bool):
                found.setdefault(name, {})[step] = number(value)
    return {name: sorted(points.items()) for name, points in found.items() if name not in UNUSED}


def thinned(points: list[Point], most: int = MOST) -> list[Point]:
    """At most about `most` points: of each stretch the lowest, the highest, and one that was not finite."""
    if len(points) <= most:
        return points
    width = -(-len(points) // (most // 3))
    out = []
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        finite = [point for point in stretch if point[1] is not None]
        kept = [point for point in stretch if point[1] is None][:1]
        if finite:
            kept += [
                min(finite, key=lambda point: point[1]),
                max(finite, key=lambda point: point[1]),
            ]
        out += sorted(set(kept), key=lambda point: point[0])
    return out


def charts(found: dict[str, list[Point]]) -> list[dict[str, Any]]:
    """Charts with their curves, as the page's script draws them: the usual ones, held-out ones, then what is left."""
    left = dict(found)
    out = []
    for title, patterns in CHARTS.items():
        chosen = [name for name in left if any(fnmatchcase(name, one) for one in patterns)]
        out.append(_chart(title, {name: left.pop(name) for name in chosen}))
    held_out = [name for name in left if name.startswith(HELD_OUT)]
    # a chart each: the numbers of an evaluator differ in their units
    for name in [*held_out, *sorted(left.keys() - held_out)]:
        out.append(_chart(name, {name: left[name]}))
    return [chart for chart in out if chart["curves"]]


def _chart(title: str, found: dict[str, list[Point]]) -> dict[str, Any]:
    made = []
    for name, points in found.items():
        kept = thinned(points)
        values = [None if value is None else float(f"{value:.6g}") for _, value in kept]
        made.append({"name": name, "steps": [step for step, _ in kept], "values": values})
    return {"title": title, "curves": made}
