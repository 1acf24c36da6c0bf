"""Files that other programs leave among data: no samples."""

NAMES = {
    "__macosx",
    "@eadir",
    "#recycle",
    "@recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}
NAMES |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
WHAT = "files of other programs (hidden, __MACOSX, @eaDir, Thumbs.db, ...)"


def is_foreign(path: str) -> bool:
    """Whether a part of a relative path begins with a dot or is a name that systems and programs use for themselves."""
    return any(_is_foreign_name(name) for name in path.split("/"))


def _is_foreign_name(name: str) -> bool:
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in NAMES
