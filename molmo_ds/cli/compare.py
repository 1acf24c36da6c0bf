"""Compare two evaluations question by question: a paired test, and the replies that changed.

    runs/a/predictions-ck100-chart_qa-test runs/b/predictions-ck100-chart_qa-test
    results/a results/b --metric em --changed 20

Each is a results folder of `molmo-ds evaluate`, a folder of such folders, or a file rows.jsonl. The difference has a
standard error clustered by picture, and p is that of a paired t test over pictures.
"""

import argparse
from pathlib import Path

from molmo_ds.cli.checked_options import Parser
from molmo_ds.eval.compare import compare, read, report
from molmo_ds.files import local


def main(arguments: list[str] | None = None) -> None:
    """Print the comparison of every task that both have."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=local, metavar="A", help="results of one run")
    parser.add_argument("second", type=local, metavar="B", help="results of the other")
    parser.add_argument("--metric", default="", help="instead of each task's headline")
    parser.add_argument(
        "--changed", type=int, default=5, help="replies to show that became better, and worse"
    )
    args = parser.parse_args(arguments)
    if args.changed < 0:
        parser.error("--changed must be at least 0")
    names = (_name(args.first, args.second), _name(args.second, args.first))
    for found in compare(read(args.first), read(args.second), args.metric):
        print(report(found, names, args.changed))


def _name(path: Path, other: Path) -> str:
    return path.name if path.name != other.name else str(path)
