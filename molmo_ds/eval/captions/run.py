"""Judges the captions of one evaluation: many at a time, resumable, failures listed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from molmo_ds.eval.captions import inputs, prompts, results
from molmo_ds.eval.captions.each import each
from molmo_ds.eval.captions.inputs import Task
from molmo_ds.eval.captions.judge import Endpoint
from molmo_ds.eval.captions.verdict import Verdict, judge_caption
from molmo_ds.eval.saved import read_object

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One judging of one file of captions."""

    predictions: Path  # predictions.json or its folder; results are written next to it
    references: Path
    endpoint: Endpoint
    cache: Path
    sample: int | None = None  # pictures; None = all
    repetition: bool = False
    partial: bool = False  # pictures without a caption are left out
    again: bool = False  # calls whose replies cannot be used are asked once more
    overwrite: bool = False  # results that were made otherwise are replaced


def judge(run: Run) -> tuple[Path, list[Verdict]]:
    """(our file of results, what was judged, in order of pictures).

    Raises ValueError for wrong files, a judge that cannot be asked, results that would be lost, and where no caption
    could be judged at all.
    """
    key, references = inputs.read_references(run.references)
    captions = inputs.read_captions(run.predictions, key)
    drawn = inputs.sample(references, run.sample)
    tasks = inputs.pair(drawn, captions, run.partial)
    _say_what_is_left_out(references, captions, len(drawn) - len(tasks))
    folder = run.predictions if run.predictions.is_dir() else run.predictions.parent
    begin = results.prefix(run.sample, run.repetition)
    provenance = _provenance(run, tasks)
    if not run.overwrite:
        _check_nothing_is_lost(folder, begin, provenance)
    ask = partial(judge_caption, repetition=run.repetition, again=run.again)
    verdicts = asyncio.run(each(run.endpoint, run.cache, tasks, ask, "caption"))
    missing = [row for row in results.failures(verdicts) if row["kind"] == "not cached"]
    if missing:
        raise ValueError(
            f"No --judge-url is given, and {len(missing)} replies are not in {run.cache}, the first is "
            f"{missing[0]['call']} of {missing[0]['picture']}; give --judge-url to ask for them."
        )
    if not any(one.stated or one.consistent for one in verdicts):
        first = next(results.failures(verdicts))
        raise ValueError(
            f"None of {len(verdicts)} captions could be judged; the first: {first['reason']}"
        )
    return results.write(folder, begin, verdicts, provenance), verdicts


def _say_what_is_left_out(
    references: Sequence[inputs.Reference], captions: dict[str, str], missing: int
) -> None:
    others = len(captions.keys() - {one.picture for one in references})
    if others:
        log.warning("%d captions have no reference and are not judged.", others)
    if missing:
        log.warning("%d references have no caption and are left out.", missing)


def _provenance(run: Run, tasks: Sequence[Task]) -> dict[str, Any]:
    """What decides the figures; two runs that agree in it may replace each other."""
    judged = [[*vars(task.reference).values(), task.caption] for task in tasks]
    return {
        "judge_model": run.endpoint.model,
        "judge_url": run.endpoint.url,
        "prompt_version": prompts.VERSION,
        "sample": run.sample,
        "repetition": run.repetition,
        "inputs_sha256": hashlib.sha256(json.dumps(judged).encode()).hexdigest(),
    }


def _check_nothing_is_lost(folder: Path, begin: str, provenance: dict[str, Any]) -> None:
    file = folder / f"{begin}judge.json"
    foreign = folder / f"{begin}results_v3.json"
    if not file.is_file():
        if foreign.is_file():
            raise ValueError(
                f"{foreign} was written by another program; give --overwrite to replace it, or move it."
            )
        return
    known, names = differing(file, provenance)
    if names:
        was = "; ".join(f"{name} was {known.get(name)}, is {provenance[name]}" for name in names)
        raise ValueError(
            f"{file} holds other figures ({was}); give --overwrite to replace them, or move it."
        )


def differing(file: Path, provenance: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The provenance of results, and the names in which it is another; where the judge stands decides nothing."""
    other = "give --overwrite to replace it, or move it."
    known = read_object(file, other).get("provenance")
    if not isinstance(known, dict):
        raise ValueError(f"{file} does not say how its figures were made; {other}")
    return known, [
        name for name in provenance if known.get(name) != provenance[name] and name != "judge_url"
    ]
