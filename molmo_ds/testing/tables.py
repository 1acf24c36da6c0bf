"""Tables of measurements: what the machine is, and where a table stands in the docs."""

import platform
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the clone


def cpu() -> str:
    """The processor's name and the number of its cores."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()


def write(table: str, lines: list[str]) -> None:
    """Put the lines between the markers of a table in docs/parallelism.md. ValueError if it has no such markers."""
    page = ROOT / "docs/parallelism.md"
    begin = f"<!-- {table} -->"
    end = f"<!-- end of {table} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    text, found = pattern.subn(lambda _: "\n".join([begin, *lines, end]), page.read_text())
    if not found:
        raise ValueError(f"{page} has no '{begin}' followed by '{end}'; write both where the table shall stand.")
    page.write_text(text)
