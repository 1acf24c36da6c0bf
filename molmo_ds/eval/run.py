"""Evaluates a checkpoint on shards: asks what the tasks ask, generates in batches, scores every answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.random import RandomState
from tqdm import tqdm

from molmo_ds.data.read.shards import ShardSet
from molmo_ds.eval.load import Answerer
from molmo_ds.eval.row import Row
from molmo_ds.eval.score import scored_row
from molmo_ds.eval.task import Task
from molmo_ds.infer.generate import Options, warn_of_cuts


def evaluate(
    answerer: Answerer,
    shards: ShardSet,
    task: Task,
    split: str = "",
    limit: int | None = None,
    batch_size: int = 64,
) -> list[tuple[Row, dict[str, Any]]]:
    """The first `limit` questions of a task, each with its scored row; greedy decoding, one progress bar.

    A question whose annotation holds no answer, as in splits whose answers are not public, is asked and not scored.
    Raises ValueError, with the row's id and before anything is generated, for a truth that cannot be right.
    """
    rows = list(task.rows(shards, split, limit))
    for row in rows:
        scored_row(task, row, "?", "stop")
    out: list[tuple[Row, dict[str, Any]]] = []
    ended: list[bool] = []
    with tqdm(total=len(rows), desc=task.name, unit="question", dynamic_ncols=True) as bar:
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            texts, cuts = _answers(answerer, shards, chunk, task.max_new_tokens)
            ends = ["context" if cut else "stop" for cut in cuts]
            out += [(row, scored_row(task, row, text, end)) for row, text, end in zip(chunk, texts, ends)]
            ended += cuts
            bar.update(len(chunk))
    warn_of_cuts(answerer.model, torch.tensor(ended, dtype=torch.bool))
    return out


def _answers(
    answerer: Answerer, shards: ShardSet, rows: Sequence[Row], max_new_tokens: int
) -> tuple[list[str], list[bool]]:
    prompts = [
        answerer.builder.prompt(shards.read(row.index)["pixels"], row.question(), rng=RandomState(row.index))
        for row in rows
    ]
    texts, cuts = answerer.answer(prompts, Options(max_new_tokens=max_new_tokens))
    return texts, cuts.tolist()
