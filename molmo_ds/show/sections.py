"""The sections of the page below its curves, as HTML."""

import functools
import html
from collections.abc import Iterator

from molmo_ds.config import RunConfig
from molmo_ds.files import Place
from molmo_ds.show import evaluations as evaluated
from molmo_ds.show import folder
from molmo_ds.show import samples as seen
from molmo_ds.show.checkpoints import Saved
from molmo_ds.show.drawing import cell, drawing, table
from molmo_ds.show.history import Event, clock
from molmo_ds.show.samples import Shown
from molmo_ds.weights.checkpoint import read_config

EVENTS = 200  # newest ones on the page


def config_of(run: Place) -> RunConfig:
    """The run's settings; ValueError where it has none that this release reads."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} has no config.yaml.")
    return read_config(run)


def evaluations(run: Place, most: int) -> str:
    """A table of all evaluations, then the answers of each."""
    done = evaluated.evaluations(run, most)
    if not done:
        return f'<p class="lead">None yet; molmo-ds evaluate {html.escape(str(run))} TASK puts them here.</p>'
    names = ("folder", "metric", "value", "best constant answer", "n", "done")
    rows = [row for one in done for row in metrics(one)]
    return table(names, rows) + "".join(map(answers, done))


def metrics(one: evaluated.Evaluation) -> Iterator[tuple]:
    """The rows of an evaluation in the table."""
    if one.figures is None:
        yield one.name, "", "", "", one.answered, one.wrong or "not finished"
        return
    failed = f"{one.figures.failed} without a reply, " if one.figures.failed else ""
    when = failed + (clock(one.time) if one.time else "")
    for name, figure in one.figures.metrics.items():
        error = "" if figure.standard_error is None else f" ± {figure.standard_error:.4f}"
        chance = (one.figures.chance or {}).get(name)
        headline = " (headline)" if name == one.figures.headline else ""
        value = f"{figure.value:.4f}{error}"
        yield one.name, name + headline, value, cell(chance), figure.n, when


def answers(one: evaluated.Evaluation) -> str:
    """The answers of an evaluation as cards."""
    if not one.page.examples:
        return ""
    cards = "".join(card(example, one.page.pictures) for example in one.page.examples)
    key = '<i class="key predicted"></i>predicted <i class="key true"></i>true'
    return (
        f'<h3>{html.escape(one.name)}</h3><p class="lead">{key}</p><div class="cards">{cards}</div>'
    )


def card(example: evaluated.Example, pictures: dict[str, str | None]) -> str:
    """An answer: picture, points, prompt, reply, truth."""
    address = pictures.get(example.picture or "") or ""
    shown = ""
    if address.startswith("data:image/"):
        rings = drawing(example.size, example.points, example.true_points, example.boxes)
        shown = f'<figure><img src="{html.escape(address)}" alt="">{rings}</figure>'
    words = (("prompt", example.prompt), ("reply", example.reply), ("truth", example.truth or ""))
    lines = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in words if text)
    verdict = example.verdict if example.verdict in ("right", "wrong", "part") else ""
    return f'<article class="{verdict}">{shown}<dl>{lines}</dl></article>'


def checkpoints(saved: list[Saved]) -> str:
    """A table of the checkpoints."""
    if not saved:
        return '<p class="lead">None yet.</p>'
    rows = [
        (
            one.name + (" (latest)" if one.latest else ""),
            "" if one.bytes is None else f"{one.bytes / 1e6:,.1f} MB",
            "" if one.ranks is None else one.ranks,
            clock(one.time) if one.time else "",
            "whole" if one.wrong is None else f"not whole: {one.wrong}",
        )
        for one in saved
    ]
    return table(("checkpoint", "size", "ranks", "saved", "state"), rows)


def history(told: list[Event], unread: int) -> str:
    """A table of what happened, the newest first."""
    if not told and not unread:
        return '<p class="lead">Nothing was noted.</p>'
    rows = []
    for event in told[: -EVENTS - 1 : -1]:
        facts = ", ".join(f"{name} {value}" for name, value in event.facts.items())
        rows.append((clock(event.time), event.who, event.what, facts))
    lost = f'<p class="bad">{unread} lines cannot be read.</p>' if unread else ""
    left = len(told) - len(rows)
    lost += f'<p class="lead">and {left} older ones</p>' if left else ""
    return table(("time", "who", "what", ""), rows) + lost


def samples(run: Place, count: int) -> str:
    """The first samples of the run's stream."""
    if not count:
        return '<p class="lead">Left out by --samples 0.</p>'
    lead = "The first that this run sees, drawn again from its shards by its own settings; points as they are learnt."
    text = folder.read_text(run / "config.yaml")
    cards = "".join(map(sample, drawn(run, text, count)))
    return f'<p class="lead">{lead}</p><div class="cards">{cards}</div>'


@functools.lru_cache(4)
def drawn(run: Place, text: str, count: int) -> list[Shown]:
    """The samples, which stay the same as long as config.yaml has the same text."""
    return seen.samples(config_of(run), count)


def sample(shown: Shown) -> str:
    """A sample: pictures with points, and what is said about them."""
    pictures = []
    for number, (picture, size) in enumerate(shown.pictures):
        rings = drawing(size, (), shown.points if number == 0 else (), ())
        pictures.append(f"<figure>{picture}{rings}</figure>")
    talks = "".join(f"<dl>{''.join(turns(talk))}</dl>" for talk in shown.talks)
    left = f"<p>and {shown.left} more conversations</p>" if shown.left else ""
    where = f"<p>{html.escape(shown.name)} &middot; {html.escape(shown.key)}</p>"
    return f"<article>{''.join(pictures)}{shown.film}{talks}{left}{where}</article>"


def turns(talk: list[str]) -> Iterator[str]:
    """The turns of a conversation."""
    for number, text in enumerate(talk):
        yield f"<dt>{'learnt' if number % 2 else 'given'}</dt><dd>{html.escape(text)}</dd>"


def settings(run: Place) -> str:
    """config.yaml as it is."""
    text = folder.read_text(run / "config.yaml")
    if not text:
        raise ValueError(f"{run} has no config.yaml.")
    return f"<details><summary>config.yaml</summary><pre>{html.escape(text)}</pre></details>"
