"""Tables of measurements: what the machine is, and where a table is in the docs."""

import json
import platform
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]  # of the clone


def cpu() -> str:
    """The processor's name and the number of its cores."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()


def read(table: str) -> list[list[str]]:
    """The rows of a table of docs/evidence, below its head, cell by cell; none where no page has its markers."""
    for page in sorted((ROOT / "docs/evidence").glob("*.md")):
        _, begin, rest = page.read_text().partition(f"<!-- {table} -->")
        if begin:
            lines = rest.partition(f"<!-- end of {table} -->")[0].splitlines()
            rows = [line for line in lines if line.startswith("|")]
            return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    return []


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


class Kept:
    """What earlier calls of a tool have measured, by name in a JSON file; without a file nothing is kept."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.found: dict[str, Any] = {}
        if file is not None and file.exists():
            self.found = json.loads(file.read_text())

    def add(self, name: str, value: Any) -> None:
        """Note one of them."""
        self.found[name] = value
        if self.file is not None:
            self.file.write_text(json.dumps(self.found, indent=1))
