"""Evaluates a checkpoint on shards: asks what the tasks ask, generates in batches, scores every answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numpy.random import RandomState
from tqdm import tqdm

from molmo_ds.data.read.shards import ShardSet
from molmo_ds.eval.tasks import Annotation, Size, Task, has_truth, mean, true_answer
from molmo_ds.infer.generate import Options, warn_of_cuts
from molmo_ds.infer.load import Answerer


@dataclass(frozen=True)
class Asked:
    """One question and what came of it."""

    task: str
    key: str  # of the sample in its shard
    annotation: Annotation
    size: Size
    prediction: str
    truth: str
    scores: dict[str, float]  # none where the annotation does not say what is right


@dataclass(frozen=True)
class _Question:
    index: int
    key: str
    annotation: Annotation
    size: Size


def questions(shards: ShardSet, task: Task, limit: int | None = None) -> Iterator[_Question]:
    """What a task asks of the first `limit` samples (None = all), sample by sample."""
    for index in range(min(len(shards), limit or len(shards))):
        record = shards.record(index)
        for annotation in record["annotations"]:
            if annotation.get("style") in task.styles:
                yield _Question(index, record["__key__"], annotation, tuple(record["sizes"][0]))


def evaluate(
    answerer: Answerer, shards: ShardSet, tasks: Iterable[Task], limit: int | None = None, batch_size: int = 64
) -> list[Asked]:
    """Every question of the tasks with its answer and scores; greedy decoding, one progress bar.

    A question whose annotation holds no answer, as in splits whose answers are not public, is asked and not scored.
    Raises ValueError, with the sample's key and before anything is generated, for an annotation whose answer cannot be
    right.
    """
    work = [(task, question) for task in tasks for question in questions(shards, task, limit)]
    for task, question in work:
        _scored(task, question, "?")
    out = []
    ended: list[bool] = []
    with tqdm(total=len(work), desc="evaluate", unit="question", dynamic_ncols=True) as bar:
        while len(out) < len(work):
            task = work[len(out)][0]
            chunk = [question for one, question in work[len(out) : len(out) + batch_size] if one is task]
            prompts = [
                answerer.builder.prompt(
                    shards.read(q.index)["pixels"], _unanswered(q.annotation), rng=RandomState(q.index)
                )
                for q in chunk
            ]
            texts, cuts = answerer.answer(prompts, Options(max_new_tokens=task.max_new_tokens))
            ended += cuts.tolist()
            out += [_scored(task, question, text) for question, text in zip(chunk, texts)]
            bar.update(len(chunk))
    warn_of_cuts(answerer.model, torch.tensor(ended, dtype=torch.bool))
    return out


def _scored(task: Task, question: _Question, text: str) -> Asked:
    truth = ""
    found: dict[str, float] = {}
    if has_truth(question.annotation):
        try:
            truth = true_answer(question.annotation, question.size)
            found = task.score(text, question.annotation, question.size)
        except ValueError as error:
            raise ValueError(f"Sample {question.key} cannot be scored as {task.name}: {error}") from None
    return Asked(task.name, question.key, question.annotation, question.size, text, truth, found)


def summarise(asked: list[Asked], tasks: Iterable[Task]) -> dict[str, dict[str, Any]]:
    """Per task the number of questions, the mean scores, and those of the best constant answer.

    `without_answer` counts the questions that could not be scored, where there are any.
    """
    out = {}
    for task in tasks:
        mine = [one for one in asked if one.task == task.name]
        scored = [one for one in mine if one.scores]
        if not mine:
            continue
        chance = task.chance([(one.annotation, one.size) for one in scored]) if scored else {}
        out[task.name] = {"questions": len(mine), "scores": mean([one.scores for one in scored]), "chance": chance}
        if len(scored) < len(mine):
            out[task.name]["without_answer"] = len(mine) - len(scored)
    return out


def _unanswered(annotation: Annotation) -> Annotation:
    # what the prompt is made from must not hold the answer
    hidden = ("answer", "answers", "answer_index", "points", "text", "boxes")
    return {name: value for name, value in annotation.items() if name not in hidden}
