"""The options of `molmo-ds judge`."""

import argparse
from pathlib import Path

from molmo_ds.cli.checked_options import Parser
from molmo_ds.files import local


def read_arguments(text: str, arguments: list[str] | None) -> argparse.Namespace:
    """The command line; `text` describes the command."""
    parser = Parser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "predictions", type=local, help="predictions.json, or the folder that holds it"
    )
    parser.add_argument(
        "--references",
        type=local,
        help="of captions, JSON lines: picture, transcripts, statements; answers about videos need none",
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
    for name in ("sample", "repetition", "partial"):
        if given.references is None and getattr(given, name):
            parser.error(f"--{name} is for captions, which need --references.")
    return given
