"""One evaluation: the questions of a task, each asked once by any number of ranks, then scored once on rank 0."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.random import RandomState
from tqdm import tqdm

from molmo_ds.data.read.shards import ShardSet
from molmo_ds.engine.launch import World
from molmo_ds.eval import log as answers
from molmo_ds.eval.clients.client import FAILED, Ask, Client, Part, Reply
from molmo_ds.eval.provenance import Provenance
from molmo_ds.eval.row import Row
from molmo_ds.eval.score import chance_level, check_truths, score, scored_row
from molmo_ds.eval.task import Task

log = logging.getLogger(__name__)
DONE = "metrics.json"  # of a results folder, written last
MANY = 0.01  # share of replies without an end that is worth a warning
Crops = Callable[[int, int], int]  # of a picture, from its width and height


@dataclass(frozen=True, kw_only=True)
class Job:
    """A task on a split, and where its results go."""

    task: Task
    split: str
    name: str = ""  # what sets it apart from the usual one: --eval-name, or other crops
    shards: ShardSet
    results: Path  # a folder of its own
    provenance: Provenance

    @property
    def label(self) -> str:
        """TASK:SPLIT."""
        return f"{self.task.name}:{self.split}"

    @property
    def recorded(self) -> str:
        """Its name in a run's log, "" for one of limited questions, whose figures mean something else."""
        if self.provenance.limit is not None:
            return ""
        return f"{self.label}-{self.name}" if self.name else self.label

    def rows(self) -> list[Row]:
        """The questions in the order of the shards: all, the first `limit`, or `limit` drawn by `shuffle_seed`."""
        limit = self.provenance.limit
        if self.provenance.shuffle_seed is None:
            return list(self.task.rows(self.shards, self.split, limit))
        rows = list(self.task.rows(self.shards, self.split))
        drawn = RandomState(self.provenance.shuffle_seed).permutation(len(rows))[:limit]
        return [rows[index] for index in sorted(drawn)]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an evaluation found."""

    figures: dict[str, Any]  # of eval/score.py
    questions: list[Row]  # in the order of the shards
    rows: list[dict[str, Any]]  # the same, scored
    failures: dict[str, str]  # id -> why there is no reply

    def pairs(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Each question with what came of it."""
        return zip(self.questions, self.rows, strict=True)


def evaluate(
    job: Job,
    client: Client,
    world: World,
    overwrite: bool = False,
    crops: Crops | None = None,
    part: Part | None = None,
) -> Outcome | None:
    """Ask what the log does not hold yet, and score all of it; None on other ranks than 0.

    All ranks call it with equal arguments and see one file system. Figures are the same at every number of ranks, every
    batch and after every kill, since replies go to the log one by one and are scored in the order of the shards.

    Args:
        overwrite: forget the answers that are there.
        crops: of a picture; sorts the questions, so that those asked together are alike.
        part: of the questions, for this rank; None = every rank asks others.

    Raises ValueError, on all ranks and before anything is asked, for a log of other provenance and for a truth that
    cannot be right.
    """
    rows = job.rows()
    if not rows:
        raise ValueError(
            f"{job.label} finds no question in {job.shards.path}; are these its shards?"
        )
    world.agree(lambda: check(job, rows, overwrite))
    done = world.agree(lambda: set(answers.read(job.results)))
    groups = by_picture((row for row in rows if row.id not in done), crops)
    part = part or Part(index=world.rank, count=world.size)
    mine = [row for group in groups[part.index :: part.count] for row in group]
    failures = ask(job, client, mine, world, part)
    everyone = {name: why for told in world.gather(failures) for name, why in told.items()}
    return finish(job, rows, answers.read(job.results), everyone) if world.rank == 0 else None


def rescore(job: Job) -> Outcome:
    """Score the replies that the log holds, without a model; questions without one are failures."""
    rows = job.rows()
    replies = answers.read(job.results)
    failures = {row.id: f"{FAILED}it was not asked" for row in rows if row.id not in replies}
    return finish(job, rows, replies, failures)


def check(job: Job, rows: Sequence[Row], overwrite: bool) -> None:
    """Refuse what could not be scored in the end; make the log ours."""
    doubt = check_truths(job.task, rows)
    if doubt:
        log.warning("%s: %s", job.label, doubt)
    job.results.mkdir(parents=True, exist_ok=True)
    if overwrite:
        (job.results / DONE).unlink(missing_ok=True)
    answers.claim(job.results, job.provenance.values(), overwrite)


