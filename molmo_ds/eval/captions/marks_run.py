"""Judges replies whose truth stands in the predictions: read, asked for, written, resumable by the cache of replies."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from molmo_ds.eval.captions import films, marks
from molmo_ds.eval.captions.each import each
from molmo_ds.eval.captions.judge import Endpoint
from molmo_ds.eval.captions.run import differing
from molmo_ds.files import write_atomic

RESULTS = "judge.json"  # next to the predictions
KINDS = {"mlvu_gen": marks, "molmo2_cap_eval": films}


def judge(
    predictions: Path, endpoint: Endpoint, cache: Path, again: bool = False, overwrite: bool = False
) -> tuple[Path, dict[str, Any]]:
    """(the file of results, what it holds) for the predictions of a task of KINDS, a file or its folder.

    Raises ValueError for files that are no such predictions, a judge that cannot be asked, results that would be lost,
    and where nothing could be judged.
    """
    source = predictions / "predictions.json" if predictions.is_dir() else predictions
    try:
        rows = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source} cannot be read ({error}); evaluate {' or '.join(KINDS)} first."
        ) from None
    kind = next((kind for kind in KINDS.values() if kind.is_mine(rows)), None)
    if kind is None:
        raise ValueError(
            f"{source} holds no answers of {' or '.join(KINDS)}; captions of pictures need --references, a file of what"
            " people said."
        )
    items = kind.read(rows)
    file = source.parent / RESULTS
    provenance = _provenance(items, kind.VERSION, endpoint)
    if not overwrite:
        _refuse_others(file, provenance)
    judged = asyncio.run(each(endpoint, cache, items, partial(kind.ask, again=again), kind.UNIT))
    found = kind.content(judged)
    failures = found["failures"]
    if len({one["id"] for one in failures}) == len(items):
        raise ValueError(
            f"None of {len(items)} {kind.UNIT}s could be judged; the first: {failures[0]['reason']}"
        )
    found = {**found, "provenance": provenance}
    write_atomic(file, (json.dumps(found, indent=1) + "\n").encode())
    return file, found


def _provenance(items: Sequence[Any], version: str, endpoint: Endpoint) -> dict[str, Any]:
    inputs = json.dumps([list(vars(item).values()) for item in items])
    return {
        "judge_model": endpoint.model,
        "judge_url": endpoint.url,
        "prompt_version": version,
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
