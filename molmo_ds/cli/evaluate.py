"""Evaluates a checkpoint, or a server, on benchmarks whose shards `download` wrote.

    runs/mine chart_qa doc_qa:test --limit 500
    weights/molmo-7b-d paper
    --server http://localhost:8000 pointing_eval --save-dir results
    --list

deepspeed, torchrun and accelerate launch start it on any number of ranks, each with the whole model and a share of the
questions. Kill it at any point and give the same command again: only what has no reply yet is asked.
"""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from molmo_ds.cli import evaluate_options
from molmo_ds.eval.listing import listing, shards_of
from molmo_ds.eval.sets import resolve
from molmo_ds.eval.task import Task

WAIT_SECONDS = 7 * 86_400  # of a rank that has no more questions for one that has
HIGH_RES = 36  # crops


def main(arguments: list[str] | None = None) -> None:
    """Ask, score, write, print."""
    given = evaluate_options.read(__doc__, arguments)
    if given.list:
        print(listing(given.data))
        return
    tasks = resolve(given.tasks)
    missing = [str(shards_of(*one, given.data)) for one in tasks if not shards_of(*one, given.data).is_dir()]
    if missing:
        raise ValueError(
            f"There are no shards at {', '.join(missing)}; write them with molmo-ds download NAME --split SPLIT --out"
            f" {given.data}, or name their folder with --data."
        )
    evaluate(given, tasks)


def evaluate(given: argparse.Namespace, tasks: list[tuple[Task, str]]) -> None:
    """Evaluate the tasks one after the other."""
    from molmo_ds.engine import launch
    from molmo_ds.eval import results, run

    world = launch.start(WAIT_SECONDS) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else launch.alone()
    subject = subject_of(given)
    found = {}
    for task, split in tasks:
        crops = crops_of(given, task)
        job = job_of(given, subject, task, split, crops)
        if given.rescore:
            outcome = run.rescore(job) if world.rank == 0 else None
        elif not given.overwrite and world.broadcast(results.cached(job) is not None):
            found[job.label] = results.read_metrics(job.results)
            continue
        else:
            outcome = run.evaluate(job, subject.client(crops), world, given.overwrite, subject.counter(crops))
        if outcome is not None:
            found[job.label] = results.write(job, outcome, options(given), subject.described(crops))
            write_page(given, job, outcome)
    if world.rank == 0:
        results.record(subject.base, subject.step, {label: one["metrics"] for label, one in found.items()})
        print(results.table({label: one["figures"] for label, one in found.items()}))


def subject_of(given: argparse.Namespace) -> Any:
    """The checkpoint or the server."""
    from molmo_ds.eval.subject import Checkpoint, Server

    if given.server:
        return Server(given.server, given.save_dir, given.parallel, given.model)
    return Checkpoint(given.checkpoint, given.save_dir, given.batch, given.tokenizer, given.device, given.precision)


def crops_of(given: argparse.Namespace, task: Task) -> int | None:
    """What the user said, else 36 for --high-res, else those of the published figures for the set `paper`."""
    if given.max_crops is not None:
        return given.max_crops
    if given.high_res:
        return HIGH_RES
    return task.crops if given.tasks == ["paper"] else None


def job_of(given: argparse.Namespace, subject: Any, task: Task, split: str, crops: int | None) -> Any:
    """The task with its shards, its folder and its provenance; of --rescore those of the saved replies."""
    from molmo_ds.data.read.shards import ShardSet
    from molmo_ds.eval import log, provenance
    from molmo_ds.eval.run import Job

    eval_name = given.eval_name or (f"{crops}crop" if crops is not None else "")
    folder = subject.base / provenance.results_name(task, split, subject.step, eval_name)
    shards = ShardSet(str(shards_of(task, split, given.data)))
    now = provenance.Provenance(
        task=task.name,
        split=split,
        limit=given.limit,
        shuffle_seed=given.shuffle_seed,
        data=shards.fingerprint,
        new_tokens=task.max_new_tokens,
        code=provenance.code_version(),
        **subject.known(crops),
    )
    if given.rescore:
        saved = log.read_provenance(folder)
        if saved is None:
            raise ValueError(f"{folder} holds no replies to score; leave --rescore out.")
        now = dataclasses.replace(now, **saved)
    return Job(task=task, split=split, shards=shards, results=folder, provenance=now)


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
