"""The checkpoints of a run: steps, bytes, and whether each is whole."""

import dataclasses

from molmo_ds.files import Place
from molmo_ds.show import folder
from molmo_ds.weights import checkpoint, checksums


@dataclasses.dataclass(frozen=True)
class Saved:
    """One checkpoint's folder."""

    name: str
    bytes: int | None  # None where its manifest cannot say
    ranks: int | None
    time: float | None  # when its manifest was written
    wrong: str | None  # why it is not whole
    latest: bool


def checkpoints(run: Place, verify: bool = False) -> list[Saved]:
    """The newest first.

    Args:
        verify: read every byte and compare the checksums; else the sizes alone are compared.
    """
    place = run / "checkpoints"
    latest = folder.read_text(place / "latest").strip()
    return [_saved(path, path.name == latest, verify) for path in checkpoint.steps(place)]


def _saved(path: Place, latest: bool, verify: bool) -> Saved:
    written = folder.modified(path / "manifest.json")
    try:
        manifest = checkpoint.read_manifest(path)
        if verify:
            wrong = checkpoint.verify(path)
        else:
            wrong = checksums.wrong_file(path, manifest.files, later=manifest.files)
    except ValueError as error:
        return Saved(path.name, None, None, written, str(error), latest)
    size = sum(facts.bytes for facts in manifest.files.values())
    return Saved(path.name, size, manifest.ranks, written, wrong, latest)
