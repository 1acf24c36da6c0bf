"""Judges captions, or answers about videos, with a language model: PREDICTIONS --judge-url URL --judge-model NAME

PREDICTIONS is the predictions.json of `molmo-ds evaluate CHECKPOINT dense_caption_eval:test`, or its folder, where the
results are written too; --references FILE holds what people said of the pictures (docs/guides/captions.md). Those of
mlvu_gen and of molmo2_cap_eval bring what they are compared with. Replies are kept, so a run that was stopped continues
where it was; without --judge-url they alone are used.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from molmo_ds.cli import caller
from molmo_ds.cli.judge_options import read_arguments
from molmo_ds.eval.captions import marks_run, results
from molmo_ds.eval.captions.judge import Endpoint
from molmo_ds.eval.captions.run import Run, judge
from molmo_ds.eval.captions.verdict import Verdict

SHOWN = 5  # failures that are printed; the file holds all
NAMES = (
    "cap_f1",
    "arithmetic_mean",
    "recall",
    "recall_at_10",
    "consistency",
    "num_statements",
    "is_repeating",
)


def main(arguments: list[str] | None = None) -> None:
    """Judge, write, print."""
    logging.basicConfig(level=logging.WARNING, format=f"{caller()}: %(message)s")
    given = read_arguments(__doc__, arguments)
    endpoint = Endpoint(
        url=given.judge_url,
        model=given.judge_model,
        key_variable=given.judge_key_env,
        parallel=given.parallel,
        attempts=given.attempts,
        timeout=given.timeout,
    )
    beside = given.predictions if given.predictions.is_dir() else given.predictions.parent
    cache = given.cache or beside / "judge-cache"
    if given.references is None:
        judge_answers(given, endpoint, cache)
        return
    run = Run(
        predictions=given.predictions,
        references=given.references,
        endpoint=endpoint,
        cache=cache,
        sample=given.sample,
        repetition=given.repetition,
        partial=given.partial,
        again=given.again,
        overwrite=given.overwrite,
    )
    file, verdicts = judge(run)
    print("\n".join(table(verdicts)))
    for failure in list(results.failures(verdicts))[:SHOWN]:
        print("failed: {picture}, {call}, {kind}: {reason}".format(**failure), file=sys.stderr)
    print(f"{file} has the rest.")


def judge_answers(given: argparse.Namespace, endpoint: Endpoint, cache: Path) -> None:
    """Judge answers of mlvu_gen or molmo2_cap_eval, which bring what they are compared with."""
    file, found = marks_run.judge(given.predictions, endpoint, cache, given.again, given.overwrite)
    for name, value in found["metrics"].items():
        print(f"{name:<32}{value:>8.3f}" if isinstance(value, float) else f"{name:<32}{value:>4}")
    for failure in found["failures"][:SHOWN]:
        print("failed: {id}: {reason}".format(**failure), file=sys.stderr)
    print(f"{len(found['failures'])} calls gave nothing to score; {file} has the rest.")


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """The figures of both readings in lines, and what they leave out."""
    ours = results.metrics(results.by_number(verdicts))
    theirs = results.metrics(results.by_line(verdicts))
    lines = [
        f"{'':<18}{'by number':>12}{'by line':>12}   (by line: the reading of published figures)"
    ]
    for name in NAMES:
        if name in ours or name in theirs:
            values = "".join(
                f"{found[name]:>12.2f}" if name in found else f"{'-':>12}"
                for found in (ours, theirs)
            )
            error = f"   +- {ours[name + '_error']:.2f}" if f"{name}_error" in ours else ""
            lines.append(f"{name:<18}{values}{error}")
    lines += [
        f"{name:<18}{ours[name]:>12}{theirs[name]:>12}" for name in ("n_recall", "n_consistency")
    ]
    lines += [
        f"{name.replace('_', ' ')}: {count}"
        for name, count in results.counts(verdicts).items()
        if count
    ]
    return lines
