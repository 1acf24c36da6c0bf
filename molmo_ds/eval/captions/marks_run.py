"""Marks for the free answers of one evaluation: read, asked for, written, resumable by the cache of replies."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from molmo_ds.eval.captions import marks
from molmo_ds.eval.captions.each import each
from molmo_ds.eval.captions.judge import Endpoint
from molmo_ds.eval.captions.marks import Answer, Marked
from molmo_ds.eval.captions.run import differing
from molmo_ds.files import write_atomic

RESULTS = "judge.json"  # next to the predictions


def judge(
    predictions: Path, endpoint: Endpoint, cache: Path, again: bool = False, overwrite: bool = False
) -> tuple[Path, dict[str, Any]]:
    """(the file of results, what it holds) for the predictions of mlvu_gen, a file or its folder.

    Raises ValueError for files that are no such predictions, a judge that cannot be asked, results that would be lost,
    and where no answer got a mark.
    """
    source = predictions / "predictions.json" if predictions.is_dir() else predictions
    try:
        rows = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} cannot be read ({error}); evaluate mlvu_gen first.") from None
    if not marks.is_free(rows):
        raise ValueError(
            f"{source} holds no answers of mlvu_gen; captions need --references, a file of what people said."
        )
    answers = marks.read_answers(rows)
    file = source.parent / RESULTS
    provenance = _provenance(answers, endpoint)
    if not overwrite:
        _refuse_others(file, provenance)
    ask = partial(marks.mark, again=again)
    marked = asyncio.run(each(endpoint, cache, answers, ask, "answer"))
    if all(one.marks is None for one in marked):
        raise ValueError(
            f"None of {len(marked)} answers got a mark; the first: {marked[0].failure}"
        )
    found = _content(marked, provenance)
    write_atomic(file, (json.dumps(found, indent=1) + "\n").encode())
    return file, found


def _provenance(answers: Sequence[Answer], endpoint: Endpoint) -> dict[str, Any]:
    inputs = json.dumps([list(vars(answer).values()) for answer in answers])
    return {
        "judge_model": endpoint.model,
        "judge_url": endpoint.url,
        "prompt_version": marks.VERSION,
        "inputs_sha256": hashlib.sha256(inputs.encode()).hexdigest(),
    }


def _refuse_others(file: Path, provenance: dict[str, Any]) -> None:
    if not file.is_file():
        return
    _, other = differing(file, provenance)
    if other:
        raise ValueError(
            f"{file} holds other figures ({', '.join(other)} differ); give --overwrite, or move it."
        )


def _content(marked: Sequence[Marked], provenance: dict[str, Any]) -> dict[str, Any]:
    return {
        "metrics": marks.figures(marked),
        "provenance": provenance,
        "failures": [
            {"id": one.answer.id, "reason": one.failure} for one in marked if one.marks is None
        ],
        "answers": [
            {"id": one.answer.id, "kind": one.answer.kind, "marks": dict(one.marks)}
            for one in marked
            if one.marks is not None
        ],
    }
