"""The page over a run's folder: one HTML file that needs no other; what cannot be read costs its own section only."""

import dataclasses
import html
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from molmo_ds.files import Place
from molmo_ds.show import folder, sections
from molmo_ds.show.checkpoints import checkpoints
from molmo_ds.show.curves import charts, curves
from molmo_ds.show.drawing import cell, figures
from molmo_ds.show.history import Event, clock, history, restarts, state

FOLDER = Path(__file__).parent
CURVES = """Hold the pointer over a chart to read it, drag to zoom, click twice for the whole run. Long curves keep the
lowest and the highest point of each stretch."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """How much of a run the page shows."""

    samples: int = 12
    examples: int = 8  # of each evaluation
    verify: bool = False  # checkpoints, by their checksums


def render(run: Place, wish: Wish) -> str:
    """The page as the run is now."""
    lines, bad = folder.read_lines(run / "log.jsonl")
    found = curves(lines)
    told, unread = history(run, lines)
    data = {"charts": charts(found), "marks": marks(told)}
    script = json.dumps(data).replace("<", "\\u003c")  # or a name could end the script
    title = html.escape(run.name)
    parts = [
        part("", lambda: header(run, told, lines)),
        part("", lambda: summary(run, found, told)),
        part("Curves", lambda: curves_section(found, bad)),
        part("Evaluations", lambda: sections.evaluations(run, wish.examples)),
        part("Checkpoints", lambda: sections.checkpoints(checkpoints(run, wish.verify))),
        part("Faults and restarts", lambda: sections.history(told, unread)),
        part("Samples", lambda: sections.samples(run, wish.samples)),
        part("Settings", lambda: sections.settings(run)),
        f'<script type="application/json" id="data">{script}</script>',
        f"<script>{(FOLDER / 'page.js').read_text()}</script>",
    ]
    style = (FOLDER / "page.css").read_text()
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f'<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def part(title: str, make: Callable[[], str]) -> str:
    """A section of the page, or the sentence that says why there is none."""
    try:
        body = make()
    except (ValueError, OSError) as error:
        body = f'<p class="bad">{html.escape(str(error))}</p>'
    return f"<section><h2>{title}</h2>{body}</section>" if title else body


def header(run: Place, told: list[Event], lines: list[dict[str, Any]]) -> str:
    """Name, place and state."""
    word, sentence = state(run, told, lines)
    made = f"{html.escape(sentence)} This page was made at {clock(time.time())}."
    follow = '<label id="follow" hidden><input type="checkbox"> follow</label>'
    return (
        f'<header><h1>{html.escape(run.name)} <b class="state {word}">{word}</b>{follow}</h1>'
        f"<p>{html.escape(str(run))}</p><p>{made}</p></header>"
    )


def summary(run: Place, found: dict[str, list], told: list[Event]) -> str:
    """The numbers at the top."""
    last = {name: points[-1] for name, points in found.items() if points}
    step = max((point[0] for point in last.values()), default=0)
    cells = [(f"{step:,.0f}{of_steps(run)}", "steps")]
    for name, what in (
        ("loss", "loss"),
        ("tokens_per_second", "tokens per second"),
        ("mfu", "MFU"),
    ):
        if name in last:
            cells.append((cell(last[name][1]), what))
    cells += [
        (cell(point[1]), f"held-out, {name.removeprefix('eval/')}, step {point[0]:,.0f}")
        for name, point in last.items()
        if name.startswith("eval/") and name.endswith("/loss")
    ]
    faults = sum(event.is_fault for event in told)
    cells.append((cell(restarts(told)), "restarts"))
    cells.append((f"{faults}" if told else "", "faults"))
    return figures(cells)


def of_steps(run: Place) -> str:
    """` / max_steps` where the settings can be read."""
    try:
        return f" / {sections.config_of(run).max_steps:,}"
    except (ValueError, OSError):
        return ""


def marks(told: list[Event]) -> list[dict[str, Any]]:
    """Where the curves are marked: a fault, or a start from a checkpoint."""
    return [
        {"step": event.step, "what": event.what}
        for event in told
        if event.step and (event.is_fault or (event.who, event.what) == ("train", "start"))
    ]


def curves_section(found: dict[str, list], bad: int) -> str:
    """Places for the charts, which the page's script draws."""
    if not found:
        return '<p class="lead">log.jsonl holds no step yet.</p>'
    lost = f' <b class="bad">{bad} lines of log.jsonl cannot be read.</b>' if bad else ""
    return (
        f'<p class="lead">{CURVES}{lost}</p>'
        '<nav><label>smoothing <input id="smoothing" type="range" min="0" max="0.98" step="0.02" value="0"></label>'
        '<label><input id="logarithmic" type="checkbox"> logarithmic</label>'
        '<button id="whole" type="button" hidden>whole run</button><output id="range"></output></nav>'
        '<div id="charts"></div><noscript>The curves need JavaScript.</noscript>'
    )
