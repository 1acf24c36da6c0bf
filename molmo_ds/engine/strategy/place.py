"""Finds the strategy file of a path: the path itself, or one of the files that are installed with molmo_ds."""

from pathlib import Path

PACKAGE = Path(__file__).parents[2]  # holds ds_configs/


def find(path: str) -> Path:
    """The file of a path, absolute or from the working folder; else that of the package.

    Raises ValueError, with the files that are there, if neither has it.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    if not file.is_absolute() and (PACKAGE / file).is_file():
        return PACKAGE / file
    there = sorted(str(f) for f in file.parent.glob("*.json"))
    installed = sorted(
        str(f.relative_to(PACKAGE)) for f in (PACKAGE / "ds_configs").rglob("*.json")
    )
    raise ValueError(
        f"There is no strategy file {path}; files next to it: {', '.join(there or installed)}."
    )


def told(path: str) -> list[str]:
    """A sentence where the file of a path is the package's, since the working folder has none."""
    if path == "accelerate" or Path(path).expanduser().is_file():
        return []
    return [f"strategy={path}: the working folder has no such file; {find(path)} is taken."]
