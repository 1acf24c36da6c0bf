"""Tables of measurements: what the machine is, and where a table is in the docs."""

import platform
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the clone


def cpu() -> str:
    """The processor's name and the number of its cores."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()


def write(table: str, lines: list[str]) -> None:
    """Put the lines between the markers of a table in docs/evidence. ValueError if no page there has such markers."""
    begin = f"<!-- {table} -->"
    end = f"<!-- end of {table} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    for page in sorted((ROOT / "docs/evidence").glob("*.md")):
        text, found = pattern.subn(lambda _: "\n".join([begin, *lines, end]), page.read_text())
        if found:
            page.write_text(text)
            return
    raise ValueError(
        f"No page of docs/evidence has '{begin}' followed by '{end}'; write both where the table belongs."
    )
