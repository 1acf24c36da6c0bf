"""Locks of DeepSpeed's ops whose compilation was killed: torch would wait for them without an end."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def drop_stale_locks() -> list[Path]:
    """Delete the locks below torch's extension folder that no process of this machine holds open.

    torch.utils.file_baton creates the file `lock`, keeps it open while it compiles and then deletes it. A killed
    process leaves it, and every later one that needs the op waits for it.

    Returns:
        The deleted files. Without /proc, which tells who holds a file, there are none.
    """
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    locks = [*root.glob("*/lock"), *root.glob("*/*/lock")]
    if not locks or not Path("/proc/self/fd").exists():
        return []
    held = _open_files()
    stale = [lock for lock in locks if str(lock.resolve()) not in held]
    for lock in stale:
        lock.unlink(missing_ok=True)
        log.warning("deleted %s, which a killed compilation left", lock)
    return stale


def _open_files() -> set[str]:
    """Paths that this user's processes hold open."""
    paths = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            paths.add(os.readlink(link))
        except OSError:  # the process ended, or belongs to another user
            continue
    return paths
