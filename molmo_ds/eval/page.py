"""One page about an evaluated task that needs no other file: figures, and examples with pictures, points and boxes."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from molmo_ds.data.decode import BadSample, load_image
from molmo_ds.eval.metrics.pointing import extract_points
from molmo_ds.eval.results import ROWS, read_rows
from molmo_ds.eval.row import Row, true_points
from molmo_ds.eval.run import Job, Outcome
from molmo_ds.eval.task import Task
from molmo_ds.files import write_atomic

FOLDER = Path(__file__).parent
EXAMPLES = 300  # on a page, as many as the reference's
SIDE = 512  # pixels of a picture's longer side
EMBEDDED = '<script type="application/json" id="data">'  # before the page's data
Scored = Mapping[str, Any]
KINDS = {"all": "all", "wrong": "wrong only", "truncated": "without end", "changed": "changed"}


def write(job: Job, outcome: Outcome, most: int = EXAMPLES, beside: Path | None = None) -> None:
    """Put the page into the job's results; `beside`: results of another evaluation, or a folder that holds them."""
    other = None
    name = "other"
    if beside:
        other = {row["id"]: row for row in read_rows(results_beside(job, beside))}
        name = beside.name
    text = render(job, outcome, most, other, name)
    write_atomic(job.results / page_name(job.task), text.encode(errors="replace"))


def results_beside(job: Job, beside: Path) -> Path:
    """The other evaluation's results: `beside` itself, or what it holds of the same name; ValueError for neither."""
    for folder in (beside, beside / job.results.name):
        if (folder / ROWS).is_file():
            return folder
    raise ValueError(
        f"--beside {beside} holds no {ROWS}, nor does {beside / job.results.name}; name the results of a finished"
        f" evaluation of {job.label}."
    )


def page_name(task: Task) -> str:
    """The page's file, named as in allenai/molmo."""
    return f"{task.name}-predictions.html"


def render(
    job: Job,
    outcome: Outcome,
    most: int = EXAMPLES,
    beside: Mapping[str, Scored] | None = None,
    name: str = "other",
) -> str:
    """The page with at most `most` examples.

    Args:
        beside: id -> scored row of another evaluation of the task, to be shown with ours.
        name: of that evaluation.
    """
    chosen = choose(outcome.rows, most, job.task.headline)
    examples = [
        example(*pair, job.task.headline)
        for number, pair in enumerate(outcome.pairs())
        if number in chosen
    ]
    for one in examples:
        if beside and one["id"] in beside:
            one["other"] = _other(beside[one["id"]], one["size"])
    pictures = {}
    for number in sorted(chosen):
        row = outcome.questions[number]
        if str(row.index) not in pictures:
            pictures[str(row.index)] = picture(job, row)
    data = {"examples": examples, "pictures": pictures, "beside": name}
    script = json.dumps(data).replace("<", "\\u003c")  # or a reply could end the script
    title = f"{job.task.benchmark}, {job.split}"
    parts = [
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(_provenance(job))}</p></header>",
        _figures(outcome.figures),
        f'<div class="tables">{_metrics(outcome.figures)}{_categories(outcome.figures)}</div>',
        _filters(outcome, len(examples), name if beside else ""),
        '<main id="examples"></main>',
        f"{EMBEDDED}{script}</script>",
        f"<script>{(FOLDER / 'page.js').read_text()}</script>",
    ]
    style = (FOLDER / "page.css").read_text()
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'  # noqa: E501
    return f'<!doctype html><html lang="en"><head>{head}<style>{style}</style></head><body>{"".join(parts)}</body></html>'  # noqa: E501


