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
import dataclasses
from pathlib import Path
from typing import Any

from molmo_ds.cli import evaluate_options
from molmo_ds.eval.listing import listing, shards_of
from molmo_ds.eval.set_table import PAPER
from molmo_ds.eval.sets import published_crops, resolve, words
from molmo_ds.eval.task import Task
from molmo_ds.files import Remote
from molmo_ds.stores.mirror import Mirror, scratch_of

AGAIN = "the same command asks what has no reply yet."


def main(arguments: list[str] | None = None) -> int:
    """Ask, score, write, print; 1 where a question got no reply."""
    given = evaluate_options.read(__doc__, arguments)
    if given.list:
        print(listing(given.data))
        return 0
    tasks = resolve(given.tasks)
    folders = [shards_of(*one, given.data) for one in tasks]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise ValueError(
            f"There are no shards at {', '.join(missing)}; write them with molmo-ds download NAME --split SPLIT --out"
            f" {given.data}, or name their folder with --data."
        )
    try:
        return evaluate(given, tasks)
    except RuntimeError as error:
        from molmo_ds.engine.checks import lost

        lost.leave(error, AGAIN)
        raise


def evaluate(given: argparse.Namespace, tasks: list[tuple[Task, str]]) -> int:
    """Evaluate the tasks one after the other."""
    from molmo_ds.eval import results
    from molmo_ds.eval.plan import Wish, plan
    from molmo_ds.eval.subject import join

    world = join(given.strategy and str(given.strategy))
    copies = None
    if isinstance(given.save_dir, Remote):
        copies = Mirror(scratch_of(given.save_dir.url, None), given.save_dir)
        given.save_dir = copies.local
        world.agree(copies.pull)
        world.agree(copies.start)
    subject = subject_of(given, world)
    names = {field.name for field in dataclasses.fields(Wish)}
    wish = Wish(**{name: value for name, value in vars(given).items() if name in names})
    fresh = []
    recorded = {}
    found = {}
    for task, split in tasks:
        crops = given.max_crops or published_crops(given.tasks, task, split)
        job = plan(subject, task, split, wish, crops)
        # with --beside the page is made again, from the log
        again = given.overwrite or given.rescore or given.beside
        known = None if again else results.cached(job, world)
        if known is not None:
            found[job.label] = known
        elif (made := evaluated(given, job, subject, crops, world)) is not None:
            found[job.label] = made
            fresh.append(made)
            recorded |= {job.recorded: made} if job.recorded else {}
        if copies is not None:
            world.agree(copies.push)
    if world.rank == 0:
        results.record(subject.base, subject.step, recorded)
        print(results.table(found))
        if PAPER in words(given.tasks) and not given.loss:
            print(results.paper_line(found))
    if copies is not None:
        world.agree(copies.close)  # with what was recorded last
    return int(any(one["failures"] for one in fresh))


def evaluated(
    given: argparse.Namespace, job: Any, subject: Any, crops: int | None, world: Any
) -> dict | None:
    """What metrics.json of a job holds once it is done; None on other ranks than 0."""
    from molmo_ds.eval import page, results, run
    from molmo_ds.eval.captions import loss

    options = {
        name: str(value) if isinstance(value, Path | Remote) else value
        for name, value in vars(given).items()
    }
    if given.loss:
        figures = loss.evaluate(job, subject.loaded(crops), world, given.overwrite)
        if figures is None:
            return None
        return results.write_metrics(job, figures, {}, options, subject.described(crops))
    if given.beside:
        page.results_beside(job, given.beside)  # before anything is asked
    if given.rescore:
        outcome = run.rescore(job) if world.rank == 0 else None
    else:
        counter = subject.counter(crops)
        outcome = run.evaluate(
            job, subject.client(crops), world, given.overwrite, counter, subject.part()
        )
    if outcome is None:
        return None
    page.write(job, outcome, given.examples, given.beside)
    return results.write(job, outcome, options, subject.described(crops))


def subject_of(given: argparse.Namespace, world: Any) -> Any:
    """The checkpoint or the server."""
    from molmo_ds.eval.subject import Checkpoint, Server

    if given.server:
        return Server(
            given.server, given.save_dir, given.parallel, given.model, world, given.family
        )
    checkpoint = Checkpoint(
        given.checkpoint,
        given.save_dir,
        batch=given.batch,
        tokenizer=given.tokenizer,
        device=given.device,
        precision=given.precision,
        strategy=given.strategy and str(given.strategy),
        world=world,
    )
    if given.max_crops and checkpoint.config.model.images.crop_mode == "resize":
        raise ValueError(
            f"{given.checkpoint} sees each picture as one crop; leave --high-res and --max-crops out."
        )
    return checkpoint
