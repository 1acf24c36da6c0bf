"""Evaluates a checkpoint, or a server, on benchmarks whose shards `download` wrote.

    runs/mine chart_qa doc_qa:test --limit 500
    weights/molmo-7b-d paper
    --server http://localhost:8000 pointing_eval --save-dir results
    runs/captioner pixmo_cap --loss
    --list

deepspeed, torchrun and accelerate launch start it on any number of ranks, each with the whole model and a share of the
questions, or with a part of a replica as --strategy says. Kill it at any point and give the same command again: only
what has no reply yet is asked.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from molmo_ds.cli import evaluate_options
from molmo_ds.eval.listing import listing, shards_of
from molmo_ds.eval.sets import resolve
from molmo_ds.eval.task import Task

WAIT_SECONDS = 7 * 86_400  # of a rank that has no more questions for one that has
HIGH_RES = 36  # crops
BATCH = 64  # questions at once


def main(arguments: list[str] | None = None) -> int:
    """Ask, score, write, print; 1 where a question got no reply."""
    given = evaluate_options.read(__doc__, arguments)
    if given.list:
        print(listing(given.data))
        return 0
    tasks = resolve(given.tasks)
    missing = [str(shards_of(*one, given.data)) for one in tasks if not shards_of(*one, given.data).is_dir()]
    if missing:
        raise ValueError(
            f"There are no shards at {', '.join(missing)}; write them with molmo-ds download NAME --split SPLIT --out"
            f" {given.data}, or name their folder with --data."
        )
    return evaluate(given, tasks)


def evaluate(given: argparse.Namespace, tasks: list[tuple[Task, str]]) -> int:
    """Evaluate the tasks one after the other."""
    from molmo_ds.eval import caption_loss, results, run
    from molmo_ds.eval.plan import Wish, plan

    world = join(given)
    subject = subject_of(given, world)
    wish = Wish(
        data=given.data,
        limit=given.limit,
        shuffle_seed=given.shuffle_seed,
        eval_name=given.eval_name,
        rescore=given.rescore,
        loss=given.loss,
    )
    fresh = {}
    found = {}
    for task, split in tasks:
        crops = crops_of(given, task)
        job = plan(subject, task, split, wish, crops)
        known = None if given.overwrite or given.rescore else results.cached(job, world)
        if known is not None:
            found[job.label] = known
            continue
        if given.loss:
            figures = caption_loss.evaluate(job, subject.loaded(crops), world, given.overwrite)
            if figures is not None:
                fresh[job.label] = results.write_metrics(job, figures, {}, options(given), subject.described(crops))
            continue
        if given.rescore:
            outcome = run.rescore(job) if world.rank == 0 else None
        else:
            counter = subject.counter(crops)
            outcome = run.evaluate(job, subject.client(crops), world, given.overwrite, counter, subject.part())
        if outcome is not None:
            fresh[job.label] = results.write(job, outcome, options(given), subject.described(crops))
            write_page(given, job, outcome)
    if world.rank == 0:
        results.record(subject.base, subject.step, fresh)
        print(results.table({**found, **fresh}))
    return int(any(one["failures"] for one in fresh.values()))


def join(given: argparse.Namespace) -> Any:
    """The world of ranks; a silent one is given up after minutes where all of them are one replica."""
    from molmo_ds.engine import launch
    from molmo_ds.engine.strategy import read_strategy

    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return launch.alone()
    if given.strategy and read_strategy(str(given.strategy)).shared == size:
        return launch.start()
    return launch.start(WAIT_SECONDS)


def subject_of(given: argparse.Namespace, world: Any) -> Any:
    """The checkpoint or the server."""
    from molmo_ds.eval.subject import Checkpoint, Server

    if given.server:
        return Server(given.server, given.save_dir, given.parallel, given.model, world)
    return Checkpoint(
        given.checkpoint,
        given.save_dir,
        batch=given.batch or BATCH,
        tokenizer=given.tokenizer,
        device=given.device,
        precision=given.precision,
        strategy=given.strategy and str(given.strategy),
        world=world,
    )


def crops_of(given: argparse.Namespace, task: Task) -> int | None:
    """What the user said, else 36 for --high-res, else those of the published figures for the set `paper`."""
    if given.max_crops is not None:
        return given.max_crops
    if given.high_res:
        return HIGH_RES
    return task.crops if given.tasks == ["paper"] else None


def options(given: argparse.Namespace) -> dict[str, Any]:
    """The command's options, as metrics.json keeps them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}


def write_page(given: argparse.Namespace, job: Any, outcome: Any) -> None:
    """The task's page, with another run's replies where they are given."""
    from molmo_ds.eval import page, results
    from molmo_ds.files import write_atomic

    other = None
    name = "other"
    if given.beside:
        folder = given.beside if (given.beside / results.ROWS).is_file() else given.beside / job.results.name
        other = {row["id"]: row for row in results.read_rows(folder)}
        name = given.beside.name
    text = page.render(job, outcome, given.examples, other, name)
    write_atomic(job.results / f"{job.task.name}-predictions.html", text.encode())
