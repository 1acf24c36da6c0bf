"""From what a user asks for to jobs: which crops, which folder, which provenance."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, get_type_hints

from molmo_ds.data.read.shards import ShardSet
from molmo_ds.eval.listing import shards_of
from molmo_ds.eval.log import read_provenance
from molmo_ds.eval.provenance import Provenance, code_version, results_name
from molmo_ds.eval.run import Job
from molmo_ds.eval.subject import Subject
from molmo_ds.eval.task import Task

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What is the same for all tasks of a command."""

    data: Path  # folder of the shards' folders
    limit: int | None = None
    shuffle_seed: int | None = None
    max_frames: int | None = None
    eval_name: str = ""
    loss: bool = False  # of captions, in a folder of its own, as in the reference
    rescore: bool = False  # the saved replies, whatever made them


def plan(subject: Subject, task: Task, split: str, wish: Wish, crops: int | None = None) -> Job:
    """The job of a task; ValueError where replies that are to be scored again are not there.

    Other crops than those of training are part of the folder's name, as in the reference (36crop), and so are frames.
    """
    name = wish.eval_name or others(crops, wish.max_frames)
    kind = "loss" if wish.loss else "predictions"
    results = subject.base / results_name(task, split, subject.step, name, kind)
    shards = ShardSet(str(shards_of(task, split, wish.data)))
    now = Provenance(
        task=task.name,
        split=split,
        limit=wish.limit,
        shuffle_seed=wish.shuffle_seed,
        frames=wish.max_frames,
        data=shards.fingerprint,
        new_tokens=task.new_tokens(subject.family),
        code=code_version(),
        **subject.known(crops),
    )
    if wish.rescore:
        saved = read_provenance(results)
        if saved is None:
            raise ValueError(f"{results} holds no replies to score; leave --rescore out.")
        now = of_saved(now, saved, results)
    return Job(task=task, split=split, name=name, shards=shards, results=results, provenance=now)


def others(crops: int | None, frames: int | None) -> str:
    """36crop-64frame: what differs from the usual crops and frames, "" where nothing does."""
    given = (("crop", crops), ("frame", frames))
    return "-".join(f"{number}{what}" for what, number in given if number is not None)


def of_saved(now: Provenance, saved: dict[str, Any], results: Path) -> Provenance:
    """The provenance of saved replies.

    Raises ValueError where other questions are wished than were asked, or a value is none that can be.
    """
    kinds = get_type_hints(Provenance)
    for name, kind in kinds.items():
        one = saved.get(name, getattr(now, name))
        if not isinstance(one, kind) or isinstance(one, int) and one < 0:
            raise ValueError(
                f"{results} holds replies of unknown origin ({name} {one!r}); give --overwrite to ask again."
            )
    wished = {name: getattr(now, name) for name in ("limit", "shuffle_seed")}
    other = [name for name, one in wished.items() if one is not None and saved.get(name) != one]
    if other:
        raise ValueError(
            f"{results} holds replies that were asked with {other[0]} {saved.get(other[0])}, not {wished[other[0]]};"
            " leave --limit and --shuffle-seed out of --rescore."
        )
    if saved.get("data") != now.data:
        log.warning(
            "The shards are not those for which %s was asked; its replies are scored by the truths of now.",
            results,
        )
    return dataclasses.replace(now, **{name: saved[name] for name in kinds if name in saved})
