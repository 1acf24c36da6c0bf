"""Judges dense captions with a language model: PREDICTIONS --references FILE --judge-url URL --judge-model NAME

PREDICTIONS is the predictions.json of `molmo-ds evaluate CHECKPOINT dense_caption_eval:test`, or its folder, where the
results are written too. FILE holds what people said of the pictures (docs/guides/captions.md). Replies are kept, so a
run that was stopped continues where it was; without --judge-url they alone are used.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from molmo_ds.cli import caller
from molmo_ds.eval.captions import results
from molmo_ds.eval.captions.judge import Endpoint
from molmo_ds.eval.captions.run import Run, judge
from molmo_ds.eval.captions.verdict import Verdict
from molmo_ds.files import local

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
    given = read_arguments(arguments)
    endpoint = Endpoint(
        url=given.judge_url,
        model=given.judge_model,
        key_variable=given.judge_key_env,
        parallel=given.parallel,
        attempts=given.attempts,
        timeout=given.timeout,
    )
    beside = given.predictions if given.predictions.is_dir() else given.predictions.parent
    run = Run(
        predictions=given.predictions,
        references=given.references,
        endpoint=endpoint,
        cache=given.cache or beside / "judge-cache",
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


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "predictions", type=local, help="predictions.json, or the folder that holds it"
    )
    parser.add_argument(
        "--references",
        type=local,
        required=True,
        help="JSON lines: picture, transcripts, statements",
    )
    parser.add_argument("--judge-url", default="", help="of an OpenAI-compatible server, up to /v1")
    parser.add_argument("--judge-model", required=True, help="its name on that server")
    parser.add_argument(
        "--judge-key-env",
        default="",
        metavar="NAME",
        help="environment variable that holds the key",
    )
    parser.add_argument(
        "--cache", type=Path, help="folder of replies; default: judge-cache next to the predictions"
    )
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="judge N pictures, drawn as the reference draws them",
    )
    parser.add_argument(
        "--repetition", action="store_true", help="also ask whether a caption repeats itself"
    )
    parser.add_argument(
        "--partial", action="store_true", help="leave out pictures that have no caption"
    )
    parser.add_argument(
        "--again", action="store_true", help="ask once more where a kept reply cannot be used"
    )
    parser.add_argument("--parallel", type=int, default=16, help="captions judged at a time")
    parser.add_argument(
        "--attempts", type=int, default=6, help="tries of a call that fails for the time being"
    )
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds of one try")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results that were made otherwise"
    )
    given = parser.parse_args(arguments)
    if min(given.parallel, given.attempts, given.timeout) <= 0:
        parser.error("--parallel, --attempts and --timeout must be above 0.")
    return given
