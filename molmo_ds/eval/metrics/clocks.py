"""Clocks: hour, minute and second of a time in words.

Source: allenai/molmo 793fa38, olmo/eval/evaluators.py (ClockEval), for PixMo-Clocks' drawn watch faces (24 hours, three
minutes of tolerance, some of which show no time) and for the clock benchmark's photographs (12 hours, one minute).
"""

from __future__ import annotations

from molmo_ds.eval.row import Row, Scores

_NOT_SHOWN = -1


def clock_scores(reply: str, hour: int, minute: int, second: int, benchmark: bool) -> dict[str, float]:
    """The named scores that apply; -1 for what is not shown, -1 everywhere for a face that shows no time.

    `benchmark` means the rules of the clock benchmark, where a time just before twelve is close to one just after it.
    """
    reply = reply.strip()
    if max(hour, minute, second) <= _NOT_SHOWN:
        declines = float(":" not in reply)
        return dict.fromkeys(("correctly_declines_to_answer", "overall_close", "overall_exact"), declines)
    tolerance = 1 if benchmark else 3
    if benchmark:
        hour = 0 if hour == 12 else hour
        minute = 0 if minute == 60 else minute
    parts = reply.split(":")
    said_hour = _number(parts, 0, -1)
    said_minute = _number(parts, 1, 0)
    if said_hour is not None:
        said_hour += 12 if "PM" in reply and not benchmark else 0
        said_hour -= 12 if benchmark and said_hour >= 12 else 0
    if benchmark and said_minute == 60:
        said_minute = 0
    scores = {
        "hour_correct": said_hour is not None and (said_hour == hour or (hour == 0 and said_hour == 12)),
        "minute_correct": said_minute == minute,
        "minute_close": _near(said_minute, minute, tolerance) or (benchmark and _apart(said_minute, minute) == 59),
    }
    exact = scores["hour_correct"] and scores["minute_correct"]
    close = scores["hour_correct"] and scores["minute_close"]
    if second != _NOT_SHOWN:
        said_second = _number(parts, 2, 0)
        scores["second_correct"] = said_second == second
        scores["second_close"] = _near(said_second, second, tolerance)
        exact = exact and scores["second_correct"]
        close = close and scores["second_close"]
    elif benchmark and said_hour is not None and said_minute is not None:
        close = close or abs(hour * 60 + minute - (said_hour * 60 + said_minute)) == 719
    scores |= {"all_correct": exact, "all_close": close, "overall_exact": exact, "overall_close": close}
    return {name: float(value) for name, value in scores.items()}


def score_clock(reply: str, row: Row, benchmark: bool = False) -> Scores:
    """The scores against the true time; unreadable is a reply without hour or minute where a time is shown."""
    known = shown_time(row)
    if known is None:
        raise ValueError("The true time is not known: the record needs hour, minute and second, or an answer.")
    found = clock_scores(reply, *known, benchmark)
    parts = reply.strip().split(":")
    readable = _number(parts, 0, -1) is not None and _number(parts, 1, 0) is not None
    return {**found, "unreadable": float(not readable and "correctly_declines_to_answer" not in found)}


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


def _apart(said: int | None, true: int) -> int | None:
    return None if said is None else abs(said - true)


def _near(said: int | None, true: int, tolerance: int) -> bool:
    return said is not None and abs(said - true) <= tolerance
