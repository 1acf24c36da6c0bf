"""The folder of an evaluation's results: allenai/molmo's files and keys (olmo/eval), and more of ours."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from molmo_ds.engine.launch import World
from molmo_ds.eval import submit
from molmo_ds.eval.log import differences
from molmo_ds.eval.provenance import code_version
from molmo_ds.eval.row import Row
from molmo_ds.eval.run import DONE, Job, Outcome
from molmo_ds.eval.saved import read_object, scored_rows
from molmo_ds.eval.score import average, reference_metrics
from molmo_ds.eval.set_table import PAPER
from molmo_ds.eval.sets import labels
from molmo_ds.eval.task import MODELS
from molmo_ds.files import write_atomic

log = logging.getLogger(__name__)
PREDICTIONS = "predictions.json"  # the reference's
SUBMISSION = "submission.json"  # for the test server of a split whose answers are not public
ROWS = "rows.jsonl"  # ours: every scored row


def cached(job: Job, world: World) -> dict[str, Any] | None:
    """The finished metrics of a job, whole and of equal provenance, on all ranks; None where it has to be run.

    Raises ValueError, on all ranks, where they are finished and of another provenance.
    """
    known = world.agree(lambda: _finished(job))
    return None if known is None or known["failures"] else known


def _finished(job: Job) -> dict[str, Any] | None:
    if not (job.results / DONE).is_file():
        return None
    known = read_metrics(job.results)
    refuse_others(job, known)
    return known


def refuse_others(job: Job, known: Mapping[str, Any]) -> None:
    """ValueError where finished metrics are of another provenance."""
    before = known["provenance"]
    if before != job.provenance.values():
        raise ValueError(
            f"{job.results / DONE} holds figures made otherwise ({differences(before, job.provenance.values())}); give"
            " --eval-name or --save-dir to keep both, --rescore to score the saved replies, or --overwrite to replace"
            " them."
        )
    scored_by = known.get("scored_by", before.get("code"))
    if scored_by != code_version():
        raise ValueError(
            f"{job.results / DONE} was scored by another version ({scored_by}, now {code_version()}); give --rescore."
        )


def read_metrics(results: Path) -> dict[str, Any]:
    """metrics.json; ValueError where there is none or it is damaged."""
    file = results / DONE
    again = "give --rescore to write it again from the saved replies."
    known = read_object(file, again)
    try:
        table({"": known})
        whole = all(isinstance(known[name], dict) for name in ("metrics", "failures", "provenance"))
    except (LookupError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{file} is damaged; {again}")
    return known


def read_rows(results: Path) -> list[dict[str, Any]]:
    """The scored rows of a finished evaluation; ValueError where there are none."""
    file = results / ROWS
    if not file.is_file():
        raise ValueError(
            f"{results} holds no {ROWS}; give the results folder of a finished evaluation."
        )
    return list(scored_rows(file))


def write(
    job: Job, outcome: Outcome, config: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
    """Write predictions.json, rows.jsonl and, last, metrics.json; returns what metrics.json holds."""
    job.results.mkdir(parents=True, exist_ok=True)
    predictions = [prediction(row, scored) for row, scored in outcome.pairs()]
    write_atomic(
        job.results / PREDICTIONS,
        json.dumps(predictions, ensure_ascii=False).encode(errors="replace"),
    )
    write_atomic(job.results / ROWS, _lines(outcome.rows))
    write_submission(job, outcome)
    return write_metrics(job, outcome.figures, outcome.failures, config, model)


def write_metrics(
    job: Job,
    figures: Mapping[str, Any],
    failures: Mapping[str, str],
    config: Mapping[str, Any],
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """Write metrics.json, which marks the job as done; returns what it holds."""
    metrics = {
        "metrics": reference_metrics(figures),
        "date": time.strftime("%m/%d/%Y, %H:%M:%S"),
        "eval_config": dict(config),
        "model_config": dict(model),
        "provenance": job.provenance.values(),
        "scored_by": code_version(),  # of the code; after --rescore another than the one that asked
        "figures": dict(figures),
        "failures": dict(failures),
    }
    write_atomic(job.results / DONE, (json.dumps(metrics, indent=1) + "\n").encode())
    return metrics


def write_submission(job: Job, outcome: Outcome) -> None:
    """Write the test server's file of a split without public answers, or log why there is none."""
    known = job.task.splits.get(job.split)
    if known is None or known.public or not job.task.submission:
        return
    number = submit.expected_number(job.task, job.split, outcome.questions)
    if number:
        log.warning(number)
    try:
        replies = {
            row["id"]: row["reply"] for row in outcome.rows if row["id"] not in outcome.failures
        }
        content = submit.submission(job.task, outcome.questions, replies)
    except ValueError as error:
        log.warning("%s: no file for the test server: %s", job.label, error)
        return
    submit.write(job.results / SUBMISSION, content)


