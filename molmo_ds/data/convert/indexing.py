"""An index for the tars of a folder that other programs wrote, in worker processes."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from molmo_ds.data.bad_share import too_many
from molmo_ds.data.convert.conversion import Outcome
from molmo_ds.data.convert.foreign import WHAT
from molmo_ds.data.convert.tars import Indexed, examine_tar
from molmo_ds.data.read.writer import tars_of, write_meta


@dataclass
class Folder:
    """The tars of a folder that are being indexed, and what became of them so far."""

    path: Path
    tars: list[Path]
    outcome: Outcome = field(default_factory=Outcome)
    passed: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)  # sentences about tars that cannot be indexed


def open_folder(path: Path) -> Folder:
    """The tars of a folder; ValueError where there are none."""
    if not path.is_dir():
        raise ValueError(f"There is no folder {path}.")
    tars = tars_of(path)
    if not tars:
        raise ValueError(f"There are no tars in {path}.")
    passed = Counter({WHAT: sum(1 for _ in path.glob(".*.tar"))})
    passed["folders named like tars"] = sum(1 for tar in path.glob("*.tar") if tar.is_dir())
    return Folder(path, tars, passed=passed)


def index(folder: Folder, workers: int) -> Iterator[Path]:
    """Write the index and the sidecar of each tar; yields the tars that are done, in their order."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for tar, found in zip(folder.tars, pool.map(examined, folder.tars)):
            if isinstance(found, str):
                folder.damaged.append(found)
            else:
                found.index.save(tar)
                add(folder, found)
            yield tar


def add(folder: Folder, found: Indexed) -> None:
    """Count what became of one tar."""
    outcome = folder.outcome
    outcome.samples += len(found.index.rows) - len(found.faults)
    outcome.faults += found.faults
    outcome.notes.review.merge(found.review)
    folder.passed += found.passed


def finish(folder: Folder, max_bad_share: float) -> None:
    """Write `.nv-meta`; ValueError where a tar is damaged or too many samples cannot be used."""
    damaged = folder.damaged
    if damaged:
        raise ValueError(
            f"{len(damaged)} of {len(folder.tars)} tars cannot be indexed. The first: {damaged[0]}"
        )
    outcome = folder.outcome
    if too_many(len(outcome.faults), outcome.seen, max_bad_share):
        raise ValueError(
            f"{len(outcome.faults)} of {outcome.seen} samples cannot be used, more than --max-bad-share {max_bad_share}"
            f" (of 10,000 samples at least) allows. The first: {outcome.faults[0]}"
        )
    write_meta(folder.path)


def examined(tar: Path) -> Indexed | str:
    """The result for a tar, or why it cannot be indexed."""
    try:
        return examine_tar(tar)
    except ValueError as error:
        return str(error)
