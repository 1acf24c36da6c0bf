"""What happened to a run, from the files of training and of molmo-ds launch, and what it does now."""

import dataclasses
import statistics
import time
from typing import Any

from molmo_ds.files import Place
from molmo_ds.show import folder
from molmo_ds.show.folder import number
from molmo_ds.stores import events

PAUSE = 30.0  # seconds between two lines of the log that are worth a line here, and
MANY = 10.0  # times the usual
SILENT = 60.0  # seconds without a step after which a run is no longer called running
FAULTS = ("fault", "waiting")
ENDS = ("end", "fault")


@dataclasses.dataclass(frozen=True)
class Event:
    """One line of the history."""

    time: float
    who: str  # train, launch or log
    what: str
    facts: dict[str, Any]

    @property
    def is_fault(self) -> bool:
        """Whether something went wrong."""
        return self.what in FAULTS

    @property
    def step(self) -> float | None:
        """Where in the run it happened, if that is known."""
        return number(self.facts.get("step"))


def history(run: Place, lines: list[dict[str, Any]]) -> tuple[list[Event], int]:
    """Events in the order of time, and how many lines of their files cannot be read."""
    found = []
    bad = 0
    for who, where in (("train", run), ("launch", run / "launch")):
        told, wrong = folder.read_lines(where / events.NAME)
        bad += wrong
        for one in told:
            when = number(one.get("time"))
            if when is None:
                bad += 1
                continue
            facts = {key: value for key, value in one.items() if key not in ("time", "event")}
            found.append(Event(when, who, str(one.get("event")), facts))
    return sorted([*found, *pauses(lines)], key=lambda event: event.time), bad


def pauses(lines: list[dict[str, Any]]) -> list[Event]:
    """Where the log was silent for far longer than usual: a run that was stopped, or an evaluation."""
    times = [
        (number(line.get("time")), number(line.get("step"))) for line in lines if "loss" in line
    ]
    known = [(when, step) for when, step in times if when is not None and step is not None]
    gaps = [after[0] - before[0] for before, after in zip(known, known[1:])]
    if not gaps:
        return []
    limit = max(PAUSE, MANY * statistics.median(gaps))
    return [
        Event(after[0], "log", "pause", {"step": round(before[1]), "seconds": round(gap)})
        for before, after, gap in zip(known, known[1:], gaps)
        if gap > limit
    ]


def restarts(found: list[Event]) -> int | None:
    """How many times training started again; None where it noted no start, as older releases did not."""
    starts = sum(event.who == "train" and event.what == "start" for event in found)
    return starts - 1 if starts else None


def state(run: Place, found: list[Event], lines: list[dict[str, Any]]) -> tuple[str, str]:
    """A word for what the run does now (done, running, stopped, silent, new), and a sentence."""
    if (run / "DONE").is_file():
        return "done", "All its steps are made."
    own = [event for event in found if event.who == "train"]
    if own and own[-1].what in ENDS:
        return (
            "stopped",
            f"It ended at step {own[-1].facts.get('step')}: {own[-1].facts.get('reason')}.",
        )
    beats = [folder.modified(run / name) for name in ("heartbeat", "log.jsonl")]
    last = max((beat for beat in beats if beat is not None), default=None)
    if last is None:
        return "new", "It has made no step yet."
    quiet = time.time() - last
    seconds = [number(line.get("step_seconds")) for line in lines[-5:]]
    limit = max([SILENT, *(MANY * one for one in seconds if one is not None)])
    if quiet <= limit:
        return "running", f"Its last step ended {quiet:.0f} s ago."
    return (
        "silent",
        f"No step since {clock(last)}, and it did not say that it ended: killed, or it hangs.",
    )


def clock(seconds: float) -> str:
    """A time as people read it, in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "no time"