def prediction(row: Row, scored: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the reference writes it: prediction, prompt, then every text and number of the metadata.

    Metadata of a name that is taken gets `metadata_` before it; in the reference it overwrote the prompt. Every row has
    an `example_id`, the data set's own or else ours.
    """
    out = {
        "id": row.id,
        "prediction": scored["reply"],
        "prompt": scored["prompt"],
        "token_count": scored["tokens"],  # ours; the reference's n_tokens are the ids
    }
    for name, value in row.metadata.items():
        if isinstance(value, str | int | float):
            out[f"metadata_{name}" if name in out else name] = value
    out.setdefault("example_id", row.id)
    return out


def record(run: Path, step: int | None, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Add `eval/NAME/METRIC` to the log.jsonl and the TensorBoard of a training run's folder, if it is one.

    `found` holds what metrics.json of a job holds by the job's `recorded` name.
    """
    if not found or step is None or not (run / "log.jsonl").is_file():
        return
    from torch.utils.tensorboard import SummaryWriter

    values = {
        f"eval/{label}/{name}": one
        for label, its in found.items()
        for name, one in its["metrics"].items()
    }
    with open(run / "log.jsonl", "a") as lines:
        lines.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for name, value in values.items():
            writer.add_scalar(name, value, step)


def table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """`TASK:SPLIT/METRIC` lines with value, standard error, n, chance level and published figures."""
    lines = []
    for label, found in ((label, one["figures"]) for label, one in metrics.items()):
        names = sorted(found["metrics"], key=lambda name: (name != found["headline"], name))
        lines += [_line(label, name, found) for name in names]
        if not names:
            lines.append(
                f"{label}: {found['questions']} questions asked; their answers are not public"
            )
    return "\n".join(lines)


def paper_line(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The mean of the eleven headlines of the set `paper`, for the paper's own figures; or whose figure is missing."""
    eleven = {label: metrics[label]["figures"] for label in labels(PAPER)}
    value = average(eleven.values())
    if value is None:
        missing = [
            label for label, found in eleven.items() if found["headline"] not in found["metrics"]
        ]
        return f"{PAPER}: no mean of the {len(eleven)}, since there is no figure of {', '.join(missing)}"
    line = f"{PAPER}: mean of the {len(eleven)} headlines {value:.4f}"
    published = [found["published"] for found in eleven.values()]
    means = [
        f"{model} {math.fsum(one[model] for one in published) / len(published):.1f}"
        for model in MODELS
    ]
    return f"{line}; mean of the published (%): {', '.join(means)}"


def _line(label: str, name: str, found: Mapping[str, Any]) -> str:
    one = found["metrics"][name]
    error = f" ± {one['standard_error']:.4f}" if one["standard_error"] is not None else ""
    line = f"{label}/{name}: {one['value']:.4f}{error}, n {one['n']}"
    if name in found["chance"]:
        line += f", best constant answer {found['chance'][name]:.4f}"
    if name == found["headline"] and found["published"]:
        split = found["published"]["split"]
        models = {
            model: value
            for model, value in found["published"].items()
            if model != "split" and value is not None
        }
        line += f"; published ({split}, %): " + ", ".join(
            f"{model} {value}" for model, value in models.items()
        )
    return line


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(
        (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
        for row in rows
    )
