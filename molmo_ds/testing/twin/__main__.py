"""Runs a script or a module on the twin: `python -m molmo_ds.testing.twin [-m] WHAT ...`."""

import runpy
import sys
from pathlib import Path

from molmo_ds.testing import twin


def main() -> None:
    """Install the twin, then run what the command line names as python itself would."""
    words = sys.argv[1:]
    if not words or words == ["-m"]:
        sys.exit("molmo_ds: name a script, or -m and a module, to run on the twin of a GPU.")
    try:
        twin.install()
    except ValueError as error:
        sys.exit(f"molmo_ds: {error}")
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
