"""Clocks: hour, minute and second of a time in words.

Source of the rule: allenai/molmo 793fa38, olmo/eval/evaluators.py (ClockEval): PixMo-Clocks' drawn watch faces have 24
hours and three minutes of tolerance, and some show no time; the clock benchmark's photographs have 12 hours and one
minute.
"""

from __future__ import annotations

from typing import NamedTuple

from molmo_ds.eval.row import Row, Scores

_NOT_SHOWN = -1


class _Time(NamedTuple):
    """What a clock shows or a reply says; None for what cannot be read."""

    hour: int | None
    minute: int | None
    second: int | None


def clock_scores(
    reply: str, hour: int, minute: int, second: int, benchmark: bool
) -> dict[str, float]:
    """The named scores that apply; -1 for what is not shown, -1 everywhere for a face that shows no time.

    `benchmark` means the rules of the clock benchmark, where a time just before twelve is close to one just after it.
    """
    if max(hour, minute, second) <= _NOT_SHOWN:
        declines = float(":" not in reply)
        return dict.fromkeys(
            ("correctly_declines_to_answer", "overall_close", "overall_exact"), declines
        )
    said = _read_time(reply, benchmark)
    if benchmark:
        true = _Time(0 if hour == 12 else hour, 0 if minute == 60 else minute, second)
        minutes_off = (-59, -1, 0, 1, 59)  # around the face
        seconds_off = range(-1, 2)
    else:
        true = _Time(hour, minute, second)
        minutes_off = seconds_off = range(-3, 4)
    right_hours = (0, 12) if true.hour == 0 else (true.hour,)
    scores = {
        "hour_correct": said.hour in right_hours,
        "minute_correct": said.minute == true.minute,
        "minute_close": said.minute is not None and said.minute - true.minute in minutes_off,
    }
    if second != _NOT_SHOWN:
        scores["second_correct"] = said.second == second
        scores["second_close"] = said.second is not None and said.second - second in seconds_off
    hands = ("minute", "second") if second != _NOT_SHOWN else ("minute",)
    exact = scores["hour_correct"] and all(scores[f"{hand}_correct"] for hand in hands)
    close = scores["hour_correct"] and all(scores[f"{hand}_close"] for hand in hands)
    if benchmark and second == _NOT_SHOWN:
        close = close or _across_twelve(said, true)
    scores |= {
        "all_correct": exact,
        "all_close": close,
        "overall_exact": exact,
        "overall_close": close,
    }
    return {name: float(value) for name, value in scores.items()}


def score_clock(reply: str, row: Row, benchmark: bool = False) -> Scores:
    """The scores against the true time; unreadable is a reply without hour or minute where a time is shown."""
    known = shown_time(row)
    if known is None:
        raise ValueError(
            "The true time is not known: the record needs hour, minute and second, or an answer."
        )
    found = clock_scores(reply, *known, benchmark)
    parts = reply.strip().split(":")
    readable = _number(parts, 0, -1) is not None and _number(parts, 1, 0) is not None
    return {
        **found,
        "unreadable": float(not readable and "correctly_declines_to_answer" not in found),
    }


def shown_time(row: Row) -> tuple[int, int, int] | None:
    """(hour, minute, second) of the record, else those that its answer says; -1 for what is not shown."""
    known = row.metadata
    if known.get("hour") is not None:
        return known["hour"], known["minute"], known["second"]
    answer = row.annotation.get("answer")
    if answer is None:
        return None
    if ":" not in answer:
        return _NOT_SHOWN, _NOT_SHOWN, _NOT_SHOWN
    parts = answer.split(":")
    hour = _number(parts, 0, -1)
    minute = _number(parts, 1, 0)
    second = _number(parts, 2, 0)
    if hour is None or minute is None:
        raise ValueError(f"The true time is {answer!r}, which says no hour and minute.")
    return hour + (12 if "PM" in answer else 0), minute, _NOT_SHOWN if second is None else second


def true_time(row: Row) -> str | None:
    """The annotation's words, or the record's hour, minute and second."""
    known = shown_time(row)
    if known is None or row.annotation.get("answer") is not None:
        return row.annotation.get("answer")
    numbers = [f"{number:02d}" for number in known if number != _NOT_SHOWN]
    return ":".join(numbers) or "no time is shown"


def _number(parts: list[str], at: int, word: int) -> int | None:
    """The whole number that is a word of a part between colons."""
    try:
        return int(parts[at].split()[word])
    except (ValueError, IndexError):
        return None


def _read_time(reply: str, benchmark: bool) -> _Time:
    """The time that a reply says: on a face of twelve hours in the benchmark, else PM adds twelve."""
    parts = reply.strip().split(":")
    hour = _number(parts, 0, -1)
    minute = _number(parts, 1, 0)
    if hour is not None and benchmark and hour >= 12:
        hour -= 12
    if hour is not None and not benchmark and "PM" in reply:
        hour += 12
    if benchmark and minute == 60:
        minute = 0
    return _Time(hour, minute, _number(parts, 2, 0))


def _across_twelve(said: _Time, true: _Time) -> bool:
    """Whether one time is the last minute before twelve and the other is twelve."""
    if said.hour is None or said.minute is None:
        return False
    return abs((said.hour - true.hour) * 60 + said.minute - true.minute) == 719
