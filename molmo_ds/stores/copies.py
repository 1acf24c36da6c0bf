"""Local copies of the few small files of a store that libraries read by their path, such as a tokenizer's."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from molmo_ds import files
from molmo_ds.environment import private_folder
from molmo_ds.files import Remote


def copy_of(folder: Remote, names: Iterable[str]) -> Path | None:
    """A local folder with those of the files that the remote one has; None where it has none.

    The copy is named after its content, so it is never out of date, and processes that make it at once agree.
    """

    def read(name: str) -> bytes | None:
        try:
            return (folder / name).read_bytes()
        except FileNotFoundError as error:
            files.refused(error)
            return None

    names = list(names)
    with ThreadPoolExecutor(len(names)) as pool:
        found = {name: data for name, data in zip(names, pool.map(read, names)) if data is not None}
    if not found:
        return None
    digest = hashlib.sha256()
    for name, data in found.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    made = private_folder() / f"copy-{digest.hexdigest()[:16]}"
    if not made.is_dir():
        growing = made.with_name(f"{made.name}.{os.getpid()}")
        shutil.rmtree(growing, ignore_errors=True)
        growing.mkdir()
        for name, data in found.items():
            (growing / name).write_bytes(data)
        try:
            os.rename(growing, made)
        except OSError:  # another process was first
            shutil.rmtree(growing)
    return made
