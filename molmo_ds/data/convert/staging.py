"""The place of shards while they are made: a hidden folder inside the data set's, so that a run can restart."""

import fcntl
import os
import shutil
from pathlib import Path

from molmo_ds import files
from molmo_ds.data.read.writer import refuse_existing, tars_of, write_meta

COMPLETE = "complete"  # all shards are made: what is left is to move them
ENDINGS = (".parquet", ".idx", "")  # the tar last: under its final name it has its index


class Staging:
    """The hidden folder of one conversion; what an earlier one left there is moved, if it was complete, or removed.

    Shards that stand in the data set's folder itself are never touched. Raises ValueError where it holds shards of that
    name, or tars without an index, and where another process is at work.
    """

    def __init__(self, out: Path, name: str):
        self.out = out
        self.name = name
        self.folder = out / f".{name}.unfinished"
        self._made_out = not out.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115 (held as long as the folder is used)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ValueError(
                f"Another process is writing shards named {name} into {out}; wait for it."
            ) from None
        try:
            self._begin()
        except ValueError:
            self.close()
            raise

    def tar(self, number: int) -> Path:
        """The path of shard `number` while it is made; numbers may have gaps."""
        return self.folder / f"{self.name}-{number:06d}.tar"

    def publish(self) -> None:
        """Move all shards to the data set's folder, numbered without gaps, and write its `.nv-meta`."""
        for number, tar in enumerate(tars_of(self.folder)):
            target = self.tar(number)
            if tar != target:
                for ending in ENDINGS:
                    os.replace(f"{tar}{ending}", f"{target}{ending}")
        files.write_atomic(self.folder / COMPLETE, b"")
        self._move()

    def close(self) -> None:
        """Remove the hidden folder, and the data set's where nothing came of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
        if self._made_out and not any(self.out.iterdir()):
            self.out.rmdir()

    def _begin(self) -> None:
        if (self.folder / COMPLETE).exists():
            self._move()
            raise ValueError(
                f"{self.out} is whole: the shards of an earlier run that was stopped in its last moment are moved into"
                " place now; choose another folder to make them again."
            )
        refuse_existing(self.out, self.name)
        bare = [tar for tar in tars_of(self.out) if not Path(f"{tar}.parquet").is_file()]
        if bare:
            raise ValueError(
                f"{bare[0]} has no index, so the folder cannot become one data set; run: python tools/make_shards.py"
                f" index {self.out}, or choose another folder."
            )
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()

    def _move(self) -> None:
        names = {
            path.name.removesuffix(".parquet").removesuffix(".idx")
            for path in self.folder.glob("*.tar*")
        }
        for name in sorted(names):
            for ending in ENDINGS:
                # else moved before the run was stopped
                if (self.folder / f"{name}{ending}").exists():
                    os.replace(self.folder / f"{name}{ending}", self.out / f"{name}{ending}")
        write_meta(self.out)
