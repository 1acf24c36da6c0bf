"""Fixed answers to questions about the model itself, such as its name and its maker.

Questions and answers are our own, in data/wording/itself.yaml, or those of an itself.yaml in the user's folder. Each
question comes twenty times: alone, with a picture, with a video, or with two to five pictures, in the shares in which
allenai/molmo2 (f3cb108, olmo/data/molmo_hardcode.py) draws these at each visit. Which ones depends on the question
alone; the user puts any files into DIR/pictures and DIR/videos. The answers of the hub's allenai/molmo2-hardcodes were
not read.
"""

import dataclasses
import functools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from numpy.random import RandomState

from molmo_ds.data.sources.source import Item, LeftOut, Picture, Row, Source, annotation

NAME = "molmo2_hardcodes"
OWN = Path(__file__).parents[1] / "wording/itself.yaml"
SHOWN = {"nothing": 7, "picture": 5, "video": 5, "pictures": 3}  # of twenty: 0.35, 0.25, 0.25, 0.15
SEVERAL = (2, 6)  # pictures: at least, and below
CALLED = {"molmo2_4b": "Molmo2-4B", "molmo2_8b": "Molmo2-8B", "molmo2_o_7b": "Molmo2-O-7B"}
MODEL = "molmo2_8b"


def read_answers(folder: Path | None, split: str, model: str = MODEL) -> Iterator[Row]:
    """A row for each question and each way to show something with it.

    Args:
        folder: DIR; None = the questions alone.
        model: a preset, which stands for its released name, or any other name.

    Raises ValueError where itself.yaml is not a maker and a list of questions and answers.
    """
    own = folder is not None and (folder / OWN.name).is_file()
    path = folder / OWN.name if folder is not None and own else OWN
    known = _checked(path)
    names = {"model": CALLED.get(model, model), "maker": known["maker"]}
    files = {"picture": _files(folder, "pictures"), "video": _files(folder, "videos")}
    files["pictures"] = files["picture"]
    for entry in known["answers"]:
        for question in entry["questions"]:
            rng = RandomState(zlib.crc32(question.encode()))
            for kind in (kind for kind, count in SHOWN.items() for _ in range(count)):
                row = {"question": question, "answer": _named(entry["answer"], names)}
                yield {**row, "shown": kind, "files": _drawn(kind, files.get(kind, []), rng)}


def _checked(path: Path) -> dict[str, Any]:
    """What the YAML file says; ValueError in a sentence where it cannot be used."""
    try:
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    entries = known.get("answers") if isinstance(known, dict) else None
    fits = isinstance(entries, list) and all(
        isinstance(one, dict)
        and isinstance(one.get("answer"), str)
        and isinstance(one.get("questions"), list)
        and all(isinstance(question, str) for question in one["questions"])
        for one in entries
    )
    if not fits or not isinstance(known.get("maker"), str):
        raise ValueError(
            f"{path} must hold a text `maker` and a list `answers`, each with a list of texts `questions` and a text"
            f" `answer`; see {OWN}."
        )
    return known


def _named(answer: str, names: dict[str, str]) -> str:
    for key, name in names.items():
        answer = answer.replace(f"{{{key}}}", name)
    return answer.strip()


def _files(folder: Path | None, below: str) -> list[str]:
    """The files of a folder in DIR, in the order of their names."""
    home = folder / below if folder is not None else None
    if folder is None or home is None or not home.is_dir():
        return []
    return sorted(str(path.relative_to(folder)) for path in home.rglob("*") if path.is_file())


def _drawn(kind: str, files: list[str], rng: RandomState) -> list[str]:
    if not files:
        return []
    count = int(rng.randint(*SEVERAL)) if kind == "pictures" else 1
    return [files[rng.randint(len(files))] for _ in range(count)]


def answered(row: Row, split: str) -> list[Item]:
    """A question with what is shown, which it does not speak of."""
    if row["shown"] != "nothing" and not row["files"]:
        kind = "video" if row["shown"] == "video" else "picture"
        raise LeftOut(f"question without a {kind} to be shown with it; put some into DIR/{kind}s")
    said = annotation("user_qa", question=row["question"], answer=row["answer"])
    return [Item(tuple(Picture(path=path) for path in row["files"]), [said])]


def of_model(source: Source, model: str) -> Source:
    """The set with answers that name this model, by its preset or by any other name; other sets as they are."""
    if source.name != NAME:
        return source
    return dataclasses.replace(source, read=functools.partial(read_answers, model=model))


SOURCES = [
    Source(
        NAME,
        "Apache-2.0, as molmo_ds",
        "our own: data/wording/itself.yaml",
        answered,
        {"train": "train"},
        read=read_answers,
        own=True,
        by_hand="put any pictures into DIR/pictures and videos into DIR/videos, which are shown with the questions;"
        " DIR/itself.yaml replaces ours, and --model names the model",
    ),
]