def by_picture(rows: Iterable[Row], crops: Crops | None = None) -> list[list[Row]]:
    """Questions about one picture together; pictures with most crops first, then the longest questions."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.picture, []).append(row)

    def cost(group: list[Row]) -> tuple[int, int]:
        size = group[0].size
        return crops(*size) if crops and size[0] else 0, max(
            len(str(row.question())) for row in group
        )

    return sorted(groups.values(), key=cost, reverse=True)


def ask(job: Job, client: Client, rows: Sequence[Row], world: World, part: Part) -> dict[str, str]:
    """Ask the rows and log each reply as it comes; id -> why, of those that got none."""
    failures: dict[str, str] = {}
    if not rows:  # and so a log that is whole is scored without the weights
        return failures
    name = job.label if part.count == 1 else f"{job.label} (part 1 of {part.count})"
    finished = answers.Log(job.results, world.rank) if part.writes else None
    with tqdm(
        total=len(rows), desc=name, unit="question", dynamic_ncols=True, disable=world.rank != 0
    ) as bar:
        known = job.provenance
        for reply in client.replies(asks(job.shards, rows, known.new_tokens, known.frames)):
            if reply.failed:
                failures[reply.id] = reply.end
            elif finished is not None:
                finished.append(logged(reply))
            bar.update()
    if finished is not None:
        finished.close()
    return failures


def asks(
    shards: ShardSet, rows: Iterable[Row], new_tokens: int, frames: int | None = None
) -> Iterator[Ask]:
    """The questions with their pictures, read one by one; of videos at most `frames` are shown, where it is given."""
    index = None
    for row in rows:
        if row.index != index:
            index = row.index
            pictures = tuple(shards.pictures(index, row.shown))
        yield Ask(
            id=row.id,
            pictures=pictures,
            annotation=row.question(),
            seed=index,
            max_new_tokens=new_tokens,
            film=shortened(row.film, frames),
        )


def shortened(film: Mapping[str, Any] | None, frames: int | None) -> dict[str, Any] | None:
    """What a record says of its video, with at most so many frames; a record may ask for fewer itself."""
    if film is None or frames is None:
        return film
    return {**film, "num_frames": min(frames, film.get("num_frames", frames))}


def logged(reply: Reply) -> dict[str, Any]:
    """A reply as a line of the log."""
    return {
        "id": reply.id,
        "reply": reply.text,
        "tokens": reply.token_count,
        "end": reply.end,
        "prompt": reply.prompt,
    }


def finish(
    job: Job,
    rows: Sequence[Row],
    replies: Mapping[str, Mapping[str, Any]],
    failures: Mapping[str, str],
) -> Outcome:
    """Score every row in the order of the shards.

    Raises ValueError where a row has neither a reply nor a failure: another rank's log cannot be seen from here.
    """
    missing = [row.id for row in rows if row.id not in replies and row.id not in failures]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(rows)} questions of {job.label} have no reply in {job.results}, {missing[0]} for"
            " one; ask again, and with several hosts give a folder that all of them see."
        )
    scored = []
    for row in rows:
        said = replies.get(row.id) or {
            "reply": "",
            "tokens": 0,
            "end": failures[row.id],
            "prompt": "",
        }
        more = {"tokens": said["tokens"], "prompt": said["prompt"]}
        scored.append(scored_row(job.task, row, said["reply"], said["end"], **more))
    figures = score(job.task, scored, chance_level(job.task, rows))
    warn(job, figures)
    return Outcome(figures=figures, questions=list(rows), rows=scored, failures=dict(failures))


def warn(job: Job, figures: Mapping[str, Any]) -> None:
    """Say what makes figures less than they seem."""
    unfinished = figures["share_without_end"] or 0.0
    if unfinished >= MANY:
        log.warning(
            "%s: %.1f %% of the replies have no end; %d new tokens may be too few.",
            job.label,
            100 * unfinished,
            job.provenance.new_tokens,
        )
    if figures["failed"]:
        log.warning(
            "%s: %d of %d questions got no reply and count nowhere; the same command asks them again.",
            job.label,
            figures["failed"],
            figures["questions"],
        )
