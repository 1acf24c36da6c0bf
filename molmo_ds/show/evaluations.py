"""The evaluations in a run's folder: figures of metrics.json, and answers with their pictures and points.

Pictures come from the page that molmo-ds evaluate wrote next to the figures, so that the shards need not be there.
"""

import re
from dataclasses import dataclass as plain_dataclass

from pydantic import FiniteFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from molmo_ds.eval.log import FOLDER as LOG
from molmo_ds.eval.page import EMBEDDED
from molmo_ds.eval.results import ROWS
from molmo_ds.eval.run import DONE
from molmo_ds.files import Place
from molmo_ds.show import folder

_DATA = re.compile(re.escape(EMBEDDED) + r"(.*?)</script>", re.DOTALL)
Point = tuple[FiniteFloat, FiniteFloat]
Box = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


@dataclass(frozen=True)
class Figure:
    """One number of a task."""

    value: FiniteFloat
    n: int
    standard_error: FiniteFloat | None = None


@dataclass(frozen=True)
class Figures:
    """What the table shows of `figures` in metrics.json."""

    headline: str
    metrics: dict[str, Figure]
    questions: int
    failed: int = 0
    chance: dict[str, FiniteFloat] | None = None


@dataclass(frozen=True)
class Metrics:
    """metrics.json."""

    figures: Figures


@dataclass(frozen=True)
class Example:
    """An answer, of the data in an evaluation's page or of rows.jsonl, which knows no places."""

    id: str
    prompt: str
    reply: str
    truth: str | None = None
    verdict: str = "unknown"
    picture: str | None = None  # a key of `pictures`
    size: Point = (1.0, 1.0)
    points: tuple[Point, ...] = ()
    true_points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Page:
    """The data in an evaluation's page."""

    examples: tuple[Example, ...]
    pictures: dict[str, str | None]  # addresses


@plain_dataclass(frozen=True)
class Evaluation:
    """One folder of results."""

    name: str
    figures: Figures | None  # None while it is not finished
    time: float | None  # when it was done
    answered: int  # replies in its log
    page: Page
    wrong: str = ""  # what cannot be read


def evaluations(run: Place, most: int) -> list[Evaluation]:
    """Each with at most `most` examples, in the order of their names."""
    return [
        _evaluation(place, most)
        for place in folder.children(run)
        if place.is_dir() and ((place / DONE).is_file() or (place / LOG).is_dir())
    ]


def _evaluation(place: Place, most: int) -> Evaluation:
    answered = sum(len(folder.read_lines(file)[0]) for file in (place / LOG).glob("*.jsonl"))
    done = place / DONE
    try:
        known = folder.read_text(done)
        figures = TypeAdapter(Metrics).validate_json(known).figures if known else None
        page = _page(place, most)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        wrong = f"{place} is not as molmo-ds evaluate writes it ({where}: {first['msg']})."
        return Evaluation(place.name, None, None, answered, Page((), {}), wrong)
    return Evaluation(place.name, figures, folder.modified(done), answered, page)


def _page(place: Place, most: int) -> Page:
    for file in place.glob("*-predictions.html"):
        found = _DATA.search(folder.read_text(file))
        page = TypeAdapter(Page).validate_json(found[1] if found else "")
        return Page(in_turn(page.examples, most), page.pictures)
    rows = folder.read_lines(place / ROWS)[0][:most]
    return Page(tuple(TypeAdapter(list[Example]).validate_python(rows)), {})


def in_turn(examples: tuple[Example, ...], most: int) -> tuple[Example, ...]:
    """At most `most` of them, right ones first, and half of them others as far as there are both."""
    right = [one for one in examples if one.verdict == "right"]
    others = [one for one in examples if one.verdict != "right"]
    count = min(len(right), max(most - most // 2, most - len(others)))
    return (*right[:count], *others[: most - count])
