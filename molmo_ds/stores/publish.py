"""A local folder becomes one in a store, whole or not at all: the file without which nobody reads it comes last."""

from pathlib import Path

from tqdm import tqdm

from molmo_ds.files import Remote
from molmo_ds.stores.upload import upload

# in this order, after all others
LAST = ("checksums.json", "config.yaml", "adapter_config.json", "config.json", "manifest.json")


def publish(folder: Path, target: Remote) -> None:
    """Copy every file of a folder to a store.

    Raises OSError where the store does not take one; what lies at `target` then is not readable as a folder.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    paths = sorted(files, key=_order)
    total = sum(path.stat().st_size for path in paths)
    with tqdm(
        desc="upload",
        total=total,
        unit="B",
        unit_scale=True,
        leave=False,
    ) as bar:
        for path in paths:
            if not path.name.endswith(".upload"):
                name = path.relative_to(folder).as_posix()
                upload(path, target / name)
                bar.update(path.stat().st_size)


def _order(path: Path) -> tuple[int, str]:
    place = LAST.index(path.name) if path.name in LAST else -1
    return place, str(path)
