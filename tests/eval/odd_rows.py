"""Replies and records as nobody expects them, and the test that none of them ends an evaluation with a traceback."""

import dataclasses
from collections.abc import Iterator

from molmo_ds.eval.row import Row
from molmo_ds.eval.score import scored_row
from molmo_ds.eval.task import Task

LONG = "9" * 4400  # more digits than Python reads as a number
REPLIES = (
    *("", " ", "\n\n\n", "\x00", "\ud800", "Answer:", "answer: Answer:\n", "Action:", ":", "%%"),
    *("nan", "NaN%", "inf", "-inf", "1e999", LONG, f"a total of {LONG}", "a total of"),
    *(f"{LONG}:{LONG}", "12:", ":5", "١٢:٣٠", "½", "İ", "e\u0301", "🙂" * 50, "\u2028", "a\tb"),
    *("[", "['", "(", "()", "(A", ") ", "A) ", "Click(", "Click(1.0, 2.0)", "type", "scroll"),
    *("<point", '<point x="50.0" y="50.0" alt="">', f'x1="{LONG}" y1="1"', "none."),
    f'<points coords="{LONG} 1 333 500">x</points>',
    '<points coords="1.1.1 1 333 500">x</points>',
    f'<tracks coords="{LONG} 1 333 500;1.0 1 333 000">x</tracks>',
    *("A" * 5000, "is is is", "= = =", "1,2,3,,", "--5", ".1.", "," * 100, "'" * 100, "a an the"),
)


def check_replies(task: Task, row: Row) -> None:
    """Every reply has scores from 0 to 1."""
    for reply in REPLIES:
        scores = scored_row(task, row, reply, "length")["scores"]
        assert all(0 <= value <= 1 for value in scores.values()), (reply[:60], scores)


def check_records(task: Task, row: Row) -> None:
    """A record that lacks a field or has another one there is scored or refused in a sentence."""
    for odd in _odd_rows(row):
        try:
            scored_row(task, odd, None, "stop")
        except ValueError as error:
            assert str(error).startswith(f"{row.id} cannot be scored: "), error


def _odd_rows(row: Row) -> Iterator[Row]:
    for part in ("annotation", "metadata"):
        known = getattr(row, part)
        for name in known:
            others = {key: value for key, value in known.items() if key != name}
            yield dataclasses.replace(row, **{part: others})
            for value in (None, [], 0, -1, "x", ["x"], [None]):
                yield dataclasses.replace(row, **{part: {**known, name: value}})
