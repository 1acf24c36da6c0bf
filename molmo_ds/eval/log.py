"""The log of finished questions: JSON lines that only grow, one file a rank, valid for one provenance."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from molmo_ds.eval.saved import read_object, whole_row
from molmo_ds.files import write_atomic

log = logging.getLogger(__name__)
Row = dict[str, Any]
Provenance = dict[str, Any]
FOLDER = "log"  # below the results of a task
# of a row: what it holds besides its id
REPLY: dict[str, type] = {"reply": str, "tokens": int, "end": str, "prompt": str}
SAID_BY = "provenance.json"  # written before the first row
REMEDY = "give --eval-name or --save-dir to keep both, or --overwrite to replace them."


def claim(results: Path, provenance: Provenance, overwrite: bool = False) -> None:
    """Make the log of a results folder ours; one rank does it before any appends.

    `provenance` is what decides the answers, and holds JSON values only. With `overwrite` what is there is deleted.
    Raises ValueError with the names that differ where the log's rows were made otherwise.
    """
    folder = results / FOLDER
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    known = read_provenance(results)
    if known is None and any(folder.glob("*.jsonl")):
        raise ValueError(
            f"{folder} holds rows but no {SAID_BY}, so it is not known whose they are; give --overwrite."
        )
    if known is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / SAID_BY, (json.dumps(provenance, indent=1) + "\n").encode())
    elif known != provenance:
        raise ValueError(
            f"{results} holds answers made otherwise ({differences(known, provenance)}); {REMEDY}"
        )


def differences(known: Provenance, now: Provenance) -> str:
    """`crops 12, now 36; limit 100, now None`: the names under which two provenances differ."""
    names = [name for name in {**known, **now} if known.get(name) != now.get(name)]
    return "; ".join(f"{name} {known.get(name)}, now {now.get(name)}" for name in names)


def read_provenance(results: Path) -> Provenance | None:
    """The provenance of a folder's log, or None where it has none; ValueError where it is damaged."""
    file = results / FOLDER / SAID_BY
    return read_object(file, "give --overwrite to ask again.") if file.is_file() else None


def read(results: Path, fields: Mapping[str, type] = REPLY) -> dict[str, Row]:
    """id -> row over the files of all ranks, however many there were; the first of equal ids counts.

    A line that is not whole, as a kill leaves it, or lacks one of the fields is dropped, and how many is said.
    """
    found: dict[str, Row] = {}
    torn = 0
    for file in sorted((results / FOLDER).glob("*.jsonl")):
        for row in _lines(file, {"id": str, **fields}):
            if row is None:
                torn += 1
            else:
                found.setdefault(row["id"], row)
    if torn:
        log.warning("%d lines of %s are not whole and are asked again.", torn, results / FOLDER)
    return found


def _lines(file: Path, fields: Mapping[str, type]) -> Iterator[Row | None]:
    """Every row of a file, None for a line that is none."""
    with open(file, "rb") as lines:
        for line in lines:
            yield whole_row(line, fields) if line.endswith(b"\n") else None


class Log:
    """The file that one rank appends to; `append` returns when the row survives a kill."""

    def __init__(self, results: Path, rank: int):
        folder = results / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{rank}.jsonl"
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self._file.truncate(_whole_bytes(path))  # or the next row would become part of a torn one

    def append(self, row: Row) -> None:
        """Add a row, which holds `id` and its fields, in one write."""
        self._file.write(
            (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
        )

    def close(self) -> None:
        """Bring everything to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()


def _whole_bytes(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with open(path, "rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))