def choose(rows: Sequence[Scored], most: int, headline: str) -> set[int]:
    """Numbers of the rows to show: all if there is room, else up to half of it wrong ones, each kind evenly spread."""
    if len(rows) <= most:
        return set(range(len(rows)))
    wrong = [
        number for number, row in enumerate(rows) if verdict(row, headline) in ("wrong", "part")
    ]
    others = sorted(set(range(len(rows))) - set(wrong))
    room = min(len(wrong), max(most // 2, most - len(others)))
    return {*_spread(wrong, room), *_spread(others, most - room)}


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    count = min(count, len(numbers))
    return [numbers[number * len(numbers) // count] for number in range(count)]


def verdict(scored: Scored, headline: str) -> str:
    """right, part or wrong by the headline metric; unknown where there is no score."""
    value = scored["scores"].get(headline)
    if value is None:
        return "unknown"
    return "right" if value >= 1 else "wrong" if value <= 0 else "part"


def example(row: Row, scored: Scored, headline: str) -> dict[str, Any]:
    """What the page's script shows of a row; points and boxes in pixels of the picture."""
    return {
        "id": row.id,
        "picture": str(row.index),
        "size": list(row.size),
        "prompt": scored["prompt"]
        or str(row.annotation.get("question") or row.annotation.get("label") or ""),
        "reply": scored["reply"],
        "truth": scored["truth"],
        "scores": scored["scores"],
        "verdict": verdict(scored, headline),
        "end": scored["end"],
        "categories": scored["categories"],
        "points": extract_points(scored["reply"], *row.size),
        "true_points": true_points(row),
        "boxes": [list(box) for box in row.annotation.get("boxes") or ()],
    }


def picture(job: Job, row: Row) -> str | None:
    """The first readable picture of a row as the address of an embedded JPEG, or None."""
    pixels = job.shards.read(row.index)["pixels"]
    if not pixels:
        return None
    try:
        image = Image.fromarray(load_image(pixels[0]))
    except BadSample:
        return None
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _other(scored: Scored, size: Sequence[int]) -> dict[str, Any]:
    points = extract_points(scored["reply"], *size)
    return {"reply": scored["reply"], "scores": scored["scores"], "points": points}


def _provenance(job: Job) -> str:
    values = job.provenance.values()
    shown = ("checkpoint", "crops", "precision", "limit", "new_tokens", "prompt", "code")
    return " · ".join(f"{name} {values[name]}" for name in shown if values[name] is not None)


def _figures(figures: Mapping[str, Any]) -> str:
    """The numbers at the top."""
    headline = figures["headline"]
    found = figures["metrics"].get(headline)
    cells = []
    if found:
        error = (
            f" ± {100 * found['standard_error']:.1f}" if found["standard_error"] is not None else ""
        )
        cells.append(
            (
                f"{100 * found['value']:.1f} %<small>{error}</small>",
                f"{headline}, standard error by picture",
            )
        )
    if headline in figures["chance"]:
        cells.append((f"{100 * figures['chance'][headline]:.1f} %", "best constant answer"))
    cells.append((f"{figures['questions']:,}", f"questions, {figures['pictures']:,} pictures"))
    for name, what in (
        ("share_without_end", "replies without end"),
        ("share_unreadable", "unreadable replies"),
    ):
        if figures[name] is not None:
            cells.append((f"{100 * figures[name]:.1f} %", what))
    if figures["failed"]:
        cells.append((f"{figures['failed']:,}", "without a reply, not scored"))
    return (
        '<div class="figures">'
        + "".join(f"<div><b>{n}</b><span>{what}</span></div>" for n, what in cells)
        + "</div>"
    )


def _metrics(figures: Mapping[str, Any]) -> str:
    rows = [(name, one) for name, one in figures["metrics"].items()]
    table = _table(("metric", "value", "n"), rows)
    published = {
        model: value
        for model, value in figures["published"].items()
        if model != "split" and value is not None
    }
    if published:
        split = html.escape(str(figures["published"]["split"]))
        cells = "".join(
            f"<tr><td>{html.escape(model)}</td><td>{value:.1f} %</td></tr>"
            for model, value in published.items()
        )
        table += f"<br><h2>Published, {split}</h2><table>{cells}</table>"
    return f"<section><h2>Metrics</h2>{table}</section>"


def _categories(figures: Mapping[str, Any]) -> str:
    out = ""
    for kind, found in figures["categories"].items():
        out += f"<section><h2>{html.escape(kind)}</h2>{_table(('', 'value', 'n'), list(found.items()))}</section>"
    return out


def _table(names: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = ""
    for name, one in rows:
        value = one["value"]
        bar = f'<meter value="{value:.4f}"></meter>' if 0 <= value <= 1 else ""
        body += (
            f"<tr><td>{html.escape(name)}</td><td>{value:.4f}{bar}</td><td>{one['n']:,}</td></tr>"
        )
    return f"<table><tr>{head}</tr>{body}</table>"


def _filters(outcome: Outcome, shown: int, beside: str) -> str:
    kinds = [kind for kind in KINDS if kind != "changed" or beside]
    buttons = "".join(
        f'<button value="{kind}" aria-pressed="{str(kind == "all").lower()}">{KINDS[kind]}</button>'
        for kind in kinds
    )
    names = [
        f"{kind} {name}" for kind, found in outcome.figures["categories"].items() for name in found
    ]
    options = "".join(f"<option>{html.escape(name)}</option>" for name in names)
    colours = {"predicted": "#2b6cff", "true": "#18a558"} | ({beside: "#e0721b"} if beside else {})
    key = "".join(
        f'<span class="key" style="background:{colour}"></span>{html.escape(name)}'
        for name, colour in colours.items()
    )
    return (
        f'<nav>{buttons}<select id="category"><option value="">every category</option>{options}</select>'
        '<input id="text" placeholder="words of prompt, reply or truth" aria-label="words">'
        f'<output id="count"></output></nav><p class="legend">{key} &nbsp; {shown:,} of {len(outcome.rows):,} questions'
        f" are on this page{', up to half of them wrong ones' if shown < len(outcome.rows) else ''}.</p>"
    )
