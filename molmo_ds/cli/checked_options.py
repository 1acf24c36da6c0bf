"""argparse's parser, which says what of a command line does not count: an option that is given once more."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from molmo_ds.files import local


def page_file(text: str) -> Path:
    """An option's HTML file to write, so that a slip does not overwrite data or end a page when it is made."""
    path = local(text)
    if path.suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"{path} does not end as a page does; write it as .html.")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path} lies in no folder that is there.")
    return path


class Parser(argparse.ArgumentParser):
    """A parser of a command's options; of one that is given several times with other values the last counts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.given: dict[str, Any] = {}
        self.register("action", None, Last)
        self.register("action", "store", Last)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's; what was given to an earlier command line does not count as given."""
        self.given = {}
        return super().parse_known_args(args, namespace)


class Last(argparse.Action):
    """Stores a value, and says so where another one is lost."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Called by argparse for each time that the option is given."""
        if option_string is not None and isinstance(parser, Parser):
            before = parser.given.get(self.dest, values)
            parser.given[self.dest] = values
            if before != values:
                said = f"{option_string} is given more than once; the last one counts: {values}."
                print(f"{parser.prog}: {said}", file=sys.stderr)
        setattr(namespace, self.dest, values)
