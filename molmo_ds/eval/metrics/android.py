"""Android Control: whether the next action on a phone's screen is the right one.

Source: allenai/molmo 793fa38, olmo/eval/evaluators.py (compute_stepwise_accuracy), after appendix D.3 of the data set's
paper. A tap is right inside the box of what is to be tapped, its edges included.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from molmo_ds.eval.row import Row, Scores

_COORDINATE = re.compile(r"\d+(?:\.\d+)?")
_EDGE = re.compile(r"-?\d+\.\d+")  # of a box: only numbers with a point are read
_TAPS = ("click", "long press")
_ALONE = ("wait", "navigate home", "navigate back")


class Action(NamedTuple):
    """A kind of action ("" = none that is known), its text, and its place in percent of the screen."""

    kind: str
    text: str = ""
    place: tuple[float, float] | None = None


def read_action(text: str) -> Action:
    """An action in words, as training writes it; case is ignored."""
    text = text.strip().lower()
    for kind in _TAPS:
        if text.startswith(kind):
            numbers = _COORDINATE.findall(text)
            return Action(
                kind, place=(float(numbers[0]), float(numbers[1])) if len(numbers) >= 2 else None
            )
    if text.startswith("type"):
        return Action("type", text[5:])
    if text.startswith("scroll"):
        return Action("scroll", "".join(text.split()[1:2]))
    if text.startswith("open app"):
        return Action("open app", text[9:])
    return Action(text if text in _ALONE else "")


def action_score(reply: str, target: str, box: str | None) -> float:
    """1 where the reply's action (after its first `Action:`) is the target's; `box` in percent, as text, may be empty.

    A tap on the icon of an app that is to be opened is right too. Raises ValueError where a tap has to be compared
    with a box that is not four numbers with a point.
    """
    if "Action:" in reply:
        reply = reply.split("Action:")[1]
    wanted = read_action(target)
    got = read_action(reply)
    if got.kind == wanted.kind and wanted.kind in _TAPS:
        return float(
            bool(got.place and wanted.place) and box is not None and _holds(box, got.place)
        )
    if got.kind == wanted.kind:
        return float(got == wanted)
    if got.kind == "click" and wanted.kind == "open app":
        return float(bool(box and got.place) and _holds(box, got.place))
    return 0.0


def score_action(reply: str, row: Row) -> Scores:
    """`accuracy`; a reply that is no action is unreadable."""
    target = row.metadata["target_action"]
    right = action_score(reply, target, row.metadata.get("target_box") or None)
    said = reply.split("Action:")[1] if "Action:" in reply else reply
    return {"accuracy": right, "unreadable": float(not read_action(said).kind)}


def _holds(box: str, place: tuple[float, float]) -> bool:
    edges = [float(number) for number in _EDGE.findall(box)]
    if len(edges) != 4:
        raise ValueError(
            f"The box of an action is {box!r}; it is left, top, right and bottom in percent, as 10.5."
        )
    left, top, right, bottom = edges
    return left <= place[0] <= right and top <= place[1] <= bottom
